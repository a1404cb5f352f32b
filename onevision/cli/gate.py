"""What the commands that quantise share: what to calibrate and measure with, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onevision.cli.console import print_json, print_warning
from onevision.errors import UsageError

if TYPE_CHECKING:
    from onevision.bundle import Bundle
    from onevision.native.quantize import BackboneReport
    from onevision.proof.verify import Report
    from onevision.quant.apply import Applied
    from onevision.quant.trials import Yardstick

Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Pictures to calibrate int8 with; files that are none are skipped, with a warning.  "
        "[default: built-in ones]",
    ),
]
ImatrixFile = Annotated[
    Path | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        help="Use this importance matrix, of `onevision quant imatrix` or llama-imatrix.  [default: both "
        "none, and one that is collected, are tried]",
    ),
]
NoImatrix = Annotated[bool, typer.Option("--no-imatrix", help="Use none.")]
Questions = Annotated[
    Path | None,
    typer.Option(
        metavar="PLACE",
        help="Questions to measure quality with, as in `onevision eval`.  [default: the tiny suite's]",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Most questions.  [default: 4 of each of the suite's families, 50 of a small model; all "
        "of yours]",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace a bundle that is there, and write one even if it fails the quality gate."
    ),
]


def weighed(imatrix: Path | None, no_imatrix: bool) -> bool | None:
    """Whether an importance matrix is used; None: it is to be found out.

    Raises:
        UsageError: Both options are given.
    """
    if imatrix is not None and no_imatrix:
        raise UsageError("--imatrix and --no-imatrix contradict each other")
    return True if imatrix is not None else False if no_imatrix else None


def yardstick(
    calibration: Path | None,
    imatrix: Path | None,
    questions: Path | None,
    limit: int | None,
    threads: int | None,
) -> Yardstick:
    """What to measure with, read and checked before any work is done.

    Raises:
        InputError: Questions, or an importance matrix, that cannot be used.
        QuantError: A calibration folder with nothing in it.
    """
    from onevision.eval.questions import read_questions, tiny_suite
    from onevision.quant.calibration import files_in
    from onevision.quant.imatrix import read_imatrix
    from onevision.quant.trials import Yardstick

    if calibration is not None:
        files_in(calibration)
    return Yardstick(
        read_questions(questions, limit=limit) if questions else tiny_suite(limit=limit) if limit else None,
        calibration=calibration,
        imatrix=None if imatrix is None else read_imatrix(imatrix),
        threads=threads,
    )


def summary(bundle: Bundle, backbone: BackboneReport, report: Report) -> dict[str, Any]:
    """A bundle just written, for ``--json``."""
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


def print_applied(done: Applied, *, as_json: bool) -> None:
    """A bundle that was measured, with what was rejected on the way to it."""
    bundle = done.bundle
    if as_json:
        print_json(summary(bundle, done.backbone, done.report) | {"gate": done.to_dict()})
    else:
        print(f"{bundle.folder}  {done.candidate.name}  {bundle.bytes / 1e6:,.0f} MB")
    if not done.quality.passed:
        print_warning(f"{bundle.folder} fails the quality gate: {'; '.join(done.quality.reasons)}")
