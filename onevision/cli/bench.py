"""``onevision bench``: where the time goes, and how far that is from what the machine could do."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from onevision.cli.console import (
    CheckSums,
    Device,
    Json,
    Model,
    Threads,
    bundle_folder,
    examples,
    one_of,
    print_json,
    print_warning,
    stderr,
    stdout,
)
from onevision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onevision.bench.result import Result

HELP = examples(
    "Measure where the time goes, and how far that is from what this machine could do.",
    "onevision bench --quick",
    "onevision bench --scenario photo-1080p --scenario video-8 -m bundle --out before.json",
    "onevision bench --file photo.jpg --runs 10 --markdown -m bundle",
)

COMPARE_HELP = examples(
    "Compare two results stage by stage; exit status 1 if a stage became slower.",
    "onevision bench compare before.json after.json",
    "onevision bench compare before.json after.json --threshold 2% --json",
)

_RUNS = 5
#: Seconds that no round of runs may begin after.
_QUICK_BOX, _BOX = 240.0, 3600.0

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(parent: typer.Typer) -> None:
    """Add the command."""
    parent.add_typer(app, name="bench", help=HELP, short_help="Measure where the time goes.")


@app.callback()
def bench(
    context: typer.Context,
    model: Model = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only text and two usual pictures.")] = False,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="What to ask; repeatable. A wrong name lists them.  [default: all]"
        ),
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture or video of yours; repeatable.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs of each.")] = _RUNS,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="S",
            help="Begin no further round of runs that would end later; two are always made.  "
            f"[default: {_QUICK_BOX:.0f} with --quick, else {_BOX:.0f}]",
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    check: CheckSums = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the whole result as JSON.")
    ] = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row of each stage as CSV.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Measure a bundle."""
    if context.invoked_subcommand is not None:
        return
    from onevision.bench.benchmark import Benchmark, Settings
    from onevision.bench.result import write_result
    from onevision.bench.scenarios import choose
    from onevision.bundle import open_bundle
    from onevision.runtime import device as devices

    if as_json + as_csv + as_markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other")
    where = one_of(device, get_args(devices.Device), "--device")
    chosen = choose(scenario or (), file or (), quick=quick)
    settings = Settings(chosen, runs, seconds or (_QUICK_BOX if quick else _BOX), where, threads)
    bundle = open_bundle(bundle_folder(model), check=check)
    with _steps() as show:
        benchmark = Benchmark(bundle, settings, show)
        try:
            benchmark.run()
        except KeyboardInterrupt:
            print_warning("interrupted: the result has what was measured")
    result = benchmark.result
    if benchmark.problem:
        print_warning(benchmark.problem)
    if out:
        write_result(out, result)
    _print(result, "json" if as_json else "csv" if as_csv else "markdown" if as_markdown else "table")
    if result.interrupted:
        raise KeyboardInterrupt


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """A line that says what is being measured; on a terminal only, and redrawn only when that changes."""
    from rich.status import Status

    console = stderr()
    if not console.is_terminal:
        yield lambda _: None
        return
    with Status("", console=console, refresh_per_second=1) as status:
        yield status.update


def _print(result: Result, form: str) -> None:
    from onevision.bench import report

    if form == "json":
        print_json(asdict(result) | report.summary(result))
    elif form == "csv":
        print(report.to_csv(result), end="")
    elif form == "markdown":
        print(report.to_markdown(result), end="")
    else:
        _print_tables(result)


def _print_tables(result: Result) -> None:
    from onevision.bench import report

    console = stdout()
    model = result.model
    console.print(
        f"{model.name}, {model.vision} + {model.backbone}, {result.device}, {result.threads} threads; "
        f"{result.machine['cpu']}",
        style="bold",
    )
    if result.load:
        cold = f"{report.duration(result.load.cold)} cold, " if result.load.cold else ""
        console.print(f"loaded in {cold}{report.spread(result.load.warm)} warm")
    _print_table(report.COLUMNS, report.table(result))
    _print_table(report.share_columns(result), report.shares(result))
    for line in report.limits(result):
        console.print(line)
    for measured in result.measured:
        if measured.skipped:
            print_warning(f"{measured.scenario} {measured.subject}: {measured.skipped}")
        elif report.drifted(measured):
            print_warning(f"{measured.scenario} {measured.subject}: its runs gave different tokens")


def _print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    if lines:
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(columns):
            table.add_column(name, justify="right" if number else "left", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        stdout().print(table)


@app.command("compare", help=COMPARE_HELP, short_help="Tell a slower stage from noise.")
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A file of `bench --out`.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another one.")],
    threshold: Annotated[
        str, typer.Option(metavar="SHARE", help="A smaller change of a stage is none: 5% or 0.05.")
    ] = "5%",
    as_json: Json = False,
) -> None:
    """Compare two results."""
    from onevision.bench import compare as comparing
    from onevision.bench.report import duration
    from onevision.bench.result import read_result

    share = _share(threshold)
    found = comparing.compare(read_result(before), read_result(after), share)
    if as_json:
        print_json(found.to_dict())
    else:
        columns = ("scenario", "stage", "before", "after", "ratio", "interval", "verdict")
        lines = [
            (
                one.scenario,
                one.stage,
                duration(one.before),
                duration(one.after),
                f"{one.ratio:.3f}",
                f"{one.interval[0]:.3f} to {one.interval[1]:.3f}",
                one.verdict,
            )
            for one in found.differences
        ]
        _print_table(columns, lines)
        stdout().print(f"the machine itself took {found.machine:.3f} times as long for the same work")
    if found.regressions:
        raise typer.Exit(1)


def _share(text: str) -> float:
    """``5%`` or ``0.05``."""
    try:
        share = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--threshold is {text!r}", hint="a share from 0 to 1, or per cent: 5%")
    return share
