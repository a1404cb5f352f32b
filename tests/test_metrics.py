"""Intervals against published values, properties, and how often they hold what they should."""

from __future__ import annotations

from math import sqrt
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onevision.metrics import Z, mcnemar, mean_interval, paired_interval, sign_test, wilson


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(counts):
    right, n = counts
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert high > low


def test_mean_of_one_is_its_own_interval():
    assert mean_interval([0.3], [(0.25, 0.4)]) == pytest.approx((0.25, 0.4))


def test_mean_of_normal_intervals_is_the_stratified_approximation():
    means, errors = [0.2, 0.5, 0.9], [0.05, 0.02, 0.03]
    intervals = [(mean - Z * error, mean + Z * error) for mean, error in zip(means, errors, strict=True)]
    half = Z * sqrt(sum(error**2 for error in errors)) / 3
    assert mean_interval(means, intervals) == pytest.approx((fmean(means) - half, fmean(means) + half))


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (0.02, 0.01, 0.05), (0.1, 0.9, 0.99)])
@pytest.mark.parametrize(("n", "least"), [(10, 0.86), (100, 0.93)])
def test_mean_interval_holds_the_truth(shares, n, least):
    """In about 95 of 100 runs. Of 30 questions that are hardly ever answered rightly the counts are so few
    that it is 87, where the plain normal approximation holds the truth in 55.
    """
    counts = np.random.default_rng(0).binomial(n, shares, (1000, len(shares))).tolist()
    held = 0
    for right in counts:
        low, high = mean_interval([k / n for k in right], [wilson(k, n) for k in right])
        assert 0 <= low <= high <= 1
        held += low <= fmean(shares) <= high
    assert held / len(counts) > least


@pytest.mark.parametrize(("win", "lose"), [(0.1, 0.1), (0.3, 0.05), (0.01, 0.0)])
def test_paired_interval_holds_the_truth(win, lose):
    n = 60
    counts = np.random.default_rng(0).multinomial(n, (win, lose, 1 - win - lose), 1000).tolist()
    held = 0
    for wins, losses, _ in counts:
        low, high = paired_interval(wins, losses, n)
        held += low <= win - lose <= high
    assert held / len(counts) > 0.93


def test_paired_interval_of_runs_that_never_differ():
    low, high = paired_interval(0, 0, 100)
    assert low == -high
    assert 0 < high < 0.03


def test_one_win_proves_nothing():
    assert paired_interval(1, 0, 1) == (pytest.approx(1 / 3 - Z * sqrt(5 / 27)), 1.0)
    low, high = mean_interval([1.0, 1.0], [paired_interval(1, 0, 1)] * 2)
    assert low < 0 < high


# Two-sided binomial tails by hand: 2 · (1 + 12 + 66) / 2¹², 2 · (1 + 9) / 2⁹, 2 / 2¹⁰.
@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(10, 2, 158 / 4096), (1, 8, 20 / 512), (10, 0, 2 / 1024), (5, 5, 1.0), (0, 0, 1.0), (1, 0, 1.0)],
)
def test_mcnemar(wins, losses, p):
    assert mcnemar(wins, losses) == p
    assert mcnemar(losses, wins) == p


def test_mcnemar_of_many():
    assert 0 < mcnemar(1800, 800) < 1e-80


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (3, 0, 1.0), (0, 3, 1 / 8), (1, 2, 4 / 8), (1, 9, 11 / 1024)]
)
def test_sign_test(wins, losses, p):
    assert sign_test(wins, losses) == p
