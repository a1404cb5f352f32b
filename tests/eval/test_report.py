"""From records to scores, and from two runs to a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onevision.errors import InputError
from onevision.eval.compare import compare, matched
from onevision.eval.report import report
from onevision.metrics import mcnemar, mean_interval, paired_interval, wilson
from tests.eval.conftest import record, records, sample


def test_scores():
    scores = report(
        [
            *records("text_sum", 1, 2, kind="text", chance=0.5),
            *records("colour", 3, 4),
            *records("shape", 0, 1, chance=0.25),
        ]
    )
    assert list(scores.families) == ["colour", "shape", "text_sum"], "pictures before text"
    assert [score.accuracy for score in scores.families.values()] == [0.75, 0.0, 0.5]
    assert scores.families["colour"].interval == wilson(3, 4)
    assert {kind: (score.accuracy, score.n) for kind, score in scores.kinds.items()} == {
        "image": (0.375, 5),
        "text": (0.5, 2),
    }
    overall = scores.overall
    assert overall.accuracy == pytest.approx((0.75 + 0.0 + 0.5) / 3), "of families, not of questions"
    assert overall.interval == mean_interval([0.75, 0, 0.5], [wilson(3, 4), wilson(0, 1), wilson(1, 2)])
    assert overall.n == 7
    assert overall.chance == pytest.approx((0.125 + 0.25 + 0.5) / 3)
    assert overall.ttft_ms == 10
    assert scores.errors == 0
    data = scores.to_dict()
    assert list(data) == [
        "accuracy", "interval", "n", "chance", "ttft_ms", "usage", "kinds", "families", "errors",
    ]  # fmt: skip
    assert data["families"]["shape"] == {
        "accuracy": 0.0,
        "interval": wilson(0, 1),
        "n": 1,
        "chance": 0.25,
        "ttft_ms": 10,
        "usage": {"tiles": 2, "image_tokens": 25},
    }


def test_of_one_family_overall_is_the_family():
    scores = report(records("colour", 3, 7))
    family = scores.families["colour"]
    assert scores.overall.accuracy == family.accuracy
    assert scores.overall.interval == pytest.approx(family.interval)


def test_chance_where_it_is_not_known_of_all():
    scores = report([*records("a", 1, 2, chance=0.5), record(7, family="a", chance=None)])
    assert scores.families["a"].chance is None
    assert report([*records("a", 1, 2), *records("b", 1, 2, chance=None)]).overall.chance is None


def test_a_family_of_several_kinds():
    """As the questions of a user who names no family."""
    scores = report([*records("all", 2, 2), *(record(at, "no", family="all", kind="text") for at in (8, 9))])
    assert scores.families["all"].accuracy == 0.5
    assert (scores.kinds["image"].accuracy, scores.kinds["text"].accuracy) == (1.0, 0.0)


def test_what_could_not_be_asked_is_wrong_and_has_no_time():
    scores = report([record(0), record(1, error="a.png is damaged")])
    assert (scores.overall.accuracy, scores.errors, scores.overall.ttft_ms) == (0.5, 1, 10)
    assert report([record(1, error="a.png is damaged")]).overall.ttft_ms is None


def test_comparison():
    ours = [*records("colour", 3, 4), *records("shape", 1, 2)]
    #         right, wrong and right, wrong                 wrong, right
    others = [record(0, "Red."), record(1, "green"), record(2, "red"), record(3, "red")]
    others += [record(0, "blue", family="shape"), record(1, "red", family="shape")]
    compared = compare(ours, others)
    colour, shape = compared.families["colour"], compared.families["shape"]
    assert (colour.wins, colour.losses, colour.difference) == (1, 1, 0.0)
    assert (shape.wins, shape.losses, shape.difference) == (1, 1, 0.0)
    assert colour.interval == paired_interval(1, 1, 4)
    assert (colour.agreement, colour.same_text) == (0.5, 0.25), "Red. and red are the same answer"
    overall = compared.overall
    assert (overall.wins, overall.losses) == (2, 2)
    assert overall.agreement == 2 / 6
    assert compared.mcnemar_p == 1.0
    assert compared.other == report(others)


def test_difference_is_that_of_the_accuracies():
    ours = [*records("a", 9, 10), *records("b", 1, 2)]
    others = [*records("a", 2, 10), *records("b", 2, 2)]
    compared = compare(ours, others)
    expected = report(ours).overall.accuracy - report(others).overall.accuracy
    assert compared.overall.difference == pytest.approx(expected)
    assert (compared.overall.wins, compared.overall.losses) == (7, 1)
    assert compared.mcnemar_p == mcnemar(7, 1)
    low, high = compared.overall.interval
    assert low < expected < high
    turned = compare(others, ours).overall
    assert turned.difference == pytest.approx(-expected)
    assert turned.interval == pytest.approx((-high, -low))


def test_earlier_answers_are_matched_by_id_and_scored_anew():
    earlier = [record(1, "crimson"), record(0, "blue")]
    samples = [sample(0), sample(1, answers=("red", "crimson"))]
    found = matched(samples, earlier, Path("a.jsonl"))
    assert [(each.id, each.text, each.right) for each in found] == [
        ("colour-0", "blue", False),
        ("colour-1", "crimson", True),
    ]


def test_earlier_answers_that_do_not_fit():
    with pytest.raises(InputError, match="has no answer to question 'colour-1'"):
        matched([sample(0), sample(1)], [record(0)], Path("a.jsonl"))
    with pytest.raises(InputError, match="asked something else as question 'colour-0'"):
        matched([sample(0)], [replace(record(0), prompt="Which?")], Path("a.jsonl"))
