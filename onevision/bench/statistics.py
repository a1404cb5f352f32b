"""Numbers that say what many runs were like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onevision.runtime.answer import STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.bench.result import Measured

#: Of the runs' medians, drawn anew.
DRAWS = 4000
#: Both ends together of what an interval leaves out. Dozens of stages are looked at, so it is strict.
LEFT_OUT = 0.002


@dataclass(frozen=True)
class Summary:
    """Of ``n`` values, in their unit. ``sd`` is that of the sample; of one value it is 0."""

    n: int
    min: float
    median: float
    p90: float
    p99: float
    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        """None without values."""
        if not values:
            return None
        median, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99)).tolist()
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(len(values), min(values), median, p90, p99, float(np.mean(values)), sd)


def samples(measured: Measured) -> dict[str, list[float]]:
    """Milliseconds of each run by what was timed: stages that were entered, ``ttft``, ``tpot``, ``total``."""
    found: dict[str, list[float]] = {
        stage: [run.stages[stage] for run in measured.runs if stage in run.stages] for stage in STAGES
    }
    found["ttft"] = [run.ttft for run in measured.runs if run.ttft is not None]
    found["tpot"] = [run.tpot for run in measured.runs if run.tpot is not None]
    found["total"] = [run.total for run in measured.runs]
    return {name: values for name, values in found.items() if any(values)}


def bootstrap_ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Interval of the ratio of the medians, ``after`` to ``before``. Always the same for the same numbers."""
    generator = np.random.default_rng(0)
    old, new = (
        np.median(generator.choice(values, (DRAWS, len(values))), axis=1) for values in (before, after)
    )
    low, high = np.quantile(new / old, (LEFT_OUT / 2, 1 - LEFT_OUT / 2)).tolist()
    return low, high
