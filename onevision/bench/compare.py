"""Two results: which stages became faster or slower, and which differences are only noise.

In: results before and after. Out: a verdict for each stage that both have.

The ratio of two stages is that of their medians, with a bootstrap interval. A stage is called different if
the interval lies beyond 1, the ratio beyond the threshold, and both still do after the machine's own change
between the two measurements, which the gauge tells, is taken out. A difference that is too small a part of
the whole answer to matter is none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onevision.bench.peers import PEERS
from onevision.bench.statistics import bootstrap_ratio, samples
from onevision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.bench.result import Measured, Result

Verdict = Literal["faster", "slower", "no difference"]

THRESHOLD = 0.05
#: Of the median total: a smaller difference is none, however sure it is.
LEAST_SHARE = 0.005
#: With fewer runs, an interval says nothing.
LEAST_RUNS = 4


@dataclass(frozen=True)
class Difference:
    """One stage of one scenario: milliseconds before and after, and their ratio."""

    scenario: str
    subject: str
    stage: str
    before: float
    after: float
    ratio: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All stages. ``machine`` is how much slower the gauge was afterwards, 1 for the same."""

    machine: float
    threshold: float
    differences: tuple[Difference, ...]

    @property
    def regressions(self) -> tuple[Difference, ...]:
        """What became slower, of ours: a peer's changes are not our fault."""
        return tuple(one for one in self.differences if one.verdict == "slower" and one.subject not in PEERS)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"regressed": bool(self.regressions)}


def compare(before: Result, after: Result, threshold: float = THRESHOLD) -> Comparison:
    """Compare what both have measured.

    Args:
        before: A result.
        after: Another one.
        threshold: Share of a stage by which it has to change at least.

    Raises:
        UsageError: They have nothing in common.
    """
    theirs = {(one.scenario, one.subject): one for one in after.measured if one.runs}
    pairs = [
        (one, theirs[one.scenario, one.subject])
        for one in before.measured
        if one.runs and (one.scenario, one.subject) in theirs
    ]
    if not pairs:
        raise UsageError("the two results have no scenario in common", hint="measure the same scenarios")
    machine = _machine([old for old, _ in pairs], [new for _, new in pairs])
    differences = [one for old, new in pairs for one in _stages(old, new, machine, threshold)]
    return Comparison(machine, threshold, tuple(differences))


def _machine(before: Sequence[Measured], after: Sequence[Measured]) -> float:
    """Ratio of the gauge's medians, over all runs; 1 where it was not read."""
    old, new = (
        [run.gauge for one in side for run in one.runs if run.gauge is not None] for side in (before, after)
    )
    return float(np.median(new) / np.median(old)) if old and new else 1.0


def _stages(before: Measured, after: Measured, machine: float, threshold: float) -> list[Difference]:
    old, new = samples(before), samples(after)
    least = LEAST_SHARE * float(np.median(old["total"]))
    found = []
    for stage in (name for name in old if name in new):
        was, became = float(np.median(old[stage])), float(np.median(new[stage]))
        if was <= 0:
            continue
        low, high = bootstrap_ratio(old[stage], new[stage])
        verdict = _verdict(became / was, (low, high), machine, threshold)
        # Per token it is a part of a token, not of the answer.
        small = stage != "tpot" and abs(became - was) < least
        enough = min(len(old[stage]), len(new[stage])) >= LEAST_RUNS
        found.append(
            Difference(
                before.scenario,
                before.subject,
                stage,
                was,
                became,
                became / was,
                (low, high),
                verdict if enough and not small else "no difference",
            )
        )
    return found


def _verdict(ratio: float, interval: tuple[float, float], machine: float, threshold: float) -> Verdict:
    """What holds whichever way the machine's own change is counted."""
    slower = min(1.0, 1 / machine)
    faster = max(1.0, 1 / machine)
    low, high = interval
    if low * slower > 1 and ratio * slower > 1 + threshold:
        return "slower"
    if high * faster < 1 and ratio * faster < 1 / (1 + threshold):
        return "faster"
    return "no difference"
