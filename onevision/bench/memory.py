"""Memory of this process by stage, sampled from another thread while something runs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psutil

from onevision.bench.result import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.runtime.answer import StageClock

INTERVAL = 0.01  # seconds; what comes and goes within is missed


class MemoryWatch:
    """Samples resident memory until the context ends.

    Args:
        gpu: Bytes of the GPU's memory in use, or None where it is not told; None without one.
        resident: Bytes of a process; None for this one.
    """

    def __init__(
        self, gpu: Callable[[], int | None] | None = None, resident: Callable[[], int] | None = None
    ) -> None:
        self._gpu = gpu
        self._resident = resident or _resident
        self._clock: StageClock | None = None
        self._stages: dict[str, int] = {}
        self._peak = 0
        self._gpu_peak: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def follow(self, clock: StageClock) -> StageClock:
        """Count samples to the stages of this clock from now on."""
        self._clock = clock
        return clock

    @property
    def memory(self) -> Memory:
        """What was seen."""
        return Memory(self._peak, dict(self._stages), self._gpu_peak)

    def sample(self) -> None:
        """Look once."""
        stage = self._clock and self._clock.current
        size = self._resident()
        self._peak = max(self._peak, size)
        if stage:
            self._stages[stage] = max(self._stages.get(stage, 0), size)
        used = self._gpu() if self._gpu else None
        if used is not None:
            self._gpu_peak = max(self._gpu_peak or 0, used)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.sample()

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.sample()


def _resident() -> int:
    size: int = psutil.Process().memory_info().rss
    return size
