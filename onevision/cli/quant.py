"""``onevision quant``: bundles in fewer bits, importance matrices, and sweeps over precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from onevision.cli.console import ConsoleSteps, Json, Threads, examples, one_of, print_json
from onevision.cli.export import require_export
from onevision.cli.gate import (
    Calibration,
    Force,
    ImatrixFile,
    Limit,
    NoImatrix,
    Questions,
    print_applied,
    yardstick,
)

HELP = "Quantise a bundle in floats, as far as its answers bear it."

APPLY_HELP = examples(
    "Make a bundle in fewer bits of one in floats, without the checkpoint, and hold it against that one. "
    "auto tries the smallest precisions first and stops at the first that passes the quality gate.",
    "onevision quant apply bundle small",
    "onevision quant apply bundle small --vision int8 --backbone q4_0 --calibration photos/",
    "onevision quant apply bundle small --vision int8 --questions mine/ --json",
)

IMATRIX_HELP = examples(
    "Collect an importance matrix from pictures, videos and texts, in llama.cpp's format.",
    "onevision quant imatrix bundle bundle.imatrix.gguf",
)

Source = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle in floats (fp32 or fp16, f32 or f16).")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(rich_markup_mode=None)
    group.command("apply", help=APPLY_HELP, short_help="Make a bundle in fewer bits.")(apply)
    group.command("imatrix", help=IMATRIX_HELP, short_help="Collect an importance matrix.")(imatrix)
    app.add_typer(group, name="quant", help=HELP)


def apply(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the new bundle goes.")],
    vision: Annotated[
        str, typer.Option(metavar="TYPE", help="Of the vision encoder: fp32, fp16, int8 or auto.")
    ] = "auto",
    backbone: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Of the language model: f32, f16, bf16, q8_0, q4_0, iq4_nl, q4_k_m, …, or auto.",
        ),
    ] = "auto",
    calibration: Calibration = None,
    imatrix: ImatrixFile = None,
    no_imatrix: NoImatrix = False,
    questions: Questions = None,
    limit: Limit = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a bundle in fewer bits of one in floats."""
    require_export()
    from onevision.bundle import check_target, open_bundle
    from onevision.export.gguf_report import BackbonePrecision
    from onevision.quant.apply import Wanted
    from onevision.quant.apply import apply as quantise
    from onevision.quant.requantise import EncoderPrecision

    wanted = Wanted(
        one_of(vision, (*get_args(EncoderPrecision), "auto"), "--vision"),
        one_of(backbone, (*get_args(BackbonePrecision), "auto"), "--backbone"),
        imatrix=not no_imatrix,
        force=force,
    )
    check_target(out, force=force)
    bundle = open_bundle(source)
    measure = yardstick(calibration, imatrix, no_imatrix, questions, limit, threads)
    done = quantise(bundle, out, wanted, measure, ConsoleSteps())
    print_applied(done, as_json=as_json)


def imatrix(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Collect an importance matrix."""
    require_export()
    from onevision.bundle import open_bundle
    from onevision.quant.imatrix import collect_imatrix, write_imatrix
    from onevision.runtime.engine import OneVision

    with (
        OneVision(open_bundle(source), device="cpu", threads=threads) as model,
        ConsoleSteps().step("importance matrix") as progress,
    ):
        collected = collect_imatrix(model, progress=progress)
    write_imatrix(collected, out)
    if as_json:
        print_json({"imatrix": str(out), "matrices": len(collected.inputs), "bytes": out.stat().st_size})
    else:
        print(out)
