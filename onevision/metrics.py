"""Formulas: how close two arrays are; 95 % intervals of shares and their differences, and exact tests."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist, fmean

import numpy as np
import numpy.typing as npt

_SMALLEST = 1e-30  # of a norm, so that zeros are no division by zero

Interval = tuple[float, float]

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # 1.96


def relative_error(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    """Euclidean norm of the difference over that of ``theirs``; both have the same shape."""
    expected = theirs.astype(np.float64)
    return float(np.linalg.norm(ours - expected) / max(float(np.linalg.norm(expected)), _SMALLEST))


def cosine(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    """Cosine of the angle between two arrays of the same shape, each taken as one vector."""
    a, b = ours.ravel().astype(np.float64), theirs.ravel().astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), _SMALLEST))


def wilson(right: int, n: int) -> Interval:
    """Wilson's score interval of a share: ``right`` of ``n``. It stays within 0 to 1, never of width 0."""
    share = right / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    # Exact at the ends, without rounding.
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def mean_interval(means: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of independent estimates, from the interval of each.

    Distances to the lower and to the upper limits are combined like standard errors (MOVER, Zou and Donner
    2008): ``mean - sqrt(Σ (mean_i - lower_i)²) / k``. For normal approximations this is the stratified one,
    ``Z · sqrt(Σ variance_i) / k``; with Wilson's intervals it also holds near 0 and 1.

    Args:
        means: The estimates.
        intervals: Their intervals, in the same order.
    """
    middle, count = fmean(means), len(means)
    pairs = list(zip(means, intervals, strict=True))
    below = sqrt(sum((mean - low) ** 2 for mean, (low, _) in pairs)) / count
    above = sqrt(sum((high - mean) ** 2 for mean, (_, high) in pairs)) / count
    return middle - below, middle + above


def paired_interval(wins: int, losses: int, n: int) -> Interval:
    """Interval of ``(wins - losses) / n``, the difference of two shares of the same ``n`` samples.

    Normal approximation with half a sample added to each of the four cells (Agresti and Min 2005), so that
    models without a difference so far still get a width.

    Args:
        wins: Samples that only ours answered right.
        losses: Samples that only the other answered right.
        n: All samples.
    """
    middle = (wins - losses) / (n + 2)
    half = Z * sqrt((wins + losses + 1) / (n + 2) - middle**2) / sqrt(n + 2)
    return max(-1.0, middle - half), min(1.0, middle + half)


def sign_test(wins: int, losses: int) -> float:
    """Exact one-sided p: probability of at least so many losses, if wins are as likely as losses."""
    n = wins + losses
    p: float = sum(comb(n, k) for k in range(losses, n + 1)) / 2**n
    return p


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p of McNemar's test: a split at least this uneven, if wins are as likely as losses."""
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1))
    p: float = 2 * tail / 2**n
    return min(1.0, p)
