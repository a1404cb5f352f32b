"""``onevision quant``: bundles in fewer bits, importance matrices, and sweeps over precisions."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from onevision.cli.console import ConsoleProgress, Json, Threads, examples, one_of, print_json, stdout
from onevision.cli.gate import (
    Calibration,
    Force,
    ImatrixFile,
    Limit,
    NoImatrix,
    Questions,
    print_applied,
    weighed,
    yardstick,
)
from onevision.errors import UsageError
from onevision.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.quant.sweep import Row

HELP = "Quantise a bundle in floats, as far as its answers bear it."

APPLY_HELP = examples(
    "Make a bundle in fewer bits of one in floats, without the checkpoint, and hold it against that one. "
    "auto tries the smallest precisions first and stops at the first that passes the quality gate.",
    "onevision quant apply bundle small",
    "onevision quant apply bundle small --vision int8 --calibration photos/",
    "onevision quant apply bundle small --backbone q4_0 --questions mine/ --json",
)

IMATRIX_HELP = examples(
    "Collect an importance matrix from pictures, videos and texts, in llama.cpp's format.",
    "onevision quant imatrix bundle bundle.imatrix.gguf",
)

SWEEP_HELP = examples(
    "Measure many precisions of one bundle in floats: size, time per tile and per token, quality. Writes a "
    "table as CSV and JSON, and a picture, to a folder. A sweep that was stopped goes on where it was.",
    "onevision quant sweep bundle sweep/",
    "onevision quant sweep bundle sweep/ --vision int8 --backbone q4_0 --limit 26",
)

Source = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle in floats (fp32 or fp16, f32 or f16).")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(rich_markup_mode=None)
    group.command("apply", help=APPLY_HELP, short_help="Make a bundle in fewer bits.")(apply)
    group.command("imatrix", help=IMATRIX_HELP, short_help="Collect an importance matrix.")(imatrix)
    group.command("sweep", help=SWEEP_HELP, short_help="Measure many precisions, and draw them.")(sweep)
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
    require("export", "this command")
    from onevision.bundle import check_target, open_bundle
    from onevision.native.quantize import BackbonePrecision
    from onevision.quant.apply import Wanted
    from onevision.quant.apply import apply as quantise
    from onevision.quant.requantise import EncoderPrecision

    wanted = Wanted(
        one_of(vision, (*get_args(EncoderPrecision), "auto"), "--vision"),
        one_of(backbone, (*get_args(BackbonePrecision), "auto"), "--backbone"),
        imatrix=weighed(imatrix, no_imatrix),
        force=force,
    )
    check_target(out, force=force)
    bundle = open_bundle(source)
    measure = yardstick(calibration, imatrix, questions, limit, threads)
    done = quantise(bundle, out, wanted, measure, ConsoleProgress())
    print_applied(done, as_json=as_json)


def sweep(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where rows, tables and picture go.")],
    vision: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Of the vision encoder; repeatable.  [default: fp32 and int8]"),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Of the language model; repeatable.  [default: f16, q8_0, q4_k_m, iq4_nl and q4_0]",
        ),
    ] = None,
    calibration: Calibration = None,
    imatrix: ImatrixFile = None,
    no_imatrix: NoImatrix = False,
    questions: Questions = None,
    limit: Limit = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Begin anew if FOLDER has another sweep.")] = False,
    as_json: Json = False,
) -> None:
    """Measure many precisions of a bundle in floats."""
    require("export", "this command")
    if find_spec("matplotlib") is None:
        raise UsageError("a sweep is drawn with matplotlib", hint="pip install 'onevision[bench]'")
    from onevision.bundle import open_bundle
    from onevision.native.quantize import BackbonePrecision
    from onevision.quant import sweep as sweeps
    from onevision.quant.requantise import EncoderPrecision, check_precisions

    visions = [one_of(name, get_args(EncoderPrecision), "--vision") for name in vision or sweeps.VISIONS]
    backbones = [
        one_of(name, get_args(BackbonePrecision), "--backbone") for name in backbone or sweeps.BACKBONES
    ]
    bundle = open_bundle(source)
    for candidate in (candidates := sweeps.candidates_of(visions, backbones, weighed(imatrix, no_imatrix))):
        check_precisions(bundle, candidate.vision, candidate.backbone)
    measure = yardstick(calibration, imatrix, questions, limit, threads)
    rows = sweeps.sweep(bundle, out, candidates, measure, ConsoleProgress(), force=force)
    if as_json:
        print_json({"folder": str(out), "rows": [asdict(row) for row in rows]})
    else:
        _print_rows(rows)
        print(out / sweeps.PICTURE)


def imatrix(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Collect an importance matrix."""
    require("export", "this command")
    from onevision.bundle import open_bundle
    from onevision.quant.imatrix import collect_imatrix, write_imatrix
    from onevision.runtime.engine import OneVision

    with (
        OneVision(open_bundle(source), device="cpu", threads=threads) as model,
        ConsoleProgress().step("importance matrix") as advance,
    ):
        collected = collect_imatrix(model, advance=advance)
    write_imatrix(collected, out)
    if as_json:
        print_json({"imatrix": str(out), "matrices": len(collected.inputs), "bytes": out.stat().st_size})
    else:
        print(out)


def _print_rows(rows: Sequence[Row]) -> None:
    """Rows as a table; those that no other beats in size, both times and divergence are marked."""
    from rich.table import Column, Table

    from onevision.quant.pareto import front_of

    names = ("MB", "bits", "ms/tile", "ms/token", "cosine", "mean KL", "top-1", "accuracy", "gate")
    numbers = [Column(name, justify="right", no_wrap=True) for name in names]
    table = Table("", Column("precisions", no_wrap=True), *numbers, box=None, pad_edge=False)
    for row, ahead in zip(rows, front_of(rows), strict=True):
        table.add_row(
            "*" if ahead else "",
            row.name,
            f"{row.bytes / 1e6:,.1f}",
            f"{row.bits_per_weight:.2f}",
            f"{row.tile_ms:,.1f}",
            f"{row.token_ms:,.2f}",
            _figure(row.cosine, "{:.5f}"),
            _figure(row.mean_kl, "{:.2g}"),
            _figure(row.top1, "{:.1%}"),
            _figure(row.accuracy, "{:.1%}"),
            "passes" if row.passed else "fails",
        )
    console = stdout()
    console.print(table)
    console.print("* no other is better in size, times and KL together", style="dim")


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
