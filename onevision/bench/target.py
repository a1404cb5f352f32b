"""Targets: engines that answer a scenario and time each stage, and their memory meanwhile."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil

from onevision.bench.result import Counts, Memory
from onevision.bench.scenarios import SECOND_QUESTION, SHORT, Scenario
from onevision.runtime import generate
from onevision.runtime.clock import STAGES, Lap, StageClock
from onevision.runtime.engine import OneVision
from onevision.runtime.messages import Message
from onevision.runtime.options import AnswerOptions

NewClock = Callable[[], StageClock]

#: Name of this package's own runtime.
OURS = "onevision"
_INTERVAL = 0.01  # seconds between samples of memory


@dataclass(frozen=True)
class TimedAnswer:
    """One answer. Times are in milliseconds; ``ttft`` is None if the engine only encodes."""

    counts: Counts
    token_ids: tuple[int, ...]
    laps: tuple[Lap, ...]
    ttft: float | None
    total: float

    @property
    def stages(self) -> dict[str, float]:
        """Milliseconds by stage; 0 for a stage that was not entered."""
        return {stage: sum(lap.ms for lap in self.laps if lap.stage == stage) for stage in STAGES}


class Target(ABC):
    """An engine to measure. ``name`` is its name in tables."""

    name: str

    @abstractmethod
    def ask(
        self, scenario: Scenario, messages: Sequence[Message], new_clock: NewClock = StageClock
    ) -> TimedAnswer:
        """Answer once, greedily, with as many tokens as the scenario says.

        Args:
            scenario: The question.
            messages: Its messages, images or video included.
            new_clock: Called when the timed part starts.

        Raises:
            OneVisionError: The target cannot answer that.
        """

    def ask_watched(
        self,
        scenario: Scenario,
        messages: Sequence[Message],
        now: Callable[[], float] = time.perf_counter,
        gpu: Callable[[], int | None] | None = None,
    ) -> tuple[TimedAnswer, Memory]:
        """:meth:`ask` while memory is sampled: of the target's process and, by ``gpu``, of the GPU."""
        with MemoryWatch(gpu) as watch:
            answer = self.ask(scenario, messages, lambda: watch.follow(StageClock(now)))
        return answer, watch.memory


class BundleTarget(Target):
    """A bundle in this package's runtime; ``options`` are the prompt's."""

    def __init__(self, model: OneVision, name: str = OURS, options: AnswerOptions | None = None) -> None:
        self._model, self.name, self._options = model, name, options or AnswerOptions()

    def ask(
        self, scenario: Scenario, messages: Sequence[Message], new_clock: NewClock = StageClock
    ) -> TimedAnswer:
        """See :meth:`Target.ask`."""
        options = replace(self._options, max_tokens=scenario.answer, frames=scenario.frames, ignore_end=True)
        if scenario.again:
            first = self._model.run(
                generate.answer(self._model.pipeline, messages, replace(options, max_tokens=SHORT))
            ).read()
            messages = [*messages, Message("assistant", (first.text,)), Message("user", (SECOND_QUESTION,))]
        clock = new_clock()
        pieces = generate.answer(self._model.pipeline, messages, options, clock=clock)
        answer = self._model.run(pieces).read()
        usage, times = answer.usage, answer.timings
        counts = Counts(usage.prompt_tokens, usage.image_tokens, usage.completion_tokens, usage.tiles)
        return TimedAnswer(counts, answer.token_ids, tuple(clock.laps), times.ttft, times.total)


class MemoryWatch:
    """Samples memory by stage from a thread until the context ends.

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
        while not self._ended.wait(_INTERVAL):
            self.sample()
