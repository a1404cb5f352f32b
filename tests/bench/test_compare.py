"""What is called a difference, and what is only noise. Times are made up: no test depends on a clock."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision.bench.compare import compare
from onevision.bench.result import bootstrap_ratio
from onevision.errors import UsageError
from tests.bench.made import made_measured, made_result, noisy_runs

if TYPE_CHECKING:
    from onevision.bench.result import Result


def result(seed: int, **options: float) -> Result:
    return made_result(made_measured(noisy_runs(np.random.default_rng(seed), **options)))


def verdicts(before: Result, after: Result) -> dict[str, str]:
    return {one.stage: one.verdict for one in compare(before, after).changes}


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_the_same_compared_with_itself_five_times(noise: float):
    for seed in range(5):
        found = verdicts(result(2 * seed, noise=noise), result(2 * seed + 1, noise=noise))
        assert set(found.values()) == {"no difference"}, seed


@pytest.mark.parametrize("pace", [0.7, 1.3])
def test_a_machine_that_was_busier_the_second_time(pace: float):
    found = verdicts(result(0), result(1, pace=pace))
    assert set(found.values()) == {"no difference"}


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode"])
@pytest.mark.parametrize("seed", range(5))
def test_a_stage_that_became_slower_by_a_tenth(stage: str, seed: int):
    comparison = compare(result(2 * seed), result(2 * seed + 1, **{stage: 1.1}))
    slower = {one.stage for one in comparison.regressions}
    assert stage in slower
    # What is made of it may be slower too, and no other stage.
    assert slower <= {stage, "ttft", "tpot", "total"}
    assert {one.verdict for one in comparison.changes} == {"slower", "no difference"}


def test_a_stage_that_became_faster():
    found = verdicts(result(0, encode=1.2), result(1))
    assert found["encode"] == "faster"
    assert found["decode"] == "no difference"


def test_what_is_too_small_to_matter_is_none():
    assert verdicts(result(0), result(1, tokenize=2.0))["tokenize"] == "no difference"


def test_two_runs_prove_nothing_and_that_is_said():
    comparison = compare(result(0, count=2), result(1, count=9, encode=5.2))
    assert {one.verdict for one in comparison.changes} == {"inconclusive"}
    assert comparison.note.endswith("; 2 runs are too few to judge, measure 4 or more")


def test_a_peer_that_became_slower_is_told_and_is_no_regression():
    peer = "transformers-bf16"
    before, after = (
        made_result(*(replace(one, engine=peer) for one in made.measured))
        for made in (result(0), result(1, encode=1.5))
    )
    found = compare(before, after)
    assert {one.stage for one in found.changes if one.verdict == "slower"} >= {"encode", "ttft"}
    assert not found.regressions


def test_the_threshold_decides():
    before, after = result(0, noise=0.001), result(1, noise=0.001, encode=1.1)
    assert not compare(before, after, threshold=0.2).regressions


def test_results_with_nothing_in_common():
    with pytest.raises(UsageError, match="no scenario in common"):
        compare(result(0), made_result(made_measured((), "other", "no reason")))


def test_intervals_are_always_the_same():
    values = [1.0, 1.1, 1.2, 1.3, 1.4]
    low, high = bootstrap_ratio(values, values)
    assert (low, high) == bootstrap_ratio(values, values)
    assert low < 1 < high
