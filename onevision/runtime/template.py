"""A bundle's prompt format; where it has no name, the checkpoint's own chat template (Jinja).

In: messages. Out: segments, as of :func:`onevision.runtime.prompt.render`. Templates run in Jinja's sandbox,
with the filters and functions that transformers gives them. They never see a user's text: a mark stands for
it, so that nothing in it can become a control token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

from onevision.bundle import PromptInfo
from onevision.errors import PromptError, UsageError
from onevision.runtime.messages import ImagePart, Message, Part
from onevision.runtime.options import Template
from onevision.runtime.prompt import IM_END, Control, Segment, Visual, in_order, merge, render

if TYPE_CHECKING:
    import jinja2

_PLACES = {"image": "<image>", "video": "<video>"}
#: A text's number between private characters; a placeholder; a control token, all as a template writes them.
_PIECE = re.compile(r"\ue000(\d+)\ue001|(<image>|<video>)|(<\|[^<>|\s]+\|>)")
_HINT = "--template training is the format that LLaVA-OneVision was trained with"


def lay_out(
    messages: Sequence[Message],
    prompt: PromptInfo,
    template: Template | None = None,
    system: str | None = None,
) -> list[Segment]:
    """Lay out a conversation in a bundle's prompt format, up to where the assistant's answer begins.

    Args:
        messages: As :func:`~onevision.runtime.messages.parse_messages` returns them.
        prompt: Of the bundle.
        template: Another format than the bundle's.
        system: System prompt where the messages have none, instead of the bundle's.

    Raises:
        PromptError: The bundle's own template does not take these messages.
        UsageError: ``own``, and the bundle has no template of its own.
    """
    if system is not None and messages[0].role != "system":
        messages = (Message("system", (system,)), *messages)
    template = template or cast("Template", prompt.template)
    if template != "own":
        return render(messages, template, prompt.system)
    if prompt.chat_template is None:
        raise UsageError("the bundle has no chat template of its own", hint="--template training, or hf")
    return render_template(prompt.chat_template, messages)


def render_template(source: str, messages: Sequence[Message]) -> list[Segment]:
    """Lay out a conversation with a chat template, up to where the assistant's answer begins.

    A template may take the parts of a message as a list, as those of processors do, or as one text with
    ``<image>`` in it, as those of language models do.

    Args:
        source: The template.
        messages: As :func:`~onevision.runtime.messages.parse_messages` returns them.

    Raises:
        PromptError: The template fails, or does not place every image, video and text once.
    """
    faults = []
    for form in (_listed, _spelled):
        texts: list[str] = []
        given = [{"role": message.role, "content": form(message.content, texts)} for message in messages]
        visuals = [part for message in messages for part in message.content if not isinstance(part, str)]
        try:
            return _segments(_render(source, given), texts, visuals)
        except ValueError as error:
            faults.append(str(error))
    raise PromptError(f"the chat template cannot be used: {faults[0]}", hint=_HINT)


def _mark(text: str, texts: list[str]) -> str:
    texts.append(text)
    return f"\ue000{len(texts) - 1}\ue001"


def _listed(content: Sequence[Part], texts: list[str]) -> list[dict[str, str]]:
    """Parts as transformers' processors take them."""
    return [
        {"type": "text", "text": _mark(part, texts)} if isinstance(part, str) else {"type": _kind(part)}
        for part in content
    ]


def _spelled(content: Sequence[Part], texts: list[str]) -> str:
    """Parts as one text, joined as in training."""
    return "".join(
        _PLACES[_kind(item.part)] if isinstance(item, Visual) else _mark(cast("str", item), texts)
        for item in in_order(content)
    )


def _kind(part: Part) -> str:
    return "image" if isinstance(part, ImagePart) else "video"


def _segments(prompt: str, texts: Sequence[str], visuals: Sequence[Part]) -> list[Segment]:
    """Cut a rendered prompt into segments.

    Raises:
        ValueError: A text, image or video is missing, or is there more than once.
    """
    segments: list[Segment] = []
    waiting = {
        place: [part for part in visuals if _PLACES[_kind(part)] == place] for place in _PLACES.values()
    }
    used: list[int] = []
    end = 0
    for piece in _PIECE.finditer(prompt):
        segments.append(prompt[end : piece.start()])
        end = piece.end()
        number, place, control = piece.groups()
        if number:
            used.append(int(number))
            segments.append(texts[int(number)])
        elif place:
            if not waiting[place]:
                raise ValueError(f"it places {place} too often")
            segments.append(Visual(waiting[place].pop(0)))  # type: ignore[arg-type]
        else:
            segments.append(Control(control))
    segments.append(prompt[end:])
    if left := [place for place, parts in waiting.items() if parts]:
        raise ValueError(f"it does not place {left[0]}")
    if sorted(used) != list(range(len(texts))):
        raise ValueError("it leaves out a text of the conversation, or repeats it")
    return merge(segments)


def _render(source: str, messages: Sequence[dict[str, Any]]) -> str:
    """Run a template.

    Raises:
        ValueError: It is no template, or fails.
    """
    from jinja2 import TemplateError

    try:
        return _compiled(source).render(
            messages=messages, add_generation_prompt=True, bos_token="", eos_token=IM_END
        )
    except (
        TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split())[:200].rstrip(".: ")
        raise ValueError(f"{type(error).__name__}: {said}") from error


@lru_cache(maxsize=4)
def _compiled(source: str) -> jinja2.Template:
    """A template in Jinja's sandbox, as transformers' ``apply_chat_template`` sets it up."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    # Training marks the assistant's turns with a tag of transformers, which prints nothing.
    return environment.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))
