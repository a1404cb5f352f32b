"""Comparisons: a result before against one after, and ours against the peers measured beside it.

Both are ratios of medians with a bootstrap interval. Between two results, a stage has changed if the interval
excludes 1 and the ratio exceeds the threshold, and both still hold after the machine's own change, measured
by the gauge, is divided out. If the gauge moved too far for that, a change is inconclusive, and so is every
stage with too few runs. A change that is too small a part of the whole answer does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from onevision.bench.peers import PEERS
from onevision.bench.result import Measured, Result, bootstrap_ratio, median, samples
from onevision.bench.target import OURS
from onevision.errors import UsageError

Verdict = Literal["faster", "slower", "inconclusive", "no difference"]

THRESHOLD = 0.05
#: Smaller changes, as a share of the median total, do not count.
MIN_SHARE = 0.005
#: With fewer runs, an interval says nothing.
MIN_RUNS = 4
#: A larger change of the gauge cannot be divided out: threads that share a core slow down more.
MAX_MACHINE_CHANGE = 1.2

#: Compared with peers, where both have it; an engine that only encodes has only the first.
QUANTITIES = ("encode", "prefill", "ttft", "tpot", "total")
PEAK = "peak"


@dataclass(frozen=True)
class StageRatio:
    """Two medians of a stage, and ``ratio``, the value divided by the base.

    The base is the earlier result or the peer, the value is the later result or ours; milliseconds, or bytes
    for ``peak``, which is read once and has no interval.
    """

    scenario: str
    engine: str
    stage: str
    base: float
    value: float
    ratio: float
    interval: tuple[float, float] | None
    verdict: Verdict = "no difference"


@dataclass(frozen=True)
class BenchComparison:
    """All stages.

    Attributes:
        machine: Ratio of the gauges, above 1 if the machine was slower afterwards.
        threshold: Smallest change of a stage that counts, as a share of it.
        runs: The fewest of a scenario.
        changes: The stages.
    """

    machine: float
    threshold: float
    runs: int
    changes: tuple[StageRatio, ...]

    def ours(self, verdict: Verdict) -> tuple[StageRatio, ...]:
        """Changes of our own stages with this verdict; those of peers are not our fault."""
        return tuple(one for one in self.changes if one.verdict == verdict and one.engine not in PEERS)

    @property
    def regressions(self) -> tuple[StageRatio, ...]:
        """Our stages that became slower."""
        return self.ours("slower")

    @property
    def note(self) -> str:
        """A sentence about the machine's own change."""
        factor, word = (self.machine, "slower") if self.machine >= 1 else (1 / self.machine, "faster")
        allowed = (
            "verdicts allow for that" if factor <= MAX_MACHINE_CHANGE else "too much to judge: repeat it"
        )
        machine = f"the machine was {factor:.2f} x {word} during the second run; {allowed}"
        few = f"; {self.runs} runs are too few to judge, measure {MIN_RUNS} or more"
        return machine + few * (self.runs < MIN_RUNS)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        flags = {"regressed": bool(self.regressions), "inconclusive": bool(self.ours("inconclusive"))}
        return asdict(self) | flags


def compare(before: Result, after: Result, threshold: float = THRESHOLD) -> BenchComparison:
    """Compare the scenarios that both results have.

    Args:
        before: A result.
        after: Another.
        threshold: Smallest change of a stage that counts, as a share of it.

    Raises:
        UsageError: They have no scenario in common.
    """
    theirs = {(one.scenario, one.engine): one for one in after.measured if one.runs}
    pairs = [
        (one, theirs[one.scenario, one.engine])
        for one in before.measured
        if one.runs and (one.scenario, one.engine) in theirs
    ]
    if not pairs:
        raise UsageError("the two results have no scenario in common", hint="measure the same scenarios")
    old, new = (_gauges(side) for side in zip(*pairs, strict=True))
    machine = float(np.median(new) / np.median(old)) if old and new else 1.0
    changes = [_judge(one, *pair, machine, threshold) for pair in pairs for one in _ratios(*pair)]
    runs = min(len(one.runs) for pair in pairs for one in pair)
    return BenchComparison(machine, threshold, runs, tuple(changes))


def _gauges(measured: Sequence[Measured]) -> list[float]:
    return [run.gauge_ms for one in measured for run in one.runs if run.gauge_ms is not None]


def _judge(
    change: StageRatio, before: Measured, after: Measured, machine: float, threshold: float
) -> StageRatio:
    """The change with a verdict that holds with the machine's own change divided out and without."""
    low, high = change.interval or (1.0, 1.0)
    slower, faster = min(1.0, 1 / machine), max(1.0, 1 / machine)
    verdict: Verdict = "no difference"
    if low * slower > 1 and change.ratio * slower > 1 + threshold:
        verdict = "slower"
    elif high * faster < 1 and change.ratio * faster < 1 / (1 + threshold):
        verdict = "faster"
    # Per token it is a part of a token, not of the answer.
    smallest = 0.0 if change.stage == "tpot" else MIN_SHARE * (median(before, "total") or 0.0)
    if min(len(samples(one)[change.stage]) for one in (before, after)) < MIN_RUNS:
        return replace(change, verdict="inconclusive")
    if verdict == "no difference" or abs(change.value - change.base) < smallest:
        return change
    judged = 1 / MAX_MACHINE_CHANGE <= machine <= MAX_MACHINE_CHANGE
    return replace(change, verdict=verdict if judged else "inconclusive")


def _ratios(base: Measured, ours: Measured, stages: Sequence[str] | None = None) -> Iterator[StageRatio]:
    """Ratios of the stages that both have."""
    old, new = samples(base), samples(ours)
    for stage in old if stages is None else stages:
        if (was := median(base, stage)) and (value := median(ours, stage)):
            interval = bootstrap_ratio(old[stage], new[stage])
            yield StageRatio(base.scenario, base.engine, stage, was, value, value / was, interval)


def ratios(result: Result) -> tuple[StageRatio, ...]:
    """Ours against each peer, where both did the same work."""
    found: list[StageRatio] = []
    for ours, peer in _pairs(result):
        if _mismatch(ours, peer):
            continue
        answers = peer.counts is not None and peer.counts.completion_tokens > 0
        found += _ratios(peer, ours, QUANTITIES if answers else QUANTITIES[:1])
        if answers and ours.memory and peer.memory:
            base, value = peer.memory.peak, ours.memory.peak
            found.append(StageRatio(ours.scenario, peer.engine, PEAK, base, value, value / base, None))
    return tuple(found)


def not_compared(result: Result) -> tuple[str, ...]:
    """Peers that did other work, a sentence each."""
    found = ((peer, _mismatch(ours, peer)) for ours, peer in _pairs(result))
    return tuple(f"{peer.scenario} {peer.engine}: not compared, {why}" for peer, why in found if why)


def _pairs(result: Result) -> Iterator[tuple[Measured, Measured]]:
    ours = {one.scenario: one for one in result.measured if one.engine == OURS and one.runs}
    for peer in result.measured:
        if peer.engine != OURS and peer.runs and peer.scenario in ours:
            yield ours[peer.scenario], peer


def _mismatch(ours: Measured, peer: Measured) -> str | None:
    """Difference in the work of the two; None if it is the same."""
    mine, theirs = ours.counts, peer.counts
    if mine is None or theirs is None:
        return "its tokens were not counted"
    if mine.prompt_tokens != theirs.prompt_tokens:
        return f"its prompt has {theirs.prompt_tokens:,} tokens, and ours has {mine.prompt_tokens:,}"
    if theirs.completion_tokens not in {0, mine.completion_tokens}:
        return f"its answer has {theirs.completion_tokens} tokens, and ours has {mine.completion_tokens}"
    return None
