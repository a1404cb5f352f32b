"""``onevision eval``: a suite or a user's questions, asked, scored, and compared with another run."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

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
    bundle_folder,
    examples,
    one_of,
    print_json,
    print_warning,
    stderr,
)
from onevision.cli.scores import print_comparison, print_scores
from onevision.errors import UsageError
from onevision.extras import require
from onevision.runtime.options import make_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from onevision.bundle import Bundle
    from onevision.eval.ask import Answerer, Settings
    from onevision.eval.questions import TinySuite
    from onevision.eval.records import AnswersFile, Record
    from onevision.eval.suite import Sample
    from onevision.native.device import Device as DeviceName
    from onevision.runtime.prefill.policy import Prefill as PrefillName

    Questions = TinySuite | tuple[Sample, ...]
    Asked = tuple[str, Answerer, int]  # name, what is asked, pixels a side of its tiles
    Opened = AbstractContextManager[Asked]

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

_SUITES = ("tiny",)
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
    answers: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--answers",
            metavar="FILE",
            help="Write the answers as JSONL. A run that was stopped leaves FILE.part, and goes on after it.",
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
    from onevision.bundle import open_bundle
    from onevision.eval.ask import See, Settings, run_id
    from onevision.eval.compare import compare
    from onevision.eval.records import AnswersFile
    from onevision.eval.report import report
    from onevision.native import device as devices
    from onevision.runtime.prefill import policy as prefiller

    # Whatever can be wrong is looked at before a model is loaded.
    options = make_options(
        {
            "max_tokens": max_tokens,
            "frames": frames,
            "max_tiles": max_tiles,
            "detail": detail,
            "dedup": dedup,
        }
    )
    settings = Settings(
        one_of(see, get_args(See), "--see"), max_tokens, frames, max_tiles, options.detail, dedup
    )
    where = one_of(device, get_args(devices.Device), "--device")
    asked = _questions(suite, questions, family or [], limit, seed, frames)
    if force and answers is None:
        raise UsageError("--force belongs to -o/--answers: nothing else is written")
    file = AnswersFile(answers, force=force) if answers else None
    reader = one_of(prefill, get_args(prefiller.Prefill), "--prefill")
    load = partial(_bundle, device=where, threads=threads)
    other = _other(against, asked, load, settings, check=check) if against else None
    bundle = open_bundle(bundle_folder(model), check=check)
    run = run_id(bundle.manifest, settings, reader)
    if file:
        file.check(asked, run)

    records = _run(partial(load, bundle, prefill=reader), asked, settings, run, file)
    _warn_of_errors(records)
    scores = report(records)
    if not as_json:
        print_scores(scores)
    source = {"questions": str(questions)} if questions else {"suite": _SUITES[0], "seed": seed or 0}
    data = {"bundle": str(bundle.folder), **source, **asdict(settings), "prefill": reader, **scores.to_dict()}
    if other is not None:
        # The first model is closed: two never share the memory.
        theirs = other if isinstance(other, list) else _run(other, asked, settings, str(against))
        comparison = compare(records, theirs)
        data["against"] = {"name": str(against), **comparison.to_dict()}
        if not as_json:
            print_comparison(comparison, scores, str(against))
    if as_json:
        print_json(data)


def _questions(
    suite: str | None,
    questions: Path | None,
    families: Sequence[str],
    limit: int | None,
    seed: int | None,
    frames: int | None,
) -> Questions:
    """What is asked, of the suite or the user's file."""
    from onevision.eval.questions import read_questions, tiny_suite

    if questions is None:
        one_of(suite or _SUITES[0], _SUITES, "--suite")
        if frames is not None:
            raise UsageError("--frames is for --questions: the videos of a suite are seen whole")
        return tiny_suite(families, limit=limit, seed=seed or 0)
    if suite is not None or seed is not None:
        raise UsageError("--questions stands instead of --suite and --seed")
    return read_questions(questions, families, limit=limit)


def _other(
    against: Path, asked: Questions, load: Callable[[Bundle], Opened], settings: Settings, *, check: bool
) -> Callable[[], Opened] | list[Record]:
    """What to compare with: something still to be asked, or the records of another run."""
    from onevision.bundle import MANIFEST, open_bundle
    from onevision.eval.compare import matched
    from onevision.eval.records import read_records

    if against.is_file():
        return matched(asked, read_records(against), against)
    if (against / "config.json").is_file() and not (against / MANIFEST).is_file():
        if not settings.is_reference:
            raise UsageError(
                "a checkpoint in transformers takes no --max-tiles, --detail or --dedup",
                hint="compare with a bundle, or with the answers file of another run",
            )
        require("proof", "a checkpoint in transformers")
        return partial(_reference, against)
    return partial(load, open_bundle(against, check=check))


@contextmanager
def _bundle(
    bundle: Bundle, *, device: DeviceName, threads: int | None, prefill: PrefillName = "llama"
) -> Iterator[Asked]:
    """A bundle, loaded and closed again."""
    from onevision.eval.ask import of_bundle
    from onevision.runtime.engine import OneVision

    with OneVision(bundle, device=device, threads=threads, prefill=prefill) as model:
        yield bundle.manifest.name, of_bundle(model), model.preparer.anyres.tile


@contextmanager
def _reference(folder: Path) -> Iterator[Asked]:
    """A checkpoint in transformers."""
    with ConsoleProgress().step("loading the reference"):
        from onevision.eval.reference import ReferenceModel

        reference = ReferenceModel(folder)
    yield "reference", reference, reference.tile


def _run(
    load: Callable[[], Opened],
    asked: Questions,
    settings: Settings,
    run: str,
    file: AnswersFile | None = None,
) -> list[Record]:
    """Load a model and ask it everything; with a file, go on after what is kept there."""
    from onevision.eval.ask import ask

    records = list(file.kept) if file else []
    if file and records:
        stderr().print(f"going on after {len(records):,} answers in {file.part}", style="dim")
    try:
        with (
            file.writing() if file else nullcontext() as write,
            load() as (name, answerer, tile),
            _progress(name, len(asked), records) as show,
        ):
            rest = islice(asked, len(records), None)
            for record in ask(answerer, rest, settings, tile=tile, run=run):
                if write:
                    write(record)
                records.append(record)
                show()
    finally:
        if file and (kept := file.count()):
            print_warning(
                f"{kept:,} of {len(asked):,} answers are kept in {file.part}: "
                "the same command goes on after them"
            )
    return records


@contextmanager
def _progress(name: str, total: int, records: Sequence[Record]) -> Iterator[Callable[[], None]]:
    """A bar with the share of right answers so far; on a terminal only."""
    console = stderr()
    if not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    right = sum(record.right for record in records)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[right]:.0%} right"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(name, total=total, completed=len(records), right=right / max(1, len(records)))

        def show() -> None:
            nonlocal right
            right += records[-1].right
            bars.update(task, completed=len(records), right=right / len(records))

        yield show


def _warn_of_errors(records: Sequence[Record]) -> None:
    bad = [record for record in records if record.error is not None]
    if bad:
        counted = "1 question" if len(bad) == 1 else f"{len(bad):,} questions"
        print_warning(f"{counted} could not be asked, and count as wrong; {bad[0].id}: {bad[0].error}")
