"""The last files of a bundle: the model card (``README.md``) and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onevision._version import __version__
from onevision.bundle import BACKBONE, CARD, GOLDEN, MANIFEST, VISION, VISION_DATA, Bundle, Manifest, files_of
from onevision.files import readable

if TYPE_CHECKING:  # `inspect` and `--help` load no NumPy
    from onevision.proof.verify import Report

_CARD = """# {name}

LLaVA-OneVision, exported by onevision {version} to run without PyTorch.

- Source: {source}
- License: that of the source's weights; the export adds no terms of its own
- Vision encoder and projector: `{vision_file}`, {vision}
- Backbone: `{backbone_file}`, {backbone}
{measured}
## Run

```
pip install onevision
onevision run "What is in the image?" --image photo.jpg -m .
```

## Verify

{proof}
"""

_PROVEN = """```
onevision verify -m .
```

Measured against transformers in fp32:

| case | stage | max error | relative error | tolerance | | |
| --- | --- | --- | --- | --- | --- | --- |
{rows}"""

_COMPARABLE = """Not verified when it was exported, but it has reference vectors of transformers in fp32:

```
onevision verify -m .
```"""

_UNPROVEN = """Unproven: not compared with transformers yet. With its checkpoint and `onevision[proof]`:

```
onevision verify -m . --reference CHECKPOINT --write
```"""

#: Of the gate: part, figure, part and name of its threshold or of the value it is compared with, words.
_FIGURES = (
    ("features", "cosine", ("thresholds", "cosine"), "cosine of the worst tile {:.5f} (at least {})"),
    ("features", "relative_error", ("thresholds", "relative_error"), "relative error {:.2g} (at most {})"),
    ("tokens", "mean_kl", ("thresholds", "mean_kl"), "mean KL {:.2g} (at most {})"),
    ("tokens", "p99_kl", ("thresholds", "p99_kl"), "its 99th percentile {:.2g} (at most {})"),
    ("tokens", "top1", ("thresholds", "top1"), "top-1 agreement {:.1%} (at least {:.0%})"),
    ("answers", "accuracy", ("answers", "reference_accuracy"), "accuracy {:.1%} (the reference {:.1%})"),
    ("answers", "agreement", ("answers", "n"), "answer agreement {:.1%} (of {})"),
)


def model_card(manifest: Manifest) -> str:
    """Markdown: source, precisions, quality, how to run and to verify."""
    source, files = manifest.source, manifest.files
    origin = f"[{source.repo}](https://huggingface.co/{source.repo})" if source.revision else source.repo
    commit = f", commit `{source.revision}`" if source.revision else ""
    vision_bytes = sum(files[name].bytes for name in (VISION, VISION_DATA) if name in files)
    bits = f"{manifest.backbone.bits_per_weight:.2f} bits per weight"
    measured = "".join(f"- {name}: {text}\n" for name, text in quality_facts(manifest.quality).items())
    cases = manifest.quality["verify"]["cases"]
    unproven = _COMPARABLE if GOLDEN in files else _UNPROVEN
    return _CARD.format(
        name=manifest.name,
        version=manifest.created_by["onevision"],
        source=f"{origin}{commit} ({source.format} format)",
        vision_file=VISION,
        vision=f"{files[VISION].precision}, {readable(vision_bytes)}",
        backbone_file=BACKBONE,
        backbone=f"{files[BACKBONE].precision}, {bits}, {readable(files[BACKBONE].bytes)}",
        measured=measured,
        proof=_PROVEN.format(rows="\n".join(_rows(cases))) if cases else unproven,
    )


def quality_facts(quality: Mapping[str, Any]) -> dict[str, str]:
    """Figures of the quality gate, failures marked, and matmuls kept in a finer type, as text."""
    gate, encoder = quality.get("gate"), quality.get("encoder")
    facts = {}
    if isinstance(gate, dict):
        verdict = "passed" if gate.get("passed") is True else "FAILED"
        facts["quality"] = f"{verdict} against {gate.get('reference')}: {'; '.join(_figures(gate))}"
    kept = encoder.get("kept") if isinstance(encoder, dict) else None
    if isinstance(kept, dict) and kept:
        facts["kept finer"] = ", ".join(f"{matmul} ({precision})" for matmul, precision in kept.items())
    return facts


def _rows(cases: list[dict[str, Any]]) -> Iterator[str]:
    verdicts = {True: "pass", False: "FAIL", None: "reported"}
    for case in cases:
        for stage in case["stages"]:
            values = [stage[key] for key in ("max_error", "relative_error", "tolerance")]
            numbers = ["" if value is None else f"{value:.3g}" for value in values]
            cells = (case["name"], stage["stage"], *numbers, verdicts[stage["passed"]], stage["note"])
            yield f"| {' | '.join(cells)} |"


def _figures(gate: Mapping[str, Any]) -> Iterator[str]:
    for part, figure, threshold, form in _FIGURES:
        value, limit = _number(gate, part, figure), _number(gate, *threshold)
        if value is not None and limit is not None:
            failed = ("at least" in form and not value >= limit) or ("at most" in form and not value <= limit)
            yield "✗ " * failed + form.format(value, limit)


def _number(data: Mapping[str, Any], part: str, key: str) -> float | None:
    values = data.get(part)
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, (int, float)) else None


def seal(folder: Path, manifest: Manifest, report: Report, **measured: Mapping[str, Any]) -> Bundle:
    """Write card and manifest beside the other files.

    Args:
        folder: The bundle's folder.
        manifest: Manifest without the card; its ``quality`` is replaced.
        report: Result of verify; without cases if nothing was compared.
        measured: Further entries of ``quality``.
    """
    manifest = replace(manifest, quality={**measured, "verify": report.to_dict()})
    (folder / CARD).write_text(model_card(manifest), encoding="utf-8")
    manifest = replace(manifest, files=manifest.files | files_of([folder / CARD], {}))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(folder, manifest)


def writer_versions() -> dict[str, str]:
    """Versions of the packages that write a bundle's files, for ``created_by``."""
    return {"onevision": __version__, **{name: version(name) for name in ("gguf", "onnx")}}


def tool_versions() -> dict[str, str]:
    """Versions of the packages that run, check and quantize a bundle, for ``created_by``."""
    import onnxruntime

    return {
        "onevision": __version__,
        "onnxruntime": str(onnxruntime.__version__),  # whichever distribution brought it
        "llama_cpp": version("llama-cpp-python"),
    }
