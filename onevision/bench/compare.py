"""Comparisons: a result before against one after, and ours against the peers measured beside it.

Both are ratios of medians with a bootstrap interval. Between two results, a stage has changed if the interval
excludes 1 and the ratio exceeds the threshold, and both still hold after the machine's own change, measured
by the gauge, is divided out. If the gauge moved too far to divide out, a change is inconclusive. A change
that is too small a part of the whole answer does not count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onevision.bench.peers import PEERS
from onevision.bench.statistics import bootstrap_ratio, median, samples
from onevision.bench.target import OURS
from onevision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onevision.bench.result import Measured, Result

Verdict = Literal["faster", "slower", "inconclusive", "no difference"]

THRESHOLD = 0.05
#: Smaller changes, as a share of the median total, do not count.
MIN_SHARE = 0.005
#: With fewer runs, an interval says nothing.
MIN_RUNS = 4
#: A gauge that moved by a larger factor cannot be divided out: threads that share a core slow down more.
MAX_MACHINE_CHANGE = 1.2

#: Compared with peers, where both have it; an engine that only encodes has only the first.
QUANTITIES = ("encode", "prefill", "ttft", "tpot", "total")
PEAK = "peak"


@dataclass(frozen=True)
class StageChange:
    """One stage of one scenario: median milliseconds before and after, and their ratio."""

    scenario: str
    engine: str
    stage: str
    before: float
    after: float
    ratio: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class BenchComparison:
    """All stages. ``machine`` is the ratio of the gauges, above 1 if the machine was slower afterwards."""

    machine: float
    threshold: float
    changes: tuple[StageChange, ...]

    def ours(self, verdict: Verdict) -> tuple[StageChange, ...]:
        """Changes of our own stages with this verdict; those of peers are not our fault."""
        return tuple(one for one in self.changes if one.verdict == verdict and one.engine not in PEERS)

    @property
    def regressions(self) -> tuple[StageChange, ...]:
        """Our stages that became slower."""
        return self.ours("slower")

    @property
    def note(self) -> str:
        """A sentence about the machine's own change."""
        slower = self.machine >= 1
        factor, word = (self.machine, "slower") if slower else (1 / self.machine, "faster")
        sure = 1 / MAX_MACHINE_CHANGE <= self.machine <= MAX_MACHINE_CHANGE
        allowed = "verdicts allow for that" if sure else "too much to tell changes from it: measure again"
        return f"the machine was {factor:.2f} x {word} during the second run; {allowed}"

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
    machine = _machine_change([old for old, _ in pairs], [new for _, new in pairs])
    changes = tuple(one for old, new in pairs for one in _stages(old, new, machine, threshold))
    return BenchComparison(machine, threshold, changes)


def _machine_change(before: Sequence[Measured], after: Sequence[Measured]) -> float:
    """Ratio of the gauge's medians over all runs; 1 if it was not read."""
    old, new = (
        [run.gauge_ms for one in side for run in one.runs if run.gauge_ms is not None]
        for side in (before, after)
    )
    return float(np.median(new) / np.median(old)) if old and new else 1.0


def _stages(before: Measured, after: Measured, machine: float, threshold: float) -> Iterator[StageChange]:
    old, new = samples(before), samples(after)
    smallest = MIN_SHARE * float(np.median(old["total"]))
    for stage in (name for name in old if name in new):
        was, is_now = float(np.median(old[stage])), float(np.median(new[stage]))
        if was <= 0:
            continue
        interval = bootstrap_ratio(old[stage], new[stage])
        verdict = _verdict(is_now / was, interval, machine, threshold)
        # Per token it is a part of a token, not of the answer.
        small = stage != "tpot" and abs(is_now - was) < smallest
        if small or min(len(old[stage]), len(new[stage])) < MIN_RUNS:
            verdict = "no difference"
        yield StageChange(
            before.scenario, before.engine, stage, was, is_now, is_now / was, interval, verdict
        )


def _verdict(ratio: float, interval: tuple[float, float], machine: float, threshold: float) -> Verdict:
    """Verdict that holds with the machine's change divided out and without."""
    low, high = interval
    slower, faster = min(1.0, 1 / machine), max(1.0, 1 / machine)
    sure = 1 / MAX_MACHINE_CHANGE <= machine <= MAX_MACHINE_CHANGE
    if low * slower > 1 and ratio * slower > 1 + threshold:
        return "slower" if sure else "inconclusive"
    if high * faster < 1 and ratio * faster < 1 / (1 + threshold):
        return "faster" if sure else "inconclusive"
    return "no difference"


@dataclass(frozen=True)
class PeerRatio:
    """Ours divided by a peer's: medians in milliseconds, or bytes (``peak``, read once: no interval)."""

    scenario: str
    peer: str
    quantity: str
    ours: float
    theirs: float
    ratio: float
    interval: tuple[float, float] | None


def ratios(result: Result) -> tuple[PeerRatio, ...]:
    """Ours against each peer, where both did the same work."""
    pairs = ((ours, peer) for ours, peer in _pairs(result) if not _mismatch(ours, peer))
    return tuple(one for ours, peer in pairs for one in _ratios(ours, peer))


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


def _ratios(ours: Measured, peer: Measured) -> Iterator[PeerRatio]:
    answers = peer.counts is not None and peer.counts.completion_tokens > 0
    for quantity in QUANTITIES if answers else QUANTITIES[:1]:
        mine, theirs = median(ours, quantity), median(peer, quantity)
        if mine and theirs:
            interval = bootstrap_ratio(samples(peer)[quantity], samples(ours)[quantity])
            yield PeerRatio(ours.scenario, peer.engine, quantity, mine, theirs, mine / theirs, interval)
    if answers and ours.memory and peer.memory:
        mine, theirs = ours.memory.peak, peer.memory.peak
        yield PeerRatio(ours.scenario, peer.engine, PEAK, mine, theirs, mine / theirs, None)
