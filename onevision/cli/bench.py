"""``onevision bench``: where the time goes, and how far that is from what the machine could do."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from onevision.cli.console import (
    CheckSums,
    ConsoleProgress,
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
from onevision.errors import OneVisionError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onevision.bench.result import Result
    from onevision.bundle import Bundle
    from onevision.native.device import Device as DeviceName

HELP = examples(
    "Measure where the time goes, and how far that is from what this machine could do. At the end, the times "
    "that --ttft-target of `run` and `plan` needs are measured and kept.",
    "onevision bench --quick",
    "onevision bench --scenario photo-1080p --scenario video-8 -m bundle --out before.json",
    "onevision bench --file photo.jpg --runs 10 --markdown -m bundle",
    "onevision bench --synthetic 0.5b --quick",
    "onevision bench --isolate -m bundle --out result.json",
    "onevision bench --quick --against transformers-bf16,llama -m bundle --checkpoint model",
)

COMPARE_HELP = examples(
    "Compare two results stage by stage; exit status 1 if a stage became slower.",
    "onevision bench compare before.json after.json",
    "onevision bench compare before.json after.json --threshold 2% --json",
)

PLOT_HELP = examples(
    "Draw results as pictures and one HTML file: where the time goes, latency by tiles, decode by context.",
    "onevision bench plot result.json",
    "onevision bench plot before.json after.json --out plots",
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
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate", help="Each scenario in a fresh process, so that its memory is its own; no turns."
        ),
    ] = False,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of a bundle: a 0.5b or 7b with random weights, which is made once into the cache.",
        ),
    ] = None,
    vision: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Its encoder in fp32, fp16 or int8.  [default: int8, on a GPU fp16]"
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Its language model, as in `export`.  [default: q4_0]"),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Measure others beside, in turn: transformers (transformers-bf16, transformers-fp32), "
            "openvino (the encoder), llama (the bundle without its prefill graph); repeatable.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What transformers loads.  [default: what the bundle was made of, where that is found]",
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
    from onevision.bench.gpu import require_cuda
    from onevision.bench.isolate import IsolatedBenchmark
    from onevision.bench.peers import choose_peers
    from onevision.bench.result import write_result
    from onevision.bench.scenarios import choose
    from onevision.bundle import open_bundle
    from onevision.native import device as devices

    if as_json + as_csv + as_markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other")
    where = one_of(device, get_args(devices.Device), "--device")
    chosen = choose(scenario or (), file or (), quick=quick)
    if synthetic is None and (vision or backbone):
        raise UsageError("--vision and --backbone are for --synthetic", hint="a bundle has its precisions")
    given = context.get_parameter_source("model")
    if synthetic is not None and given is not None and given.name == "COMMANDLINE":
        raise UsageError("--synthetic and --model exclude each other")
    if isolate and against:
        raise UsageError(
            "--isolate and --against exclude each other", hint="others have processes of their own anyway"
        )
    peers = choose_peers(against or ())
    box = seconds or (_QUICK_BOX if quick else _BOX)
    settings = Settings(chosen, runs, box, where, threads, against=peers, checkpoint=checkpoint)
    if where == "cuda":
        require_cuda()  # before a bundle is made, which takes minutes
        vision = vision or "fp16"  # graphs in int8 are made for CPUs
    folder = _synthetic(synthetic, vision, backbone, threads) if synthetic else bundle_folder(model)
    bundle = open_bundle(folder, check=check)
    stopped = False
    with _steps() as show:
        benchmark = (IsolatedBenchmark if isolate else Benchmark)(bundle, settings, show)
        try:
            benchmark.run()
            _calibrate(bundle, where, benchmark.result.threads, show)
        except KeyboardInterrupt:
            stopped = True
            print_warning("interrupted: the result has what was measured")
    result = benchmark.result
    if out:
        write_result(out, result)
    _print(result, "json" if as_json else "csv" if as_csv else "markdown" if as_markdown else "table")
    if stopped:
        raise KeyboardInterrupt


def _calibrate(bundle: Bundle, device: DeviceName, threads: int, show: Callable[[str], object]) -> None:
    """Keep what ``--ttft-target`` needs; where that fails, the result is good all the same."""
    from onevision.bench.calibrate import keep_calibration

    try:
        keep_calibration(bundle, device, threads, show)
    except OneVisionError as error:
        print_warning(f"times to the first token cannot be predicted: {error.message}")


def _synthetic(size: str, vision: str | None, backbone: str | None, threads: int | None) -> Path:
    """Folder of the bundle with random weights; says where it is."""
    from onevision.bench.synthetic import Synthetic, synthetic_bundle
    from onevision.bundle import open_bundle
    from onevision.files import readable
    from onevision.models.shapes import PublishedSize
    from onevision.native.quantize import BackbonePrecision
    from onevision.quant.requantise import EncoderPrecision

    wanted = Synthetic(
        one_of(size, get_args(PublishedSize), "--synthetic"),
        one_of(vision or Synthetic.vision, get_args(EncoderPrecision), "--vision"),
        one_of(backbone or Synthetic.backbone, get_args(BackbonePrecision), "--backbone"),
    )
    progress = ConsoleProgress()
    folder = synthetic_bundle(wanted, progress, threads=threads)
    disk = readable(open_bundle(folder).bytes)
    progress.note(f"weights are random, only times mean something: {folder}, {disk}")
    return folder


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
    _print_table(report.AGAINST, report.against(result))
    for line in report.limits(result):
        console.print(line)
    for line in report.skipped(result):
        print_warning(line)
    for measured in result.measured:
        if report.drifted(measured):
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
    from onevision.bench.peers import PEERS
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
                f"{one.scenario} {one.subject}" if one.subject in PEERS else one.scenario,
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


@app.command("plot", help=PLOT_HELP, short_help="Draw results.")
def plot(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Files of `bench --out`.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER", help="Where they go.  [default: the first result's name, -plots]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw results."""
    from onevision.bench.page import write_plots
    from onevision.bench.plot import missing_package, named
    from onevision.bench.result import read_result

    if missing := missing_package():
        raise UsageError(f"this command needs {missing}", hint="pip install 'onevision[bench]'")
    found = named(results, [read_result(path) for path in results])
    files = write_plots(found, out or Path(f"{results[0].stem}-plots"))
    if as_json:
        print_json({"files": list(map(str, files))})
    else:
        print(*files, sep="\n")


def _share(text: str) -> float:
    """``5%`` or ``0.05``."""
    try:
        share = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--threshold is {text!r}", hint="a share from 0 to 1, or per cent: 5%")
    return share
