"""``onevision eval``: a suite or a user's questions, asked, scored, and compared with another run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from onevision.cli.console import (
    CheckSums,
    ConsoleProgress,
    Dedup,
    Detail,
    Device,
    Json,
    MaxTiles,
    Model,
    Prefill,
    Threads,
    examples,
    one_of,
    print_json,
    print_warning,
)
from onevision.cli.scores import print_comparison, print_scores
from onevision.errors import UsageError
from onevision.runtime.options import make_options

HELP = examples(
    "Measure how good a bundle's answers are.",
    "onevision eval --limit 260",
    "onevision eval --family small_print --see base -o base.jsonl",
    "onevision eval --family small_print --max-tiles 3 --against all.jsonl",
    "onevision eval --questions mine/ --json -m bundle",
    "onevision eval -m small --against bundle -o small.jsonl",
    "onevision eval -m bundle --against checkpoint --limit 500",
    "onevision eval -m bundle --prefill onnx --against bundle --limit 1000",
)

_MAX_TOKENS = 64  # enough for the suite's longest sentence, and an end for a model that babbles


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval", help=HELP, short_help="Measure how good the answers are.")(evaluate)


def evaluate(
    model: Model = None,
    suite: Annotated[
        str | None, typer.Option(metavar="NAME", help="A suite of generated questions.  [default: tiny]")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACE",
            help="Instead of a suite: a JSONL file, or a folder with questions.jsonl. A line is an object "
            "with prompt, answer or answers, and image, images or video; and, if you like, form (short, "
            "letter or sentence), family and id.",
        ),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only questions of this family; repeatable.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Most questions.  [default: 100 of each family of a suite; all of yours]"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Which questions a suite draws.  [default: 0]")
    ] = None,
    see: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="all; base: a picture is squashed to one tile, so that AnyRes' grid shows nothing more; "
            "nothing: no picture or video is given.",
        ),
    ] = "all",
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", metavar="N", help="Longest answer.")
    ] = _MAX_TOKENS,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", help="Frames taken from each of your videos.  [default: the bundle's]"),
    ] = None,
    max_tiles: MaxTiles = None,
    detail: Detail = "auto",
    dedup: Dedup = None,
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
) -> None:
    """Measure how good a bundle's answers are."""
    from onevision.eval.ask import EvalSettings, See
    from onevision.eval.evaluate import evaluate as run
    from onevision.eval.questions import choose_questions
    from onevision.eval.records import AnswersFile
    from onevision.native import device as devices
    from onevision.runtime import options as answering

    # Check everything before a model is loaded.
    options = make_options(
        {
            "max_tokens": max_tokens,
            "frames": frames,
            "max_tiles": max_tiles,
            "detail": detail,
            "dedup": dedup,
        }
    )
    settings = EvalSettings(
        one_of(see, get_args(See), "--see"), max_tokens, frames, max_tiles, options.detail, dedup
    )
    where = one_of(device, get_args(devices.Device), "--device")
    reader = one_of(prefill, get_args(answering.Prefill), "--prefill")
    chosen = choose_questions(suite, questions, families=family or (), limit=limit, seed=seed)
    if force and output is None:
        raise UsageError("--force needs -o/--output: no other file is written")
    answers = AnswersFile(output, force=force) if output else None
    done = run(
        model,
        chosen,
        settings,
        ConsoleProgress(lines=False),
        answers=answers,
        against=against,
        prefill=reader,
        device=where,
        threads=threads,
        check=check,
    )
    for warning in done.warnings:
        print_warning(warning)
    if as_json:
        print_json(done.to_dict())
    else:
        print_scores(done.report)
        if done.comparison is not None:
            print_comparison(done.comparison, done.report, str(done.against))
