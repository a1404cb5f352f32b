"""Options and output shared by the commands that quantize."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onevision.cli.console import print_warning, show
from onevision.errors import UsageError
from onevision.precisions import BackboneChoice, EncoderChoice

if TYPE_CHECKING:
    from onevision.bundle import Bundle
    from onevision.native.quantize import BackboneReport
    from onevision.proof.verify import Report
    from onevision.quant.search import Quantized

_VISION = (
    "Precision of the vision encoder: fp32, fp16, int8, or auto: the smallest that passes the quality gate."
)
Vision = Annotated[EncoderChoice, typer.Option(metavar="TYPE", help=_VISION)]
FastVision = Annotated[
    EncoderChoice | None,
    typer.Option(
        "--vision",
        metavar="TYPE",
        help=f"{_VISION}  [default: int8 if its features of calibration tiles pass, or else fp16]",
    ),
]
BackboneOption = Annotated[
    BackboneChoice,
    typer.Option(
        "--backbone",
        metavar="TYPE",
        help="Precision of the language model: f32, f16, bf16, q8_0, q4_0, iq4_nl, q4_k_m, …, or auto: the "
        "smallest that passes the quality gate.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Images to calibrate int8 with; other files are skipped with a warning.  [default: a built-in "
        "set]",
    ),
]
ImatrixFile = Annotated[
    Path | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        help="Importance matrix from `onevision quant imatrix` or llama-imatrix.  [default: try one that is "
        "collected, and none]",
    ),
]
NoImatrix = Annotated[bool, typer.Option("--no-imatrix", help="Quantize without an importance matrix only.")]
Questions = Annotated[
    Path | None,
    typer.Option(
        metavar="PLACE",
        help="Questions to measure quality with, as for `onevision eval`.  [default: the tiny suite's]",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Maximum number of questions.  [default: all of PLACE; of the tiny suite 4 per family, 50 for "
        "a small model]",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an existing bundle, and write one that fails the quality gate."),
]


def imatrix_choice(imatrix: Path | None, no_imatrix: bool) -> Path | bool | None:
    """The importance matrix to use: a file; False for none; None for both ways.

    Raises:
        UsageError: Both options are given.
    """
    if imatrix is not None and no_imatrix:
        raise UsageError("--imatrix and --no-imatrix contradict each other")
    return False if no_imatrix else imatrix


def summary(bundle: Bundle, backbone: BackboneReport, report: Report) -> dict[str, Any]:
    """A written bundle, for ``--json``."""
    return {
        "bundle": str(bundle.folder),
        "bytes": bundle.bytes,
        "backbone": {
            "precision": backbone.precision,
            "bits_per_weight": backbone.bits_per_weight,
            "tensor_types": backbone.tensor_types,
            "fallbacks": {name: list(types) for name, types in backbone.fallbacks.items()},
        },
        "verify": report.to_dict(),
    }


def ask_with(folder: Path) -> str:
    """A command that asks a new bundle."""
    return f'onevision run "What is in the image?" -i photo.jpg -m {quote(str(folder))}'


def print_quantized(done: Quantized, *, as_json: bool) -> None:
    """Print a quantized bundle, and a warning if it fails the gate."""
    bundle = done.bundle
    data = summary(bundle, done.backbone, done.report) | {"gate": done.to_dict()}
    show(as_json, data, print, f"{bundle.folder}  {done.candidate.name}  {bundle.bytes / 1e6:,.0f} MB")
    if not done.quality.passed:
        print_warning(f"{bundle.folder} fails the quality gate: {'; '.join(done.quality.reasons)}")
