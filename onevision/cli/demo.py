"""``onevision demo``: what the tiny model can do, as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onevision.cli.console import (
    ConsoleProgress,
    Json,
    Model,
    Threads,
    bundle_folder,
    examples,
    print_json,
    print_warning,
)

HELP = examples(
    "Ask the tiny model about five inputs, and show pictures, answers and times on a web page. The "
    "bundle is verified first.",
    "onevision demo",
    "onevision demo -o pages/demo --json",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo", help=HELP, short_help="Show what the tiny model can do, on a web page.")(demo)


def demo(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where the page goes, and an earlier one was."),
    ] = Path("onevision-demo"),
    model: Model = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show what the tiny model can do."""
    from onevision.eval.demo import check, make_demo
    from onevision.eval.demo.page import PAGE
    from onevision.runtime.engine import OneVision

    check(output)
    progress = ConsoleProgress()
    bundle = bundle_folder(model)
    options = () if model is None else ("-m", str(model.resolve()))
    with OneVision.load(bundle, threads=threads) as loaded:
        progress.note(f"bundle {bundle}")
        done = make_demo(loaded, output, progress, options=options)
    if as_json:
        print_json({"page": str(output / PAGE), "bundle": str(bundle), **done.to_dict()})
    else:
        print(output / PAGE)
    if done.report.passed is False:
        print_warning("the bundle does not compute what the reference does")
        raise typer.Exit(1)
