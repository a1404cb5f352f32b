"""The model card: a bundle's ``README.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.bundle import BACKBONE, VISION
from onevision.export.quality import quality_facts

if TYPE_CHECKING:
    from onevision.bundle import Manifest
    from onevision.native.quantize import BackboneReport
    from onevision.proof.verify import Report


def model_card(manifest: Manifest, backbone: BackboneReport, report: Report) -> str:
    """Markdown that tells what the bundle is, how it was proven, and how to run it."""
    source = manifest.source
    origin = f"[{source.repo}](https://huggingface.co/{source.repo})" if source.revision else source.repo
    commit = f", commit `{source.revision}`" if source.revision else ""
    vision = manifest.files[VISION]
    measured = "".join(f"- {name}: {text}\n" for name, text in quality_facts(manifest.quality).items())
    return f"""# {manifest.name}

LLaVA-OneVision, exported by onevision {manifest.created_by["onevision"]} to run without PyTorch.

- Source: {origin}{commit} ({source.format} format)
- Licence: that of the source's weights; the export adds no terms of its own
- Vision encoder and projector: `{VISION}`, {vision.precision}, {vision.bytes / 1e6:,.0f} MB
- Backbone: `{BACKBONE}`, {backbone.summary}
{measured}
## Run

```
pip install onevision
onevision run "What is in this picture?" --image photo.jpg -m .
```

## Verify

{_proof(report) if report.cases else "It was not compared with transformers."}
"""


def _proof(report: Report) -> str:
    rows = [
        f"| {case.name} | {stage.stage} | {_number(stage.max_error)} | {_number(stage.relative_error)} "
        f"| {_number(stage.tolerance)} | {_verdict(stage.passed)} | {stage.note} |"
        for case in report.cases
        for stage in case.stages
    ]
    return f"""```
onevision verify -m .
```

Measured at export, against transformers in fp32:

| case | stage | max error | relative error | tolerance | | |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}"""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _verdict(passed: bool | None) -> str:
    return {True: "pass", False: "FAIL", None: "reported"}[passed]
