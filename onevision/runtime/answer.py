"""An answer, its counts and times, and the stream that brings it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from onevision.runtime.clock import Stage
from onevision.runtime.options import AnswerOptions

FinishReason = Literal["stop", "length"]

#: Progress of a stage: the stage, units done, all units (tiles, tokens).
OnProgress = Callable[[Stage, int, int], None]


@dataclass(frozen=True)
class Usage:
    """Counts of one answer. ``prompt_tokens`` include ``image_tokens`` and ``cached_tokens``."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    tiles: int
    cached_tokens: int = 0  # of the prompt, not computed again
    reused_frames: int = 0  # video frames with the features of an earlier, similar frame


@dataclass(frozen=True)
class Timings:
    """Milliseconds by stage.

    ``ttft`` is from the call to the first token; ``total`` is from the call to the last. ``load`` is what
    loading took, whenever that was, and is in neither.
    """

    load: float
    tokenize: float
    read: float
    preprocess: float
    encode: float
    pack: float
    prefill: float
    first_token: float
    ttft: float
    decode: float
    detokenize: float
    total: float


@dataclass(frozen=True)
class Devices:
    """Where an answer was computed.

    Attributes:
        vision: ``cpu`` or ``cuda``; None for a text alone.
        prefill: Prefill backend, ``onnx`` or ``llama``.
        backbone: ``cpu`` or ``gpu``.
    """

    vision: str | None
    prefill: str
    backbone: str


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the logarithm of its probability: the model's, before temperature, penalty and form.

    ``top`` are the most likely tokens in its place, in order.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ChoiceScore:
    """A choice and its probability among the choices; ``logprob`` is that of its tokens and the end after."""

    text: str
    probability: float
    logprob: float


@dataclass(frozen=True)
class Answer:
    """An answer and how it came about.

    Attributes:
        text: The answer.
        token_ids: Its tokens, without the end-of-sequence token.
        finish_reason: ``stop``: the model ended it, or a stop string; ``length``: it was cut off.
        usage: Counts.
        timings: Milliseconds.
        device: Where it was computed.
        options: With the budget that was used.
        warnings: What the user should know: damaged files, fallbacks, a cache that cannot be written.
        predicted_ttft: Seconds to the first token that were predicted, with empty caches; None without a
            target.
        logprobs: Of each token, if they were asked for.
        choices: Scores of the choices, if there were any, in their order.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    device: Devices
    options: AnswerOptions
    warnings: tuple[str, ...] = ()
    predicted_ttft: float | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    choices: tuple[ChoiceScore, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision run --json`` prints; ``choices`` and ``logprobs`` if asked for."""
        asked = (("choices", self.choices), ("logprobs", self.logprobs))
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
            "device": asdict(self.device),
            "warnings": list(self.warnings),
            "budget": self.options.budget(self.predicted_ttft),
            "timings_ms": {name: round(value, 3) for name, value in asdict(self.timings).items()},
            **{name: [asdict(each) for each in values] for name, values in asked if values is not None},
        }


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come; after the last one, ``answer`` is the whole.

    The model is busy from the first piece until the stream ends or is closed: use it in ``with``. Calls from
    other threads wait; a call from the thread that reads the stream is an error.
    """

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None
        self._whole = False

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._answer = end.value
            raise

    def read(self) -> Answer:
        """Read to the end, and return the answer."""
        self._whole = True
        for _ in self:
            pass
        return self.answer

    @property
    def is_open(self) -> bool:
        """Whether it waits for its next piece to be asked for."""
        return not self._whole and inspect.getgeneratorstate(self._pieces) == inspect.GEN_SUSPENDED

    @property
    def answer(self) -> Answer:
        """The answer, once the stream has ended.

        Raises:
            RuntimeError: There are pieces left to read.
        """
        if self._answer is None:
            raise RuntimeError("the stream has not ended: read it to the end first")
        return self._answer

    def close(self) -> None:
        """Stop generating and release the model; calling it again does nothing."""
        self._pieces.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
