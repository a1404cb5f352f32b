r"""Messages to the segments of a prompt.

In: messages with text, pictures and videos in any order. Out: a flat list of segments, each of which the
backbone takes as it is: a control token, a stretch of text, or the place of a picture or video.

Text between two control tokens or pictures is one segment, because byte-level BPE merges across anything
that is not a control token: ``"user\n"`` and the question that follows are tokenised together, as the
reference does. Text of a user is never parsed for control tokens, so ``<image>`` or ``<|im_end|>`` typed in
a question stays text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from onevision.errors import PromptError, UsageError

if TYPE_CHECKING:
    from onevision.runtime.budget import Detail
    from onevision.runtime.images import ImageSource
    from onevision.runtime.video import VideoSource

Role = Literal["system", "user", "assistant"]
Template = Literal["training", "hf"]
TEMPLATES: tuple[Template, ...] = get_args(Template)

DEFAULT_SYSTEM = "You are a helpful assistant."
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class ImagePart:
    """A picture: path, bytes, PIL image or array (H, W, 3) uint8."""

    source: ImageSource
    detail: Detail | None = None  # None: as the options say


@dataclass(frozen=True)
class VideoPart:
    """A video: a path, or frames as an array (N, H, W, 3) uint8."""

    source: VideoSource


Part = str | ImagePart | VideoPart


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: tuple[Part, ...]


@dataclass(frozen=True)
class Control:
    """A control token, by its text: it becomes exactly one id."""

    token: str


@dataclass(frozen=True)
class Visual:
    """The place of one picture or video."""

    part: ImagePart | VideoPart


Segment = Control | str | Visual


def parse_messages(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Check messages, and read those that have the form of OpenAI's chat API.

    A message is ``{"role": "user", "content": "…" | [part, …]}``; a part is ``{"type": "text", "text": …}``,
    ``{"type": "image", "image": …}`` or ``{"type": "video", "video": …}``.

    Raises:
        PromptError: Another form; no message; a last message that is not the user's; a system message that
            is not the first; pictures outside user messages.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(
            "messages must be a list of messages", hint='[{"role": "user", "content": "Hello"}]'
        )
    parsed = tuple(
        item if isinstance(item, Message) else _parse_message(item, f"messages[{index}]")
        for index, item in enumerate(messages)
    )
    if not parsed:
        raise PromptError("messages is empty")
    if parsed[-1].role != "user":
        raise PromptError(f"the last message must be the user's, not the {parsed[-1].role}'s")
    for index, message in enumerate(parsed):
        if message.role == "system" and index > 0:
            raise PromptError(f"messages[{index}] is a system message: only the first can be")
        if message.role != "user" and not all(isinstance(part, str) for part in message.content):
            raise PromptError(f"messages[{index}] has a picture or video: only user messages can")
    return parsed


def _parse_message(item: object, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise PromptError(f"{where} is not an object with role and content")
    role, content = item.get("role"), item.get("content")
    if role not in get_args(Role):
        raise PromptError(f"{where} has the role {role!r}", hint=f"one of {', '.join(get_args(Role))}")
    if isinstance(content, str):
        return Message(cast("Role", role), (content,))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(f"{where} has no content", hint="content is a text or a list of parts")
    parts = tuple(_parse_part(part, f"{where}.content[{at}]") for at, part in enumerate(content))
    return Message(cast("Role", role), parts)


def _parse_part(part: object, where: str) -> Part:
    if isinstance(part, (str, ImagePart, VideoPart)):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in ("text", "image", "video"):
        raise PromptError(f"{where} has the type {kind!r}", hint="one of text, image, video")
    value = part.get(kind)
    if value is None:
        raise PromptError(f"{where} has no {kind!r}")
    if kind == "image":
        return ImagePart(value)
    if kind == "video":
        return VideoPart(value)
    if not isinstance(value, str):
        raise PromptError(f"{where}: text must be a string")
    return value


def render(
    messages: Sequence[Message], template: Template = "training", system: str = DEFAULT_SYSTEM
) -> list[Segment]:
    r"""Lay out a conversation, up to where the assistant's answer begins.

    ``training`` is the format the model was trained with, ``qwen_1_5`` of LLaVA-NeXT's
    ``llava/conversation.py``: ``<|im_start|>system\n…<|im_end|>\n<|im_start|>user\n<image>\n…<|im_end|>\n``,
    parts in the order given; a system prompt is always there. ``hf`` is the chat template of the
    ``llava-hf`` repositories: ``<|im_start|>user <image>\n…<|im_end|>``, pictures first, then videos, then
    text, and no system prompt unless the messages have one.

    Args:
        messages: As :func:`parse_messages` returns them.
        template: Name of the format.
        system: System prompt of the ``training`` format where the messages have none.

    Returns:
        Segments in order; no two texts are neighbours.
    """
    segments: list[Segment] = []
    if template == "training" and messages[0].role != "system":
        messages = (Message("system", (system,)), *messages)
    for message in messages:
        segments.append(Control(IM_START))
        if template == "training":
            segments += [f"{message.role}\n", *_in_order(message.content), Control(IM_END), "\n"]
        else:
            segments += [f"{message.role} ", *_visuals_first(message.content), Control(IM_END)]
    segments += [Control(IM_START), "assistant\n"]
    return _merge(segments)


def _in_order(content: Sequence[Part]) -> list[Segment]:
    """Parts as given. Neighbouring pictures are joined by a space (lmms-eval), all else by a newline."""
    segments: list[Segment] = []
    for index, part in enumerate(content):
        if index > 0:
            both_visual = not isinstance(part, str) and not isinstance(content[index - 1], str)
            segments.append(" " if both_visual else "\n")
        segments.append(part if isinstance(part, str) else Visual(part))
    return segments


def _visuals_first(content: Sequence[Part]) -> list[Segment]:
    """Pictures, videos, then each text behind a newline."""
    images: list[Segment] = [Visual(part) for part in content if isinstance(part, ImagePart)]
    videos: list[Segment] = [Visual(part) for part in content if isinstance(part, VideoPart)]
    return images + videos + ["\n" + part for part in content if isinstance(part, str)]


def _merge(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbouring texts, drop empty ones, and apply NFC as Qwen2's tokenizer does."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and merged and isinstance(merged[-1], str):
            merged[-1] += segment
        elif segment != "":
            merged.append(segment)
    return [unicodedata.normalize("NFC", item) if isinstance(item, str) else item for item in merged]


def conversation_of(
    prompt: str | None,
    images: Sequence[ImageSource],
    video: VideoSource | None,
    messages: Sequence[Message | Mapping[str, Any]] | None,
) -> tuple[Message, ...]:
    """Messages of the arguments that :meth:`OneVision.generate` takes.

    Raises:
        UsageError: Both a prompt and messages, or neither.
        PromptError: See :func:`parse_messages`, or the prompt is empty.
    """
    if messages is not None:
        if prompt is not None or len(images) or video is not None:
            raise UsageError("give either messages or a prompt with images and video, not both")
        return parse_messages(messages)
    if prompt is None:
        raise UsageError("there is no prompt")
    if isinstance(images, (str, bytes)):
        raise UsageError("images is a list of pictures", hint="images=[…]")
    if not prompt.strip():
        raise PromptError("the prompt is empty")
    parts: list[Part] = [ImagePart(image) for image in images]
    if video is not None:
        parts.append(VideoPart(video))
    return (Message("user", (*parts, prompt)),)
