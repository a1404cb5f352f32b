"""Prompt format of a bundle, chosen by the checkpoint's own chat template.

In: a checkpoint's folder. Out: the name of a format, and the template where it is none that has a name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from onevision.errors import CheckpointError, PromptError, UnsupportedCheckpointError, UsageError
from onevision.export.section import DAMAGED_HINT, Section, read_json
from onevision.models.shapes import CheckpointFormat
from onevision.runtime.messages import ImagePart, Message, VideoPart
from onevision.runtime.options import Template, TemplateChoice
from onevision.runtime.prompt import Control, render
from onevision.runtime.template import render_template

#: Files that may hold a chat template, as transformers' processors look for it.
_TOKENIZER = "tokenizer_config.json"
_JSON_FILES = ("chat_template.json", "processor_config.json", _TOKENIZER)

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


@dataclass(frozen=True)
class PromptFormat:
    """Prompt format of a bundle: ``chat_template`` is the checkpoint's where the format is ``own``."""

    template: Template
    chat_template: str | None = None
    note: str | None = None  # for the user, where the checkpoint's template decided


def choose_template(
    folder: Path, form: CheckpointFormat, choice: TemplateChoice, *, repo: str | None, tokens: Collection[str]
) -> PromptFormat:
    """Prompt format of a checkpoint's bundle.

    ``auto`` renders the checkpoint's template beside the formats that have names. LLaVA-NeXT's trainer uses
    no template but its own format, ``training``; so were llava-hf's repositories trained, whatever their
    template says.

    Args:
        folder: The checkpoint's.
        form: Its format.
        choice: As asked for.
        repo: Its repository on the Hub.
        tokens: Of its tokenizer.

    Raises:
        UsageError: An unknown choice.
        CheckpointError: The file with the template is damaged.
        UnsupportedCheckpointError: The template fails, places no images, or has a token that is not there.
    """
    if choice not in get_args(TemplateChoice):
        raise UsageError(f"template is {choice!r}, it must be one of {', '.join(get_args(TemplateChoice))}")
    if choice != "auto":
        return PromptFormat(choice)
    found = read_templates(folder)
    if not found or form == "lmms-lab" or (repo or "").startswith("llava-hf/"):
        return PromptFormat("training")
    file, source = next(iter(found.items()))
    try:
        name = _named(source)
    except PromptError as error:
        raise UnsupportedCheckpointError(f"{file}: {error.message}", hint=error.hint) from error
    if unknown := [token for token in _controls(source) if token not in tokens]:
        raise UnsupportedCheckpointError(
            f"{file}: the chat template has {unknown[0]}, which is no token of the tokenizer",
            hint="--template training is the format that LLaVA-OneVision was trained with",
        )
    note = None if name == "training" else f"prompt format {name}, as {file} has it"
    # LLaMA-Factory trains with the tokenizer's template, and leaves the processor's as it was.
    with suppress(PromptError):
        if (its := _named(found.get(_TOKENIZER, source))) != name:
            instead = f"--template {its}" if its != "own" else f"remove {file}"
            note = f"prompt format {name}, as {file} has it; {_TOKENIZER} has another: {instead} to use that"
    return PromptFormat(name, source if name == "own" else None, note)


def _named(source: str) -> Template:
    """Name of the format that a template renders.

    Raises:
        PromptError: It fails, or places no images.
    """
    for messages in _NEEDED:
        render_template(source, messages)
    names: tuple[Template, ...] = ("training", "hf")
    return next((name for name in names if all(_is_same(source, each, name) for each in _SHAPES)), "own")


def _controls(source: str) -> list[str]:
    """Control tokens of the prompts that a template renders."""
    segments = [segment for messages in _NEEDED for segment in render_template(source, messages)]
    return [segment.token for segment in segments if isinstance(segment, Control)]


def _is_same(source: str, messages: Sequence[Message], name: Template) -> bool:
    try:
        return render_template(source, messages) == render(messages, name)
    except PromptError:
        return False


def read_templates(folder: Path) -> dict[str, str]:
    """A checkpoint's chat templates by the names of their files; the first is the one of transformers.

    Raises:
        CheckpointError: A file is damaged.
    """
    found: dict[str, str] = {}
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        try:
            found[plain.name] = plain.read_text(encoding="utf-8")
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
            found[name] = value
        elif value is not None:
            raise section.bad("chat_template", "a text")
    return found
