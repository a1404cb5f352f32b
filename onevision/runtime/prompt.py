r"""The segments of a prompt, in the format that the model was trained with or in the Hub's.

In: messages with text, images and videos in any order. Out: a flat list of segments: a control token, a
piece of text, or the place of an image or video.

Text between two control tokens or images is one segment, because byte-level BPE merges across anything that
is not a control token: ``"user\n"`` and the question after it are tokenized together, as in the reference. A
user's text is never parsed for control tokens, so ``<image>`` or ``<|im_end|>`` in a question stays text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from onevision.runtime.messages import ImagePart, Message, Part, VideoPart
from onevision.runtime.options import Template

DEFAULT_SYSTEM = "You are a helpful assistant."
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Control:
    """A control token, by its text: it becomes exactly one id."""

    token: str


@dataclass(frozen=True)
class Visual:
    """The place of one image or video."""

    part: ImagePart | VideoPart


Segment = Control | str | Visual


def render(
    messages: Sequence[Message], template: Template = "training", system: str = DEFAULT_SYSTEM
) -> list[Segment]:
    r"""Lay out a conversation, up to where the assistant's answer begins.

    ``training`` is the format the model was trained with, ``qwen_1_5`` of LLaVA-NeXT's
    ``llava/conversation.py``: ``<|im_start|>system\n…<|im_end|>\n<|im_start|>user\n<image>\n…<|im_end|>\n``,
    parts in the order given; a system prompt is always there. ``hf`` is the chat template of the
    ``llava-hf`` repositories: ``<|im_start|>user <image>\n…<|im_end|>``, images first, then videos, then
    text, and no system prompt unless the messages have one.

    Args:
        messages: As :func:`~onevision.runtime.messages.parse_messages` returns them.
        template: Name of the format.
        system: System prompt of the ``training`` format where the messages have none.

    Returns:
        Segments in order; no two texts are neighbors.
    """
    segments: list[Segment] = []
    if template == "training" and messages[0].role != "system":
        messages = (Message("system", (system,)), *messages)
    for message in messages:
        segments.append(Control(IM_START))
        if template == "training":
            segments += [f"{message.role}\n", *in_order(message.content), Control(IM_END), "\n"]
        else:
            segments += [f"{message.role} ", *_visuals_first(message.content), Control(IM_END)]
    segments += [Control(IM_START), "assistant\n"]
    return merge(segments)


def time_instruction(positions: Sequence[int], total: int, fps: float) -> str:
    """Sentence of LLaVA-Video's prompts about the frames of a video (``train.py``, ``add_time_instruction``).

    Args:
        positions: Places of the chosen frames among all, from 0.
        total: Number of all frames.
        fps: Frames per second, on average.
    """
    times = ",".join(f"{position / fps:.2f}s" for position in positions)
    return (
        f"The video lasts for {total / fps:.2f} seconds, and {len(positions)} frames are uniformly sampled "
        f"from it. These frames are located at {times}."
        "Please answer the following questions related to this video."
    )


def in_order(content: Sequence[Part]) -> list[Segment]:
    """Parts as given. Neighboring images are joined by a space (lmms-eval), all else by a newline."""
    segments: list[Segment] = []
    for index, part in enumerate(content):
        if index > 0:
            both_visual = not isinstance(part, str) and not isinstance(content[index - 1], str)
            segments.append(" " if both_visual else "\n")
        segments.append(part if isinstance(part, str) else Visual(part))
    return segments


def _visuals_first(content: Sequence[Part]) -> list[Segment]:
    """Images, videos, then each text after a newline."""
    images: list[Segment] = [Visual(part) for part in content if isinstance(part, ImagePart)]
    videos: list[Segment] = [Visual(part) for part in content if isinstance(part, VideoPart)]
    return images + videos + ["\n" + part for part in content if isinstance(part, str)]


def merge(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighboring texts, drop empty ones, and apply NFC as Qwen2's tokenizer does."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and merged and isinstance(merged[-1], str):
            merged[-1] += segment
        elif segment != "":
            merged.append(segment)
    return [unicodedata.normalize("NFC", item) if isinstance(item, str) else item for item in merged]
