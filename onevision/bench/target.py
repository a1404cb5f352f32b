"""Benchmark targets: engines that answer a scenario and time each stage."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onevision.bench.memory import MemoryWatch
from onevision.bench.result import Counts
from onevision.bench.scenarios import QUESTION, SECOND_QUESTION, SHORT
from onevision.runtime.answer import STAGES, StageClock
from onevision.runtime.prompt import ImagePart, Message, Part, VideoPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.bench.result import Memory
    from onevision.bench.scenarios import Scenario, ScenarioInputs
    from onevision.runtime.answer import Lap
    from onevision.runtime.engine import OneVision

#: Name of this package's own runtime.
OURS = "onevision"


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
        self, scenario: Scenario, inputs: ScenarioInputs, new_clock: Callable[[], StageClock] = StageClock
    ) -> TimedAnswer:
        """Answer once, greedily, with as many tokens as the scenario says.

        Args:
            scenario: The question.
            inputs: Its images or video.
            new_clock: Called when the timed part starts.

        Raises:
            OneVisionError: The target cannot answer that.
        """

    def ask_watched(
        self,
        scenario: Scenario,
        inputs: ScenarioInputs,
        now: Callable[[], float] = time.perf_counter,
        gpu: Callable[[], int | None] | None = None,
    ) -> tuple[TimedAnswer, Memory]:
        """:meth:`ask` while memory is sampled: of the target's process and, by ``gpu``, of the GPU."""
        with MemoryWatch(gpu) as watch:
            answer = self.ask(scenario, inputs, lambda: watch.follow(StageClock(now)))
        return answer, watch.memory


class BundleTarget(Target):
    """A bundle in this package's runtime."""

    def __init__(self, model: OneVision, name: str = OURS) -> None:
        self.name = name
        self._model = model

    def ask(
        self, scenario: Scenario, inputs: ScenarioInputs, new_clock: Callable[[], StageClock] = StageClock
    ) -> TimedAnswer:
        """See :meth:`Target.ask`."""
        options: dict[str, Any] = {"frames": scenario.frames, "ignore_end": True}
        messages = question(inputs)
        if scenario.again:
            first = self._model.generate(messages=messages, max_tokens=SHORT, **options)
            messages += [Message("assistant", (first.text,)), Message("user", (SECOND_QUESTION,))]
        clock = new_clock()
        answer = self._model.generate(messages=messages, clock=clock, max_tokens=scenario.answer, **options)
        usage, timings = answer.usage, answer.timings
        counts = Counts(usage.prompt_tokens, usage.image_tokens, usage.completion_tokens, usage.tiles)
        return TimedAnswer(counts, answer.token_ids, tuple(clock.laps), timings.ttft, timings.total)


def question(inputs: ScenarioInputs) -> list[Message]:
    """The messages that every target is asked."""
    visuals: list[Part] = [ImagePart(image) for image in inputs.images]
    if inputs.video is not None:
        visuals.append(VideoPart(inputs.video))
    return [Message("user", (*visuals, QUESTION))]
