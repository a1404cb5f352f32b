"""How runs are made and counted, on a clock that only moves where a test moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision.bench.compare import compare
from onevision.bench.method import Method, Trial, run_rounds
from onevision.bench.report import drifted, unaccounted
from onevision.bench.result import Counts
from onevision.bench.scenarios import LONG, QUICK, SCENARIOS, SHORT, Scenario, choose
from onevision.bench.target import MemoryWatch, Target, TimedAnswer
from onevision.errors import PromptError, UsageError
from onevision.runtime.clock import Lap, StageClock
from tests.bench.made import TYPICAL, made_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.bench.result import Measured


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Fake(Target):
    """An engine whose stages take as long as they are told."""

    def __init__(self, clock: Clock, seed: int = 0, **slower: float) -> None:
        self.name = "fake"
        self.asked: list[str] = []
        self._clock, self._slower = clock, slower
        self._random = np.random.default_rng(seed)

    def ask(
        self, scenario: Scenario, messages: object, new_clock: Callable[[], StageClock] = StageClock
    ) -> TimedAnswer:
        if scenario.name == "impossible":
            raise PromptError("the context cannot hold it")
        if scenario.name == "interrupted" and len(self.asked) > 3:
            raise KeyboardInterrupt
        self.asked.append(scenario.name)
        stages = new_clock()
        for stage, ms in TYPICAL.items():
            with stages.stage(stage):
                noise = float(np.exp(self._random.normal(0, 0.01)))
                self._clock.now += ms / 1e3 * self._slower.get(stage, 1.0) * noise
        elapsed = stages.elapsed()
        return TimedAnswer(Counts(10, 5, 2, 1), (1, 2), tuple(stages.laps), elapsed, elapsed)


class Session:
    """Scenarios on a fake engine."""

    def __init__(
        self, fake: Fake, clock: Clock, *names: str, runs: int = 5, seconds: float | None = None
    ) -> None:
        self._trials = [Trial(Scenario(name), fake, []) for name in names]
        self._method = Method(runs, seconds, now=clock, joules=lambda: None)

    def run(self) -> None:
        run_rounds(self._trials, self._method)

    @property
    def measured(self) -> tuple[Measured, ...]:
        return tuple(trial.measured for trial in self._trials)


def test_scenarios_take_turns_and_the_first_round_does_not_count():
    clock = Clock()
    fake = Fake(clock)
    session = Session(fake, clock, "a", "b", runs=3)
    session.run()
    assert fake.asked == ["a", "b"] * 4
    assert [len(one.runs) for one in session.measured] == [3, 3]
    for run in session.measured[0].runs:
        assert abs(unaccounted(run)) < 1e-9
    assert not drifted(session.measured[0])


def test_no_round_begins_that_would_end_too_late():
    clock = Clock()
    session = Session(Fake(clock), clock, "a", runs=50, seconds=3.5)
    session.run()
    assert len(session.measured[0].runs) == 3
    session = Session(Fake(clock), clock, "a", runs=50, seconds=0.1)
    session.run()
    assert len(session.measured[0].runs) == 2


def test_what_cannot_be_asked_is_skipped_with_the_reason():
    clock = Clock()
    session = Session(Fake(clock), clock, "impossible", "a")
    session.run()
    first, second = session.measured
    assert (first.skipped, first.runs, first.counts) == ("the context cannot hold it", (), None)
    assert len(second.runs) == 5


def test_an_interrupted_session_keeps_its_runs():
    clock = Clock()
    session = Session(Fake(clock), clock, "a", "interrupted")
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert [len(one.runs) for one in session.measured] == [2, 1]


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode"])
def test_a_slower_stage_is_found_through_the_stage_clock(stage: str):
    results = []
    for seed, slower in enumerate(({}, {stage: 1.1})):
        clock = Clock()
        session = Session(Fake(clock, seed, **slower), clock, "a")
        session.run()
        results.append(made_result(*session.measured))
    found = {one.stage for one in compare(*results).regressions}
    assert stage in found
    assert found <= {stage, "ttft", "tpot", "total"}


def test_laps_add_up_to_their_stage():
    clock = Clock()
    stages = StageClock(clock)
    with stages.stage("encode"):
        for _ in range(2):
            clock.now += 1.0
            stages.lap()
        clock.now += 0.5
    clock.now += 2.0
    with stages.stage("prefill"):
        clock.now += 0.25
        stages.lap("text")
    assert stages.laps == [Lap("encode", 1000.0), Lap("encode", 1500.0), Lap("prefill", 250.0, "text")]
    assert (stages.stages["encode"], stages.stages["decode"]) == (2500.0, 0)
    stages.exclude(2000.0)
    assert stages.elapsed() == 2750.0


def test_memory_is_counted_to_the_stage_that_is_entered():
    sizes = iter([10, 30, 20])
    watch = MemoryWatch(resident=lambda: next(sizes))
    stages = watch.follow(StageClock())
    watch.sample()
    with stages.stage("encode"):
        watch.sample()
        watch.sample()
    assert (watch.memory.peak, watch.memory.stages, watch.memory.gpu_peak) == (30, {"encode": 30}, None)


def test_names_of_scenarios():
    assert [one.name for one in choose((), (), quick=True)] == list(QUICK)
    assert len(choose((), (), quick=False)) == len(SCENARIOS) == 19
    assert (SCENARIOS["photo-12mp"].answer, SCENARIOS["photo-12mp-long"].answer) == (SHORT, LONG)
    assert [one.name for one in choose(["text", "text"], (), quick=False)] == ["text"]
    with pytest.raises(UsageError, match="unknown scenario 'photo'"):
        choose(["photo"], (), quick=False)
    with pytest.raises(UsageError, match="--quick"):
        choose(["text"], (), quick=True)
