"""A conversation: each turn goes on where the last one ended.

In: questions, with pictures and videos that are given once. Out: the answers that the whole conversation
would get as one prompt. What the backbone has read stays in its sequence: a turn reads only what is new.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.errors import PromptError, UsageError
from onevision.runtime.answer import Answer, AnswerStream, OnProgress, StageClock
from onevision.runtime.images import read_image
from onevision.runtime.messages import ImagePart, Message, Part, VideoPart, parse_messages
from onevision.runtime.options import make_options
from onevision.runtime.video import read_video

if TYPE_CHECKING:
    from collections.abc import Generator

    from onevision.runtime.engine import OneVision
    from onevision.runtime.images import ImageSource
    from onevision.runtime.video import VideoSource


@dataclass(frozen=True)
class Given:
    """A picture or video as it was when it was given, and what it is saved as."""

    part: ImagePart | VideoPart
    saved: dict[str, str] | None  # None: it came from no file


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
        model: Who answers; it may be asked other things meanwhile, at the cost of reading all again.
        **options: As :meth:`OneVision.generate` takes them, for every turn.

    Attributes:
        turns: What was said.
        dropped: Turns that the context could not hold any more.

    Raises:
        UsageError: AnswerOptions that make no sense.
    """

    def __init__(self, model: OneVision, **options: Any) -> None:  # noqa: ANN401
        self._model, self._options = model, make_options(options)
        if self._options.ttft_target is not None:
            # Chosen anew for each turn, it would cut earlier pictures anew, and read them all again.
            raise UsageError(
                "a conversation takes no target for the first token",
                hint="ask `onevision plan --ttft-target` for a budget, and give that: --max-tiles",
            )
        self._next: list[Given] = []
        self.turns: list[Turn] = []
        self.dropped = 0

    def add_image(self, source: ImageSource) -> None:
        """Show a picture with the next question. It is read now: later changes of its file do not matter.

        Raises:
            ImageError: It cannot be used.
        """
        pixels = np.asarray(read_image(source, exif=self._options.exif))
        self._next.append(Given(ImagePart(pixels), _saved("image", source)))

    def add_video(self, source: VideoSource) -> tuple[str, ...]:
        """Show a video with the next question; returns warnings about the file.

        Raises:
            VideoError: It cannot be used.
        """
        frames = self._options.frames or self._model.bundle.manifest.video.frames
        video = read_video(source, frames=frames, prepare=self._model.preparer.frame)
        self._next.append(Given(VideoPart(video.tiles), _saved("video", source)))
        return video.warnings

    def ask(self, prompt: str, on_progress: OnProgress | None = None) -> Answer:
        """Answer a question, see :meth:`stream`."""
        stream = self.stream(prompt, on_progress)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, prompt: str, on_progress: OnProgress | None = None) -> AnswerStream:
        """Answer a question in pieces. A turn whose stream is not read to its end is not remembered.

        Raises:
            PromptError: The question is empty, or too long for the context without any other turn.
        """
        if not prompt.strip():
            raise PromptError("the prompt is empty")
        return AnswerStream(self._turn(prompt, tuple(self._next), on_progress))

    def _turn(
        self, prompt: str, given: tuple[Given, ...], on_progress: OnProgress | None
    ) -> Generator[str, None, Answer]:
        messages = self._fitting(_question(given, prompt))
        answer = yield from self._model.go_on(messages, self._options, on_progress)
        self.turns.append(Turn(given, prompt, answer.text))
        self._next = self._next[len(given) :]
        return answer

    def _fitting(self, question: Message) -> tuple[Message, ...]:
        """The conversation and a question, without the oldest turns if the context is too small."""
        while True:
            messages = (*(item for turn in self.turns for item in turn.messages), question)
            prepared = self._model.preparer.prepare(messages, self._options, StageClock())
            needed = prepared.tokens + self._options.max_tokens
            if needed <= self._model.backbone.context_length or not self.turns:
                return messages
            self.turns.pop(0)
            self.dropped += 1

    def reset(self) -> None:
        """Forget everything that was said and shown."""
        self.turns, self._next, self.dropped = [], [], 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON messages, with pictures by their paths.

        Raises:
            UsageError: A picture came from no file, or the file cannot be written.
        """
        messages = []
        for turn in self.turns:
            if any(item.saved is None for item in turn.given):
                raise UsageError("a picture or video of the conversation came from no file")
            content = [*(item.saved for item in turn.given), {"type": "text", "text": turn.prompt}]
            messages += [
                {"role": "user", "content": content},
                {"role": "assistant", "content": turn.answer},
            ]
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            part.write_text(json.dumps(messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            part.replace(target)
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror or error}") from error

    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the conversation by one that :meth:`save` wrote. Pictures are read again.

        Raises:
            InputError: Not such a file, or a picture that cannot be used.
        """
        try:
            messages = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PromptError(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise PromptError(f"{path} is not valid JSON: {error}") from error
        # A last question stands in for the one to come: messages end with the user's.
        parsed = parse_messages(
            [*messages, Message("user", ("",))] if isinstance(messages, list) else messages
        )
        if len(parsed) % 2 == 0:
            raise PromptError(f"{path} is not a conversation that was saved")
        other = Chat(self._model)
        other._options = self._options
        for question, answer in zip(parsed[:-1:2], parsed[1:-1:2], strict=True):
            for part in question.content:
                if isinstance(part, ImagePart):
                    other.add_image(part.source)
                elif isinstance(part, VideoPart):
                    other.add_video(part.source)
            texts = [part for part in question.content if isinstance(part, str)]
            if question.role != "user" or answer.role != "assistant" or len(texts) != 1:
                raise PromptError(f"{path} is not a conversation that was saved")
            other.turns.append(Turn(tuple(other._next), texts[0], str(answer.content[0])))
            other._next = []
        self.turns, self._next, self.dropped = other.turns, [], 0


def _question(given: tuple[Given, ...], prompt: str) -> Message:
    parts: list[Part] = [item.part for item in given]
    return Message("user", (*parts, prompt))


def _saved(kind: str, source: ImageSource | VideoSource) -> dict[str, str] | None:
    if not isinstance(source, (str, os.PathLike)):
        return None
    return {"type": kind, kind: str(Path(source).absolute())}
