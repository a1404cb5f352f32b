"""Intervals of 95 % for shares and their differences, and an exact test. Formulas alone: nothing is drawn."""

from __future__ import annotations

from math import comb, sqrt
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Interval = tuple[float, float]

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # 1.96


def wilson(right: int, n: int) -> Interval:
    """Wilson's score interval of a share: ``right`` of ``n``. It never leaves 0 to 1, nor has no width."""
    share = right / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    # At the ends it is exact, and rounding is not.
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def mean_interval(means: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of independent estimates, from the interval of each.

    The distances to the lower limits add up as standard errors do, and so do those to the upper ones
    (MOVER, Zou and Donner 2008): ``mean - sqrt(Σ (mean_i - lower_i)²) / k``. Where the intervals are normal
    approximations this is the stratified normal approximation, ``Z · sqrt(Σ variance_i) / k``; with Wilson's
    it is right near 0 and 1 too, and of a single estimate it is that estimate's own.
    """
    middle, count = fmean(means), len(means)
    pairs = list(zip(means, intervals, strict=True))
    below = sqrt(sum((mean - low) ** 2 for mean, (low, _) in pairs)) / count
    above = sqrt(sum((high - mean) ** 2 for mean, (_, high) in pairs)) / count
    return middle - below, middle + above


def paired_interval(wins: int, losses: int, n: int) -> Interval:
    """Interval of ``(wins - losses) / n``, the difference of two shares of the same ``n`` samples.

    The normal approximation with half a sample added to each of the four cells (Agresti and Min 2005): two
    models that have not differed yet may still do so, and a single win proves nothing.
    """
    middle = (wins - losses) / (n + 2)
    half = Z * sqrt((wins + losses + 1) / (n + 2) - middle**2) / sqrt(n + 2)
    return max(-1.0, middle - half), min(1.0, middle + half)


def sign_test(wins: int, losses: int) -> float:
    """Exact one-sided p: so many losses or more, were wins as likely as losses."""
    n = wins + losses
    p: float = sum(comb(n, k) for k in range(losses, n + 1)) / 2**n
    return p


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p of McNemar's test: a split at least as uneven, were wins as likely as losses."""
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1))
    p: float = 2 * tail / 2**n
    return min(1.0, p)
