"""Measuring: a warm-up round that is watched for memory, then timed rounds.

In: targets and scenarios. Out: :class:`~onevision.bench.result.Measured`, one per pair. All pairs take turns,
round after round: what else the machine does hits all of them alike. Nothing is sampled in timed runs.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from onevision.bench.machine import energy, energy_between
from onevision.bench.result import Measured, Run
from onevision.bench.scenarios import Scenario
from onevision.bench.target import Target, TimedAnswer
from onevision.errors import OneVisionError
from onevision.runtime.clock import StageClock
from onevision.runtime.messages import Message

#: Rounds that are always run: one has no deviation.
MIN_ROUNDS = 2
_NOT_RUN = "interrupted before its first run"


@dataclass(frozen=True)
class Method:
    """Number of runs, time budget, and instruments."""

    runs: int = 5  # of each pair
    seconds: float | None = None  # no round starts that would end later than this after the first
    now: Callable[[], float] = time.perf_counter
    gauge: Callable[[], float] | None = None  # milliseconds of a fixed piece of work, before each run
    joules: Callable[[], float | None] = energy
    gpu_memory: Callable[[], int | None] | None = None  # bytes in use


class Trial:
    """One scenario on one target; ``measured`` is what is known so far."""

    def __init__(
        self, scenario: Scenario, target: Target, messages: Sequence[Message], skipped: str | None = None
    ) -> None:
        self.scenario, self.target, self._messages = scenario, target, messages
        self.measured = Measured(scenario.name, target.name, None, (), None, {}, skipped or _NOT_RUN)
        self.failed = skipped is not None

    def warm_up(self, method: Method) -> None:
        """Answer once, untimed and watched for memory. A target that cannot is skipped from now on."""
        if self.failed:
            return
        try:
            answer, memory = self.target.ask_watched(
                self.scenario, self._messages, method.now, method.gpu_memory
            )
        except OneVisionError as error:
            self._fail(error)
        else:
            self.measured = replace(self.measured, counts=answer.counts, memory=memory)

    def run(self, method: Method) -> None:
        """Answer once, timed. A target that fails keeps its runs and is skipped from now on."""
        if self.failed:
            return
        gauge_ms = method.gauge() if method.gauge else None
        before = method.joules()
        try:
            answer = self.target.ask(self.scenario, self._messages, partial(StageClock, method.now))
        except OneVisionError as error:
            self._fail(error)
            return
        run = _run_of(answer, gauge_ms, energy_between(before, method.joules()))
        self.measured = replace(self.measured, runs=(*self.measured.runs, run), skipped=None)

    def _fail(self, error: OneVisionError) -> None:
        self.failed, self.measured = True, replace(self.measured, skipped=error.message)


def run_rounds(
    trials: Sequence[Trial], method: Method, on_run: Callable[[Trial, int], object] = lambda *_: None
) -> None:
    """Measure trials in turn; an interrupt keeps their runs so far.

    Args:
        trials: Scenarios on targets.
        method: Number of runs, time budget, and instruments.
        on_run: Called before each run with its trial and round, 0 for the warm-up.
    """
    for trial in trials:
        on_run(trial, 0)
        trial.warm_up(method)
    ready = [trial for trial in trials if not trial.failed]
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
    prefill: dict[str, float] = defaultdict(float)
    for lap in answer.laps:
        if lap.stage == "prefill" and lap.of:
            prefill[lap.of] += lap.ms
    return Run(
        stages_ms=answer.stages,
        prefill_ms=dict(prefill),
        tiles_ms=tuple(lap.ms for lap in answer.laps if lap.stage == "encode"),
        tokens_ms=tuple(lap.ms for lap in answer.laps if lap.stage == "decode"),
        ttft_ms=answer.ttft,
        total_ms=answer.total,
        gauge_ms=gauge_ms,
        joules=joules,
        output=hashlib.sha256(" ".join(map(str, answer.token_ids)).encode()).hexdigest()[:16],
    )


def make_trials(scenario: Scenario, targets: Sequence[Target], folder: Path) -> list[Trial]:
    """A trial per target with the same inputs, made in ``folder``."""
    messages, skipped = list[Message](), None
    try:
        messages = scenario.messages(folder)
    except ImportError:
        skipped = "videos need PyAV: pip install 'onevision[video]'"
    return [Trial(scenario, target, messages, skipped) for target in targets]
