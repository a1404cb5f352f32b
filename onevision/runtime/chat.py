"""A conversation: each turn continues where the last one ended.

In: questions, with images and videos that are given once. Out: the answers that the whole conversation would
get as one prompt. The KV cache keeps what was said: a turn computes only what is new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onevision.errors import PromptError, UsageError
from onevision.files import whole_file
from onevision.runtime.answer import Answer, AnswerStream, OnProgress
from onevision.runtime.clock import StageClock
from onevision.runtime.generate import complete
from onevision.runtime.images import ImageSource
from onevision.runtime.messages import ImagePart, Message, VideoPart, read_messages
from onevision.runtime.options import make_options
from onevision.runtime.pages import paged, read_part
from onevision.runtime.pipeline import Pipeline
from onevision.runtime.prepare import KeptVisuals
from onevision.runtime.video import VideoSource

#: A larger part of the context is not reserved for an answer: earlier turns are worth more.
_ANSWER_SHARE = 4


@dataclass(frozen=True)
class Given:
    """An image or video as it was when it was given, and its form in a saved conversation."""

    part: ImagePart | VideoPart
    saved: dict[str, Any] | None  # None: it came from no file


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    given: tuple[Given, ...]
    prompt: str
    answer: str

    @property
    def messages(self) -> tuple[Message, Message]:
        """The user's message and the assistant's."""
        return _question(self.given, self.prompt), Message("assistant", (self.answer,))


class Chat:
    """A conversation with a model, made by :meth:`OneVision.chat`.

    Args:
        pipeline: The loaded bundle. Other questions to it in between cost a new prefill of the conversation.
        run: Makes a stream of an answer that has the pipeline for itself.
        **options: Of every turn, see :class:`onevision.runtime.options.AnswerOptions`.

    Attributes:
        turns: The conversation so far.
        dropped: Number of the oldest turns that the context could not hold any more.

    Raises:
        UsageError: Options that are not valid.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        run: Callable[[Generator[str, None, Answer]], AnswerStream],
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._pipeline, self._run, self._options = pipeline, run, make_options(options)
        if self._options.ttft_target is not None:
            # Chosen anew for each turn, it would cut earlier images anew, and compute all of them again.
            raise UsageError(
                "a conversation takes no target for the first token",
                hint="ask `onevision plan --ttft-target` for a budget, and give that: --max-tiles",
            )
        self._next: list[Given] = []
        self._kept: KeptVisuals = {}
        self.turns: list[Turn] = []
        self.dropped = 0

    def add_image(self, source: ImageSource, page: int | None = None) -> tuple[str, ...]:
        """Show an image with the next question. It is read now: later changes of its file do not matter.

        Args:
            source: Its file, or the image itself.
            page: Of a TIFF or PDF, from 1; None: those of the options.

        Returns:
            Warnings about the file.

        Raises:
            ImageError: It cannot be used.
        """
        warnings: list[str] = []
        given: list[Given] = []
        for part in paged(ImagePart(source, page=page), self._options):
            pixels = np.asarray(read_part(part, self._options, warnings.append))
            saved = _saved("image", source)
            if saved and part.page is not None:
                saved["page"] = part.page
            given.append(Given(ImagePart(pixels, page=1), saved))
        self._next += given
        return tuple(warnings)

    def add_video(self, source: VideoSource, **own: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Show a video with the next question; returns warnings about the file.

        Args:
            source: See :func:`onevision.runtime.video.read_video`.
            **own: Options for this video alone, see :class:`onevision.runtime.messages.VideoPart`.

        Raises:
            VideoError: It cannot be used.
        """
        video = self._pipeline.preparer.read_video(source, VideoPart(source, own).options(self._options))
        saved = _saved("video", source)
        self._next.append(Given(VideoPart(replace(video, warnings=())), saved and {**saved, **own}))
        return video.warnings

    def ask(self, prompt: str, on_progress: OnProgress | None = None) -> Answer:
        """Answer a question, see :meth:`stream`."""
        return self.stream(prompt, on_progress).read()

    def stream(self, prompt: str, on_progress: OnProgress | None = None) -> AnswerStream:
        """Answer a question in pieces. A turn whose stream is not read to its end is not remembered.

        Raises:
            PromptError: The question is empty, or too long for the context without any other turn.
        """
        if not prompt.strip():
            raise PromptError("the prompt is empty")
        return self._run(self._turn(prompt, tuple(self._next), on_progress))

    def _turn(
        self, prompt: str, given: tuple[Given, ...], on_progress: OnProgress | None
    ) -> Generator[str, None, Answer]:
        pipeline, options, clock = self._pipeline, self._options, StageClock()
        context = pipeline.backbone.context_length
        # The oldest turns are left out until the rest fits; the question itself always stays.
        for dropped in range(len(self.turns) + 1):
            turns = self.turns[dropped:]
            messages = [message for turn in turns for message in turn.messages]
            prepared = pipeline.prepare([*messages, _question(given, prompt)], options, clock, self._kept)
            if prepared.tokens + min(options.max_tokens, context // _ANSWER_SHARE) <= context:
                break
        answer = yield from complete(pipeline, prepared, options, on_progress, in_sequence=True)
        self.turns = [*turns, Turn(given, prompt, answer.text)]
        self.dropped += dropped
        self._next = self._next[len(given) :]
        shown = {id(item.part) for turn in self.turns for item in (*turn.given, *self._next)}
        self._kept = {key: visual for key, visual in self._kept.items() if key[0] in shown}
        return answer

    def reset(self) -> None:
        """Forget everything that was said and shown."""
        self.turns, self._next, self._kept, self.dropped = [], [], {}, 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON messages, as ``run --messages`` takes them, with paths of images.

        Raises:
            UsageError: An image or video came from no file.
            ExportError: The file cannot be written.
        """
        messages: list[dict[str, Any]] = []
        if self._options.system is not None:
            messages.append({"role": "system", "content": self._options.system})
        for turn in self.turns:
            if any(item.saved is None for item in turn.given):
                raise UsageError("an image or video of the conversation came from no file")
            content = [*(item.saved for item in turn.given), {"type": "text", "text": turn.prompt}]
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
        data = (json.dumps(messages, ensure_ascii=False, indent=1) + "\n").encode()
        with whole_file(Path(path), len(data)) as part:
            part.write_bytes(data)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the conversation by one that :meth:`save` wrote, or of that form. Images are read again.

        Raises:
            InputError: Not such a file, or an image that cannot be used.
        """
        path = Path(path)
        parsed = read_messages(path, Message("user", ("?",))).messages[
            :-1
        ]  # in the place of the next question
        options = self._options
        if parsed and parsed[0].role == "system":
            options = replace(options, system="".join(map(str, parsed[0].content)))
            parsed = parsed[1:]
        saved = Chat(self._pipeline, self._run)
        saved._options = options
        for question, answer in zip(parsed[::2], [*parsed[1::2], None], strict=False):
            texts = [part for part in question.content if isinstance(part, str)]
            if answer is None or (question.role, answer.role) != ("user", "assistant") or len(texts) != 1:
                raise PromptError(
                    f"{path} is not a saved conversation",
                    hint="one text of the user and one answer in each turn, an answer last",
                )
            for part in question.content:
                if isinstance(part, ImagePart):
                    saved.add_image(part.source, part.page)
                elif isinstance(part, VideoPart):
                    saved.add_video(part.source, **part.own)
            saved.turns.append(Turn(tuple(saved._next), texts[0], str(answer.content[0])))
            saved._next = []
        self.turns, self._next, self._kept, self.dropped = saved.turns, [], {}, 0
        self._options = options


def _question(given: Sequence[Given], prompt: str) -> Message:
    return Message("user", (*(item.part for item in given), prompt))


def _saved(kind: str, source: ImageSource | VideoSource) -> dict[str, Any] | None:
    if not isinstance(source, (str, os.PathLike)):
        return None
    return {"type": kind, kind: str(Path(source).absolute())}
