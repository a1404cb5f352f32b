"""Prompt format of a bundle, chosen by the checkpoint's own chat template.

In: a checkpoint's folder. Out: the name of a format, and the template where it is none that has a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from onevision.errors import CheckpointError, PromptError, UnsupportedCheckpointError, UsageError
from onevision.export.section import DAMAGED_HINT, Section, read_json
from onevision.models.shapes import CheckpointFormat
from onevision.runtime.messages import ImagePart, Message, VideoPart
from onevision.runtime.options import Template, TemplateChoice
from onevision.runtime.prompt import render
from onevision.runtime.template import render_template

#: Files that may hold a chat template, as transformers' processors look for it.
_JSON_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")

_QUESTION = Message("user", (ImagePart(b""), "What is this?"))
#: Conversations that a template has to take, and others by which it is compared.
_NEEDED = ((_QUESTION,), (Message("user", ("Hello.",)),))
_SHAPES: tuple[Sequence[Message], ...] = (
    *_NEEDED,
    (Message("user", (VideoPart(""), "What happens?")),),
    (Message("system", ("Be brief.",)), _QUESTION),
    (
        _QUESTION,
        Message("assistant", ("A cat.",)),
        Message("user", (ImagePart(b"1"), ImagePart(b"2"), "And?")),
    ),
)


def choose_template(
    folder: Path, form: CheckpointFormat, choice: TemplateChoice, *, repo: str | None
) -> tuple[Template, str | None]:
    """Prompt format of a checkpoint's bundle, and the checkpoint's chat template where the format is ``own``.

    ``auto`` renders the checkpoint's template beside the formats that have names. LLaVA-NeXT's trainer uses
    no template but its own format, ``training``; so were llava-hf's repositories trained, whatever their
    template says.

    Args:
        folder: The checkpoint's.
        form: Its format.
        choice: As asked for.
        repo: Its repository on the Hub.

    Raises:
        UsageError: An unknown choice.
        CheckpointError: The file with the template is damaged.
        UnsupportedCheckpointError: The template fails, or places no images.
    """
    if choice not in get_args(TemplateChoice):
        raise UsageError(f"template is {choice!r}, it must be one of {', '.join(get_args(TemplateChoice))}")
    if choice != "auto":
        return choice, None
    if form == "lmms-lab" or (repo or "").startswith("llava-hf/"):
        return "training", None
    found = read_template(folder)
    if found is None:
        return "training", None
    source, file = found
    try:
        for messages in _NEEDED:
            render_template(source, messages)
    except PromptError as error:
        raise UnsupportedCheckpointError(f"{file}: {error.message}", hint=error.hint) from error
    for name in ("training", "hf"):
        if all(_is_same(source, messages, name) for messages in _SHAPES):
            return name, None
    return "own", source


def _is_same(source: str, messages: Sequence[Message], name: Template) -> bool:
    try:
        return render_template(source, messages) == render(messages, name)
    except PromptError:
        return False


def read_template(folder: Path) -> tuple[str, str] | None:
    """A checkpoint's chat template and the name of its file, as transformers chooses it; None without one.

    Raises:
        CheckpointError: A file is damaged.
    """
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        try:
            return plain.read_text(encoding="utf-8"), plain.name
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {plain}: {error}", hint=DAMAGED_HINT) from error
    for name in _JSON_FILES:
        if not (folder / name).is_file():
            continue
        section = Section(read_json(folder / name), f"{name}: ")
        value = section.get("chat_template")
        if isinstance(value, list):  # several by name
            named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
            value = named.get("default")
        if isinstance(value, str):
            return value, name
        if value is not None:
            raise section.bad("chat_template", "a text")
    return None
