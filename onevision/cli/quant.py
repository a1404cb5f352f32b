"""``onevision quant``: quantize a bundle, collect an importance matrix, sweep over precisions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, cast

import typer

from onevision.cli.console import ConsoleProgress, print_next, print_table, show, stdout
from onevision.cli.gate import (
    BackboneOption,
    Calibration,
    Force,
    ImatrixFile,
    Limit,
    NoImatrix,
    Questions,
    Vision,
    ask_with,
    imatrix_choice,
    print_quantized,
)
from onevision.cli.options import Json, Threads, add_command, bundle_folder
from onevision.extras import require
from onevision.precisions import BackbonePrecision, EncoderPrecision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.quant.rows import SweepRow

HELP = "Quantize a full-precision bundle without losing accuracy."

APPLY_EXAMPLES = (
    "onevision quant apply bundle small",
    "onevision quant apply bundle small --vision int8 --calibration photos/",
    "onevision quant apply bundle small --backbone q4_0 --questions mine/ --json",
)
IMATRIX_EXAMPLES = ("onevision quant imatrix bundle bundle.imatrix.gguf",)
SWEEP_EXAMPLES = (
    "onevision quant sweep bundle sweep/",
    "onevision quant sweep bundle sweep/ --vision int8 --backbone q4_0 --limit 26",
)

Source = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A full-precision bundle (fp32 or fp16, f32, f16 or bf16).")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(rich_markup_mode=None)
    add_command(group, apply, *APPLY_EXAMPLES)
    add_command(group, imatrix, *IMATRIX_EXAMPLES)
    add_command(group, sweep, *SWEEP_EXAMPLES)
    app.add_typer(group, name="quant", help=HELP)


def apply(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the new bundle.")],
    vision: Vision = "auto",
    backbone: BackboneOption = "auto",
    calibration: Calibration = None,
    imatrix: ImatrixFile = None,
    no_imatrix: NoImatrix = False,
    questions: Questions = None,
    limit: Limit = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Quantize a full-precision bundle, and compare the answers of both.

    auto tries the smallest precisions first and stops at the first that passes the quality gate.
    """
    require("export", "this command")
    from onevision.quant.search import quantize

    done = quantize(
        bundle_folder(source),
        out,
        vision=vision,
        backbone=backbone,
        calibration=calibration,
        imatrix=imatrix_choice(imatrix, no_imatrix),
        questions=questions,
        limit=limit,
        threads=threads,
        force=force,
        progress=ConsoleProgress(),
    )
    print_quantized(done, as_json=as_json)
    print_next(ask_with(out), quiet=as_json)


def sweep(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder for rows, tables and plot.")],
    vision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE", help="Precision of the vision encoder; repeatable.  [default: fp32 and int8]"
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Precision of the language model; repeatable.  [default: f16, q8_0, q4_k_m, iq4_nl, q4_0]",
        ),
    ] = None,
    calibration: Calibration = None,
    imatrix: ImatrixFile = None,
    no_imatrix: NoImatrix = False,
    questions: Questions = None,
    limit: Limit = None,
    threads: Threads = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start over if FOLDER has rows of another sweep.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure many precisions of a full-precision bundle.

    Writes size, time per tile and per token, and quality as CSV and JSON, and a plot. An interrupted sweep
    resumes with the same command.
    """
    require("export", "this command")
    require("bench", "a sweep's plot")
    from onevision.bundle import open_bundle
    from onevision.quant import sweep as sweeps
    from onevision.quant.candidates import GateConfig

    choice = imatrix_choice(imatrix, no_imatrix)
    config = GateConfig(questions, limit, calibration, imatrix=choice, threads=threads)
    rows = sweeps.sweep(
        open_bundle(bundle_folder(source)),
        out,
        config,
        visions=cast("list[EncoderPrecision]", vision) or sweeps.VISIONS,
        backbones=cast("list[BackbonePrecision]", backbone) or sweeps.BACKBONES,
        force=force,
        progress=ConsoleProgress(),
    )
    data = {"folder": str(out), "rows": [asdict(row) for row in rows]}
    show(as_json, data, _print_sweep, rows, out / sweeps.PLOT)
    print_next(f"onevision quant apply {quote(source)} OUT --vision TYPE --backbone TYPE", quiet=as_json)


def imatrix(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Collect an importance matrix. It is made from images, videos and texts, in llama.cpp's format."""
    require("export", "this command")
    from onevision.bundle import open_bundle
    from onevision.quant.imatrix import collect_imatrix, write_imatrix
    from onevision.runtime.engine import OneVision

    with (
        OneVision(open_bundle(bundle_folder(source)), device="cpu", threads=threads) as model,
        ConsoleProgress().step("importance matrix") as advance,
    ):
        collected = collect_imatrix(model, advance=advance)
    write_imatrix(collected, out)
    data = {"imatrix": str(out), "matrices": len(collected.inputs), "bytes": out.stat().st_size}
    show(as_json, data, print, out)
    print_next(f"onevision quant apply {quote(source)} OUT --imatrix {quote(str(out))}", quiet=as_json)


def _print_sweep(rows: Sequence[SweepRow], plot: Path) -> None:
    """Print rows as a table, with the Pareto front of size, both times and divergence marked."""
    from onevision.quant.rows import front_of

    cells = [
        (
            row.name,
            f"{row.bytes / 1e6:,.1f}",
            f"{row.bits_per_weight:.2f}",
            f"{row.tile_ms:,.1f}",
            f"{row.token_ms:,.2f}",
            _figure(row.cosine, "{:.5f}"),
            _figure(row.mean_kl, "{:.2g}"),
            _figure(row.top1, "{:.1%}"),
            _figure(row.accuracy, "{:.1%}"),
            ("pass" if row.passed else "FAIL") + " *" * ahead,
        )
        for row, ahead in zip(rows, front_of(rows), strict=True)
    ]
    names = ("MB", "bits", "ms/tile", "ms/token", "cosine", "mean KL", "top-1", "accuracy", "gate")
    print_table(("precisions", *names), cells, notes=True)
    stdout().print("* best trade-offs: no other is better in size, both times and KL together", style="dim")
    print(plot)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
