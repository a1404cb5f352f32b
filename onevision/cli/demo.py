"""``onevision demo``: answers of the tiny model on a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onevision.cli.console import ConsoleProgress, print_next, print_warning, show
from onevision.cli.options import Json, Model, Quiet, Threads, add_command, bundle_folder

EXAMPLES = ("onevision demo", "onevision demo -o pages/demo --json")


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, demo, *EXAMPLES)


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Output folder. A demo page already there is replaced."
        ),
    ] = Path("onevision-demo"),
    model: Model = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the tiny model's answers on a web page. It asks about five inputs, after verifying the bundle."""
    import onevision
    from onevision.eval.demo import PAGE, check, make_demo

    check(output)
    folder = bundle_folder(model, quiet=quiet)
    options = () if model is None else ("-m", str(folder.resolve()))
    with onevision.load(folder, threads=threads) as loaded:
        done = make_demo(loaded, output, ConsoleProgress(quiet=quiet), options=options)
    data = {"page": str(output / PAGE), "bundle": str(loaded.bundle.folder), **done.to_dict()}
    show(as_json, data, print, output / PAGE)
    if model is None:
        print_next('onevision run "What is in the image?" -i photo.jpg -m 0.5b', quiet=quiet or as_json)
    if done.report.passed is False:
        print_warning("the bundle does not match the reference")
        raise typer.Exit(1)
