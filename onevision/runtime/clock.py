"""Times of the stages of an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

Stage = Literal[
    "tokenize", "read", "preprocess", "encode", "pack", "prefill", "first_token", "decode", "detokenize"
]
STAGES: tuple[Stage, ...] = get_args(Stage)

#: Context manager of a stage, that times its body.
StageTimer = Callable[[Stage], AbstractContextManager[None]]


@dataclass(frozen=True)
class Lap:
    """Part of a stage: a tile, a chunk of the prompt, a token. ``of``: what a chunk of the prompt was."""

    stage: Stage
    ms: float
    of: Literal["image", "text"] | None = None


class StageClock:
    """Milliseconds by stage, each entered any number of times, and by lap. Stages do not overlap.

    Args:
        now: Seconds of a monotonic clock.

    Attributes:
        laps: In the order in which they ended. Those of a stage add up to the time spent in it.
        current: The stage that is entered, for an observer on another thread.
        synchronize: Called before the time is read: waits for a device that works asynchronously.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.laps: list[Lap] = []
        self.current: Stage | None = None
        self.synchronize: Callable[[], object] = lambda: None
        self._now = now
        self._started = self._lap_started = now()
        self._excluded = 0.0

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Add the time of the body to a stage: as one lap, or as those that :meth:`lap` ends."""
        before, self.current = len(self.laps), name
        self._lap_started = self._read()
        try:
            yield
        finally:
            self.lap()
            if len(self.laps) > before + 1:  # the time after the last lap belongs to that lap
                rest, last = self.laps.pop(), self.laps.pop()
                self.laps.append(Lap(name, last.ms + rest.ms, last.of))
            self.current = None

    def lap(self, of: Literal["image", "text"] | None = None) -> None:
        """End a part of the current stage, and begin another."""
        if self.current is not None:
            now = self._read()
            self.laps.append(Lap(self.current, (now - self._lap_started) * 1e3, of))
            self._lap_started = now

    def exclude(self, ms: float) -> None:
        """Take milliseconds out of :meth:`elapsed`: loading is no part of answering."""
        self._excluded += ms

    @property
    def stages(self) -> dict[Stage, float]:
        """Milliseconds by stage; 0 for one that was not entered."""
        return {stage: sum(lap.ms for lap in self.laps if lap.stage == stage) for stage in STAGES}

    def elapsed(self) -> float:
        """Milliseconds since the clock was made, without those excluded."""
        return (self._read() - self._started) * 1e3 - self._excluded

    def _read(self) -> float:
        self.synchronize()
        return self._now()
