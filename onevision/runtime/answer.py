"""What comes out: an answer, its counts and times, and the stream that brings it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

Stage = Literal["read", "preprocess", "encode", "pack", "prefill", "decode"]
STAGES: tuple[Stage, ...] = ("read", "preprocess", "encode", "pack", "prefill", "decode")
FinishReason = Literal["stop", "length"]

#: Called as work goes on: stage, units done, units in all (tiles, tokens).
Progress = Callable[[Stage, int, int], None]


@dataclass(frozen=True)
class Usage:
    """Counts of one answer. ``prompt_tokens`` include ``image_tokens``, and those that were known before."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    tiles: int
    cached_tokens: int = 0  # of the prompt, not read again


@dataclass(frozen=True)
class Timings:
    """Milliseconds by stage.

    ``ttft`` is from the call to the first token; ``total`` is from the call to the last. ``load`` is what
    loading took, whenever that was, and is in neither.
    """

    load: float
    read: float
    preprocess: float
    encode: float
    pack: float
    prefill: float
    ttft: float
    decode: float
    total: float


@dataclass(frozen=True)
class Answer:
    """An answer with how it came about. ``token_ids`` end before the end-of-sequence token."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision run --json`` prints."""
        data = asdict(self)
        data["token_ids"] = list(self.token_ids)
        data["timings_ms"] = {name: round(value, 3) for name, value in data.pop("timings").items()}
        data["warnings"] = list(self.warnings)
        return data


class AnswerStream(Iterator[str]):
    """Pieces of an answer as they come; after the last one, ``answer`` is the whole.

    The model is busy from the first piece until the stream ends, is closed, or is garbage: another question
    waits for it, so do not ask one from the thread that reads it.
    """

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._answer = end.value
            raise

    @property
    def is_open(self) -> bool:
        """Whether it waits to be read on: the first piece was asked for, and there is more."""
        return inspect.getgeneratorstate(self._pieces) == inspect.GEN_SUSPENDED

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
        """Stop generating and let the model go."""
        self._pieces.close()


class StageClock:
    """Milliseconds by stage, each entered any number of times."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.stages: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Add the time of the body to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] += (time.perf_counter() - start) * 1e3

    def elapsed(self) -> float:
        """Milliseconds since the clock was made."""
        return (time.perf_counter() - self.started) * 1e3
