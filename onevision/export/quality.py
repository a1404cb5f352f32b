"""What a manifest's ``quality`` says of a quantised bundle, in words: for ``inspect`` and the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Of the gate: part, figure, where its threshold or what it is compared with is, and words.
_FIGURES = (
    ("features", "cosine", ("thresholds", "cosine"), "cosine of the worst tile {:.5f} (at least {})"),
    ("features", "relative_error", ("thresholds", "relative_error"), "relative error {:.2g} (at most {})"),
    ("tokens", "mean_kl", ("thresholds", "mean_kl"), "mean KL {:.2g} (at most {})"),
    ("tokens", "p99_kl", ("thresholds", "p99_kl"), "its 99th percentile {:.2g} (at most {})"),
    ("tokens", "top1", ("thresholds", "top1"), "the same likeliest token {:.1%} (at least {:.0%})"),
    ("answers", "accuracy", ("answers", "reference_accuracy"), "accuracy {:.1%} (the reference {:.1%})"),
    ("answers", "agreement", ("answers", "n"), "the same answer {:.1%} (of {})"),
)


def quality_facts(quality: Mapping[str, Any]) -> dict[str, str]:
    """What the gate measured, and what of the encoder was kept finer; empty if nothing was measured."""
    gate, encoder = quality.get("gate"), quality.get("encoder")
    facts = {}
    if isinstance(gate, dict):
        verdict = "passed" if gate.get("passed") is True else "FAILED"
        facts["quality"] = f"{verdict} against {gate.get('reference')}: {'; '.join(_figures(gate))}"
    kept = encoder.get("kept") if isinstance(encoder, dict) else None
    if isinstance(kept, dict) and kept:
        facts["kept finer"] = ", ".join(f"{product} ({precision})" for product, precision in kept.items())
    return facts


def _figures(gate: Mapping[str, Any]) -> Iterator[str]:
    for part, figure, threshold, form in _FIGURES:
        value, limit = _number(gate, part, figure), _number(gate, *threshold)
        if value is not None and limit is not None:
            yield form.format(value, limit)


def _number(data: Mapping[str, Any], part: str, key: str) -> float | None:
    values = data.get(part)
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, (int, float)) else None
