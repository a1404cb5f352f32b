"""Memory of this process by stage, sampled from another thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psutil

from onevision.bench.result import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.runtime.answer import StageClock

INTERVAL = 0.01  # seconds between samples


class MemoryWatch:
    """Samples memory until the context ends.

    Args:
        gpu: Reads the bytes of GPU memory in use, or None if unknown; None without a GPU.
        resident: Reads the bytes of memory of the process.
    """

    def __init__(
        self,
        gpu: Callable[[], int | None] | None = None,
        resident: Callable[[], int] = lambda: psutil.Process().memory_info().rss,
    ) -> None:
        self._gpu, self._resident = gpu, resident
        self._clock: StageClock | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.memory = Memory(0, {}, None)

    def follow(self, clock: StageClock) -> StageClock:
        """Assign samples to the stages of this clock from now on."""
        self._clock = clock
        return clock

    def sample(self) -> None:
        """Read memory once."""
        stage = self._clock and self._clock.current
        size, used, before = self._resident(), self._gpu() if self._gpu else None, self.memory
        stages = before.stages | ({stage: max(before.stages.get(stage, 0), size)} if stage else {})
        gpu_peak = before.gpu_peak if used is None else max(before.gpu_peak or 0, used)
        self.memory = Memory(max(before.peak, size), stages, gpu_peak)

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
