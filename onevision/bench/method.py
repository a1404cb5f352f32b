"""Measuring: a warm-up round that is watched for memory, then timed rounds.

In: targets and scenarios. Out: :class:`~onevision.bench.result.Measured`, one per pair.

All pairs take turns, round after round: what else the machine does hits all of them alike. Nothing is sampled
while a run is timed.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from onevision.bench.machine import energy, energy_between
from onevision.bench.result import Measured, Run
from onevision.bench.scenarios import ScenarioInputs
from onevision.errors import OneVisionError
from onevision.runtime.answer import StageClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from onevision.bench.result import Counts, Memory, Work
    from onevision.bench.scenarios import Scenario
    from onevision.bench.target import Target, TimedAnswer

#: Rounds that are always run: one has no deviation.
MIN_ROUNDS = 2


@dataclass(frozen=True)
class Method:
    """Number of runs, time budget, and instruments.

    Attributes:
        runs: Timed runs of each pair.
        seconds: No new round starts if it would end later than this after the first; None: no limit.
        now: Seconds of a clock that never goes back.
        gauge: Does a fixed piece of work and returns its milliseconds; called before each timed run.
        joules: Reads an energy meter, or None.
        gpu_memory: Reads the bytes of GPU memory in use, or None; None without a GPU.
    """

    runs: int = 5
    seconds: float | None = None
    now: Callable[[], float] = time.perf_counter
    gauge: Callable[[], float] | None = None
    joules: Callable[[], float | None] = energy
    gpu_memory: Callable[[], int | None] | None = None


@dataclass
class Trial:
    """One scenario on one target."""

    scenario: Scenario
    target: Target
    inputs: ScenarioInputs
    work_of: Callable[[Counts, int | None], dict[str, Work]] | None = None
    counts: Counts | None = None
    memory: Memory | None = None
    skipped: str | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def measured(self) -> Measured:
        """Measurements so far."""
        calls = len(self.runs[0].tiles_ms) if self.runs else None
        work = self.work_of(self.counts, calls) if self.work_of and self.counts else {}
        skipped = self.skipped or (None if self.runs else "interrupted before its first run")
        return Measured(
            self.scenario.name, self.target.name, self.counts, tuple(self.runs), self.memory, work, skipped
        )

    def warm_up(self, method: Method) -> None:
        """Answer once, untimed and watched for memory. A target that cannot is skipped from now on."""
        if self.skipped:
            return
        try:
            answer, self.memory = self.target.ask_watched(
                self.scenario, self.inputs, method.now, method.gpu_memory
            )
        except OneVisionError as error:
            self.skipped = error.message
        else:
            self.counts = answer.counts

    def run(self, method: Method) -> None:
        """Answer once, timed. A target that fails keeps its runs and is skipped from now on."""
        if self.skipped:
            return
        gauge_ms = method.gauge() if method.gauge else None
        before = method.joules()
        try:
            answer = self.target.ask(self.scenario, self.inputs, partial(StageClock, method.now))
        except OneVisionError as error:
            self.skipped = error.message
        else:
            self.runs.append(_run_of(answer, gauge_ms, energy_between(before, method.joules())))


class Rounds:
    """Scenarios on targets. ``measured`` may be read at any time: an interrupt keeps the runs so far."""

    def __init__(self, trials: Iterable[Trial], method: Method) -> None:
        self.trials = tuple(trials)
        self._method = method

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Measurements so far."""
        return tuple(trial.measured for trial in self.trials)

    def run(self, on_run: Callable[[Trial, int], object] = lambda *_: None) -> None:
        """Measure; ``on_run`` is called before each run with its trial and round, 0 for the warm-up."""
        method = self._method
        for trial in self.trials:
            on_run(trial, 0)
            trial.warm_up(method)
        ready = [trial for trial in self.trials if not trial.skipped]
        started = now = method.now()
        for number in range(1, method.runs + 1):
            before, now = now, method.now()
            late = method.seconds is not None and now - started + (now - before) > method.seconds
            if late and number > MIN_ROUNDS:
                return
            for trial in ready:
                on_run(trial, number)
                trial.run(method)


def _run_of(answer: TimedAnswer, gauge_ms: float | None, joules: float | None) -> Run:
    prefill: dict[str, float] = {}
    for lap in answer.laps:
        if lap.stage == "prefill" and lap.of:
            prefill[lap.of] = prefill.get(lap.of, 0.0) + lap.ms
    return Run(
        stages_ms=answer.stages,
        prefill_ms=prefill,
        tiles_ms=tuple(lap.ms for lap in answer.laps if lap.stage == "encode"),
        tokens_ms=tuple(lap.ms for lap in answer.laps if lap.stage == "decode"),
        ttft_ms=answer.ttft,
        total_ms=answer.total,
        gauge_ms=gauge_ms,
        joules=joules,
        output=hashlib.sha256(" ".join(map(str, answer.token_ids)).encode()).hexdigest()[:16],
    )


def make_trials(
    scenario: Scenario,
    targets: Sequence[Target],
    folder: Path,
    work_of: Callable[[Counts, int | None], dict[str, Work]] | None = None,
) -> list[Trial]:
    """A trial per target on the same inputs, made in ``folder``; ``work_of`` is of the first target."""
    inputs, skipped = ScenarioInputs(), None
    try:
        inputs = scenario.inputs(folder)
    except ImportError:
        skipped = "videos need PyAV: pip install 'onevision[video]'"
    return [
        Trial(scenario, target, inputs, None if number else work_of, skipped=skipped)
        for number, target in enumerate(targets)
    ]
