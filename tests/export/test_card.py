"""A manifest's ``quality`` in words, whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest

from onevision.export.card import quality_facts

GATE: dict[str, Any] = {
    "passed": True,
    "reference": "fp32 + f32",
    "features": {"cosine": 0.99943, "relative_error": 0.034},
    "tokens": {"mean_kl": 0.00054, "p99_kl": 0.0075, "top1": 0.985},
    "answers": {"accuracy": 0.337, "reference_accuracy": 0.346, "agreement": 0.942, "n": 104},
    "thresholds": {"cosine": 0.999, "relative_error": 0.045, "mean_kl": 0.02, "p99_kl": 0.2, "top1": 0.97},
}


def test_figures_and_thresholds() -> None:
    assert quality_facts({"gate": GATE})["quality"] == (
        "passed against fp32 + f32: cosine of the worst tile 0.99943 (at least 0.999); relative error 0.034 "
        "(at most 0.045); mean KL 0.00054 (at most 0.02); its 99th percentile 0.0075 (at most 0.2); top-1 "
        "agreement 98.5% (at least 97%); accuracy 33.7% (the reference 34.6%); answer agreement 94.2% "
        "(of 104)"
    )


def test_what_was_not_measured_is_left_out() -> None:
    gate = {**GATE, "passed": False, "tokens": {"mean_kl": None, "top1": 0.5}}
    del gate["features"], gate["answers"]
    assert quality_facts({"gate": gate})["quality"] == (
        "FAILED against fp32 + f32: ✗ top-1 agreement 50.0% (at least 97%)"
    )


def test_what_was_kept_finer() -> None:
    kept = {"layers.3.fc2": "fp32", "layers.0.fc1": "int8-token"}
    facts = quality_facts({"encoder": {"kept": kept}})
    assert facts == {"kept finer": "layers.3.fc2 (fp32), layers.0.fc1 (int8-token)"}


@pytest.mark.parametrize(
    "quality",
    [
        {},
        {"gate": None, "encoder": []},
        {"gate": "good"},
        {"encoder": {"kept": {}}},
        {"verify": {"passed": True}},
    ],
)
def test_nothing_to_tell(quality: dict[str, Any]) -> None:
    assert quality_facts(quality) == {}


def test_a_manifest_of_another_kind() -> None:
    facts = quality_facts({"gate": {"passed": "yes", "tokens": [1], "thresholds": {"top1": "high"}}})
    assert facts["quality"].startswith("FAILED")
