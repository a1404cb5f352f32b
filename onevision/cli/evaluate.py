"""``onevision eval``: questions asked, scored, and compared with another run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onevision.cli.console import ConsoleProgress, print_warning, show
from onevision.cli.options import (
    INPUT,
    CheckSums,
    Device,
    Json,
    Model,
    Prefill,
    Quiet,
    Threads,
    add_command,
    answer_options,
    bundle_folder,
    choices,
)
from onevision.cli.scores import print_evaluation
from onevision.eval import EVAL_MAX_TOKENS, EVAL_OPTIONS, See
from onevision.runtime.options import AnswerOptions

EXAMPLES = (
    "onevision eval --limit 260",
    "onevision eval --family small_print --see base -o base.jsonl",
    "onevision eval --family small_print --max-tiles 3 --against all.jsonl",
    "onevision eval --questions mine/ --json -m bundle",
    "onevision eval -m small --against bundle -o small.jsonl",
    "onevision eval -m bundle --against checkpoint --limit 500",
    "onevision eval -m bundle --prefill onnx --against bundle --limit 1000",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, evaluate, *EXAMPLES, name="eval")


@answer_options(*EVAL_OPTIONS, max_tokens=EVAL_MAX_TOKENS)
def evaluate(
    model: Model = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A suite of generated questions.  [default: tiny]", rich_help_panel=INPUT
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACE",
            help="Instead of a suite: a JSONL file, or a folder with questions.jsonl. A line is an object "
            "with prompt, answer or answers, and image, images or video; optionally form (short, letter or "
            "sentence), family and id.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only questions of this family; repeatable.", rich_help_panel=INPUT
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Maximum number of questions.  [default: 100 per family of a suite; all of PLACE]",
            rich_help_panel=INPUT,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of a suite.  [default: 0]", rich_help_panel=INPUT)
    ] = None,
    see: Annotated[
        See,
        typer.Option(
            metavar=choices(See),
            help="Visual input: base squashes a single image to one tile, nothing leaves images and videos "
            "out.",
            rich_help_panel=INPUT,
        ),
    ] = "all",
    *,
    options: AnswerOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the answers as JSONL. An interrupted run keeps FILE.part; run the same command again "
            "to resume.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER",
            help="Compare with another bundle, whose prompts llama.cpp reads, with the answers file of "
            "another run, or with a checkpoint in transformers, which needs onevision[proof].",
        ),
    ] = None,
    prefill: Prefill = "auto",
    device: Device = "auto",
    threads: Threads = None,
    check: CheckSums = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how good a bundle's answers are."""
    import onevision

    done = onevision.evaluate(
        bundle_folder(model, quiet=quiet),
        suite=suite,
        questions=questions,
        families=family or (),
        limit=limit,
        seed=seed,
        see=see,
        output=output,
        force=force,
        against=against,
        options=options,
        prefill=prefill,
        device=device,
        threads=threads,
        check=check,
        progress=ConsoleProgress(lines=False, quiet=quiet),
    )
    for warning in () if quiet else done.warnings:
        print_warning(warning)
    show(as_json, done.to_dict(), print_evaluation, done)
