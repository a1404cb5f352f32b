"""Numbers that say what many runs were like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


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
