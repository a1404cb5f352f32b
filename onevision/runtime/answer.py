"""What comes out: an answer, its counts and times, and the stream that brings it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from onevision.runtime.options import Detail

Stage = Literal[
    "tokenise", "read", "preprocess", "encode", "pack", "prefill", "first_token", "decode", "detokenise"
]
STAGES: tuple[Stage, ...] = get_args(Stage)
FinishReason = Literal["stop", "length"]

#: Called as work goes on: stage, units done, units in all (tiles, tokens).
OnProgress = Callable[[Stage, int, int], None]


@dataclass(frozen=True)
class Usage:
    """Counts of one answer. ``prompt_tokens`` include ``image_tokens``, and those that were known before."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    tiles: int
    cached_tokens: int = 0  # of the prompt, not read again
    reused_frames: int = 0  # of videos, whose features are those of an earlier frame that is like them


@dataclass(frozen=True)
class Spent:
    """The budget that was used. None: the reference's, or none was asked for. Times are in milliseconds."""

    max_tiles: int | None = None
    detail: Detail = "auto"
    frames: int | None = None
    dedup: float | None = None
    ttft_target_ms: float | None = None
    predicted_ttft_ms: float | None = None  # with nothing in a cache


@dataclass(frozen=True)
class Timings:
    """Milliseconds by stage.

    ``ttft`` is from the call to the first token; ``total`` is from the call to the last. ``load`` is what
    loading took, whenever that was, and is in neither.
    """

    load: float
    tokenise: float
    read: float
    preprocess: float
    encode: float
    pack: float
    prefill: float
    first_token: float
    ttft: float
    decode: float
    detokenise: float
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
    budget: Spent = Spent()

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


@dataclass(frozen=True)
class Lap:
    """A part of a stage: a tile, a chunk of the prompt, a token. ``of`` says what a chunk of it was."""

    stage: Stage
    ms: float
    of: str | None = None


class StageClock:
    """Milliseconds by stage, each entered any number of times, and by lap. Stages do not overlap.

    Args:
        now: Seconds of a clock that never goes back.

    Attributes:
        laps: As they ended. Those of a stage add up to the time that was spent in it.
        current: The stage that is entered, for whoever watches from another thread.
        synchronise: Called before the time is read: waits for a device that goes on by itself.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.laps: list[Lap] = []
        self.current: Stage | None = None
        self.synchronise: Callable[[], object] = lambda: None
        self._now = now
        self._started = self._lap_started = now()
        self._loading = 0.0

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Add the time of the body to a stage: one lap, or those that :meth:`lap` cuts."""
        before, self.current = len(self.laps), name
        self._lap_started = self._read()
        try:
            yield
        finally:
            self.lap()
            if len(self.laps) > before + 1:  # what follows the last cut belongs to what was cut there
                rest, last = self.laps.pop(), self.laps.pop()
                self.laps.append(Lap(name, last.ms + rest.ms, last.of))
            self.current = None

    def lap(self, of: str | None = None) -> None:
        """End a part of the stage that is entered, and begin another."""
        if self.current is not None:
            now = self._read()
            self.laps.append(Lap(self.current, (now - self._lap_started) * 1e3, of))
            self._lap_started = now

    def exclude(self, ms: float) -> None:
        """Take time out of what has elapsed: of loading, which is no part of answering."""
        self._loading += ms

    @property
    def stages(self) -> dict[Stage, float]:
        """Milliseconds by stage; 0 for one that was not entered."""
        return {stage: sum(lap.ms for lap in self.laps if lap.stage == stage) for stage in STAGES}

    def elapsed(self) -> float:
        """Milliseconds since the clock was made, without those excluded."""
        return (self._read() - self._started) * 1e3 - self._loading

    def _read(self) -> float:
        self.synchronise()
        return self._now()
