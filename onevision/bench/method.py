"""How it is measured: a round that warms up and looks at memory, then rounds that are timed.

In: engines and scenarios. Out: :class:`~onevision.bench.result.Measured`, one of each pair.

All pairs take turns, round after round: what else the machine does hits all of them alike. Nothing is
sampled while a run is timed; memory is looked at in the first round, which does not count.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from onevision.bench.machine import energy, energy_between
from onevision.bench.memory import MemoryWatch
from onevision.bench.result import Measured, Run
from onevision.bench.scenarios import Inputs
from onevision.errors import OneVisionError
from onevision.runtime.answer import STAGES, StageClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from onevision.bench.result import Counts, Memory, Work
    from onevision.bench.scenarios import Scenario
    from onevision.bench.subject import Asked, Subject

#: Of each pair, however long they take: one run has no deviation.
LEAST_RUNS = 2


@dataclass(frozen=True)
class Method:
    """How often, and how long at most.

    Attributes:
        runs: Timed runs of each pair.
        seconds: No round begins that would end later than this after the first; None: no limit.
        now: Seconds of a clock that never goes back.
        gauge: Does a fixed piece of work and returns its milliseconds; called before each timed run.
        joules: Reading of an energy meter, or None.
        gpu_memory: Bytes of the GPU's memory in use, or None; None without one.
    """

    runs: int = 5
    seconds: float | None = None
    now: Callable[[], float] = time.perf_counter
    gauge: Callable[[], float] | None = None
    joules: Callable[[], float | None] = energy
    gpu_memory: Callable[[], int | None] | None = None


@dataclass
class Trial:
    """One scenario on one engine, as it is measured."""

    scenario: Scenario
    subject: Subject
    inputs: Inputs
    work_of: Callable[[Counts, int | None], dict[str, Work]] | None = None
    counts: Counts | None = None
    memory: Memory | None = None
    skipped: str | None = None
    runs: list[Run] = field(default_factory=list)

    @property
    def measured(self) -> Measured:
        """What is known so far."""
        calls = len(self.runs[0].tiles) if self.runs else None
        work = self.work_of(self.counts, calls) if self.work_of and self.counts else {}
        return Measured(
            self.scenario.name,
            self.subject.name,
            self.counts,
            tuple(self.runs),
            self.memory,
            work,
            self.skipped if self.runs or self.skipped else "interrupted before its first run",
        )

    def warm_up(self, method: Method) -> None:
        """A run that is not timed, and watched for memory. What cannot be asked is skipped from now on."""
        if self.skipped:
            return
        try:
            with MemoryWatch(method.gpu_memory, self.subject.resident) as watch:
                asked = self.subject.ask(
                    self.scenario, self.inputs, lambda: watch.follow(StageClock(method.now))
                )
        except OneVisionError as error:
            self.skipped = error.message
            return
        self.counts, self.memory = asked.counts, watch.memory

    def run(self, method: Method) -> None:
        """A run that is timed. An engine that fails keeps the runs that it has, and is asked no more."""
        if self.skipped:
            return
        pace = method.gauge() if method.gauge else None
        before = method.joules()
        try:
            asked = self.subject.ask(self.scenario, self.inputs, partial(StageClock, method.now))
        except OneVisionError as error:
            self.skipped = error.message
            return
        joules = energy_between(before, method.joules())
        self.runs.append(_run_of(asked, pace, joules))


class Trials:
    """Scenarios on engines. ``measured`` may be read at any time: an interrupted run keeps what it has."""

    def __init__(self, pairs: Iterable[Trial], method: Method) -> None:
        self.trials = tuple(pairs)
        self._method = method

    @property
    def measured(self) -> tuple[Measured, ...]:
        """All of them, as far as they are."""
        return tuple(trial.measured for trial in self.trials)

    def run(self, on_run: Callable[[Trial, int], object] = lambda *_: None) -> None:
        """Measure.

        Args:
            on_run: Called before each run with its trial and round, 0 for the first, which warms up.
        """
        method = self._method
        for trial in self.trials:
            on_run(trial, 0)
            trial.warm_up(method)
        left = [trial for trial in self.trials if not trial.skipped]
        started = now = method.now()
        for number in range(1, method.runs + 1):
            before, now = now, method.now()
            takes = now - before
            late = method.seconds is not None and now - started + takes > method.seconds
            if late and number > LEAST_RUNS:
                return
            for trial in left:
                on_run(trial, number)
                trial.run(method)


def _run_of(asked: Asked, pace: float | None, joules: float | None) -> Run:
    laps, times = asked.clock.laps, asked.clock.stages
    prefill: dict[str, float] = {}
    for lap in laps:
        if lap.stage == "prefill" and lap.of:
            prefill[lap.of] = prefill.get(lap.of, 0.0) + lap.ms
    return Run(
        stages={stage: times[stage] for stage in STAGES},
        prefill=prefill,
        tiles=tuple(lap.ms for lap in laps if lap.stage == "encode"),
        tokens=tuple(lap.ms for lap in laps if lap.stage == "decode"),
        ttft=asked.ttft,
        total=asked.total,
        gauge=pace,
        joules=joules,
        output=hashlib.sha256(" ".join(map(str, asked.token_ids)).encode()).hexdigest()[:16],
    )


def make_trials(
    scenario: Scenario,
    subjects: Sequence[Subject],
    folder: Path,
    work_of: Callable[[Counts, int | None], dict[str, Work]] | None = None,
) -> list[Trial]:
    """A trial of each engine on the same inputs, made in ``folder``; skipped where they cannot be made.

    ``work_of`` is of the first.
    """
    inputs, skipped = Inputs(), None
    try:
        inputs = scenario.inputs(folder)
    except ImportError:
        skipped = "videos need PyAV: pip install 'onevision[video]'"
    return [
        Trial(scenario, subject, inputs, None if number else work_of, skipped=skipped)
        for number, subject in enumerate(subjects)
    ]
