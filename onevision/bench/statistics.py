"""Statistics over the runs of one scenario. All times are in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onevision.bench.result import Measured, Run
from onevision.runtime.clock import STAGES

#: Bootstrap resamples, and the probability outside an interval: dozens of stages are compared.
DRAWS, LEFT_OUT = 4000, 0.002


@dataclass(frozen=True)
class Summary:
    """Summary of ``n`` values in their unit; ``sd`` is the sample's, 0 for one value."""

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
    """Times of each run by quantity: stages that were entered, ``ttft``, ``tpot``, ``total``."""
    runs = measured.runs
    found: dict[str, list[float]] = {
        **{stage: [run.stages_ms[stage] for run in runs if stage in run.stages_ms] for stage in STAGES},
        "ttft": [run.ttft_ms for run in runs if run.ttft_ms is not None],
        "tpot": [run.tpot for run in runs if run.tpot is not None],
        "total": [run.total_ms for run in runs],
    }
    return {name: values for name, values in found.items() if any(values)}


def details(measured: Measured) -> dict[str, list[float]]:
    """Times of parts of stages, all runs together: tiles, tokens, and prefill of images and text."""
    found: dict[str, list[float]] = {}
    for run in measured.runs:
        parts = {f"prefill {part}": (ms,) for part, ms in run.prefill_ms.items()}
        for name, times in ({"tile": run.tiles_ms, "token": run.tokens_ms} | parts).items():
            found.setdefault(name, []).extend(times)
    return {name: values for name, values in found.items() if values}


def median(measured: Measured, quantity: str) -> float | None:
    """Median of a quantity of :func:`samples`; None if there is none."""
    values = samples(measured).get(quantity)
    return float(np.median(values)) if values else None


def typical(measured: Measured) -> Run:
    """Run of the median total, the faster of two: its stages add up, medians of stages do not."""
    runs = sorted(measured.runs, key=lambda run: run.total_ms)
    return runs[(len(runs) - 1) // 2]


def unaccounted(run: Run) -> float:
    """Share of a run outside all stages, 0 to 1."""
    return 1 - sum(run.stages_ms.values()) / run.total_ms if run.total_ms else 0.0


def drifted(measured: Measured) -> bool:
    """Whether runs gave different tokens."""
    return len({run.output for run in measured.runs}) > 1


def bootstrap_ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Interval of the ratio of medians, ``after`` to ``before``; the same for the same numbers."""
    generator = np.random.default_rng(0)
    old, new = (
        np.median(generator.choice(values, (DRAWS, len(values))), axis=1) for values in (before, after)
    )
    low, high = np.quantile(new / old, (LEFT_OUT / 2, 1 - LEFT_OUT / 2)).tolist()
    return low, high
