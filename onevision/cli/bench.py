"""``onevision bench``: time by stage, beside the machine's limits, other engines and earlier results."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onevision.cli.console import (
    INTERRUPTED,
    ConsoleProgress,
    print_error,
    print_json,
    print_table,
    print_warning,
    show,
    stdout,
)
from onevision.cli.options import (
    CheckSums,
    Command,
    Device,
    Json,
    Model,
    Threads,
    answer_options,
    bundle_folder,
    examples,
)
from onevision.errors import UsageError
from onevision.models.shapes import SynthSize
from onevision.precisions import BackbonePrecision, EncoderPrecision
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from onevision.bench.compare import BenchComparison
    from onevision.bench.result import Result

HELP = examples(
    "Measure where the time goes, and how close it is to this machine's limits. The last step measures the "
    "speed profile that --ttft-target of `run` and `plan` needs.",
    "onevision bench --quick",
    "onevision bench --scenario photo-1080p --scenario video-8 -m bundle --output before.json",
    "onevision bench --file photo.jpg --runs 10 --markdown -m bundle",
    "onevision bench --synthetic 0.5b --quick",
    "onevision bench --isolate -m bundle --output result.json",
    "onevision bench --quick --against transformers-bf16,llama -m bundle --checkpoint model",
)
COMPARE_HELP = examples(
    "Compare two results stage by stage. Exit status 1 if a stage became slower, 2 if that cannot be told: "
    "too few runs, or the machine's own speed changed too much.",
    "onevision bench compare before.json after.json",
    "onevision bench compare before.json after.json --threshold 2% --json",
)
PLOT_HELP = examples(
    "Draw results as PNG files and one HTML page: time by stage, latency by tiles, decoding by context.",
    "onevision bench plot result.json",
    "onevision bench plot before.json after.json --output plots",
)

_RUNS = 5
_QUICK_SECONDS, _SECONDS = 240.0, 3600.0
_SLOWER, _INCONCLUSIVE = 1, 2  # exit statuses of compare

Scenarios = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Scenario; repeatable. An unknown name lists them.  [default: all]"),
]
Files = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="Your own image or video; repeatable.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Only text and two common image sizes.")]
Runs = Annotated[int, typer.Option(min=1, metavar="N", help="Timed runs per scenario.")]
Seconds = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="S",
        help="Time budget: no new round starts if it would end after S seconds (at least two rounds run).  "
        f"[default: {_QUICK_SECONDS:.0f} with --quick, else {_SECONDS:.0f}]",
    ),
]
Isolate = Annotated[
    bool,
    typer.Option("--isolate", help="Run each scenario in a fresh process, so that its memory is its own."),
]
Synthesized = Annotated[
    SynthSize | None,
    typer.Option(help="Instead of a bundle: a 0.5b or 7b with random weights, made once into the cache."),
]
Vision = Annotated[
    EncoderPrecision | None,
    typer.Option(metavar="TYPE", help="Its encoder: fp32, fp16 or int8.  [default: int8, fp16 on a GPU]"),
]
Backbone = Annotated[
    BackbonePrecision | None,
    typer.Option(metavar="TYPE", help="Its language model, as in `export`.  [default: q4_0]"),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="Also measure these engines, alternating with onevision; repeatable: transformers "
        "(transformers-bf16, transformers-fp32), openvino and openvino-int8 (the encoder of an fp32 bundle), "
        "llama (the bundle without its prefill graph).",
    ),
]
CheckpointFolder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Checkpoint for transformers.  [default: the bundle's, if found]"),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the whole result as JSON.")
]
Csv = Annotated[bool, typer.Option("--csv", help="Print a CSV row per stage.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")]

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(parent: typer.Typer) -> None:
    """Add the command."""
    parent.add_typer(app, name="bench", help=HELP, short_help="Measure where the time goes.")


@app.callback()
@answer_options("template", "system")
def bench(
    context: typer.Context,
    model: Model = None,
    quick: Quick = False,
    scenario: Scenarios = None,
    file: Files = None,
    runs: Runs = _RUNS,
    seconds: Seconds = None,
    isolate: Isolate = False,
    synthetic: Synthesized = None,
    vision: Vision = None,
    backbone: Backbone = None,
    against: Against = None,
    checkpoint: CheckpointFolder = None,
    *,
    options: AnswerOptions,
    device: Device = "auto",
    threads: Threads = None,
    check: CheckSums = False,
    output: Output = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    as_json: Json = False,
    as_csv: Csv = False,
    as_markdown: Markdown = False,
) -> None:
    """Measure a bundle."""
    if context.invoked_subcommand is not None:
        return
    import onevision
    from onevision.bench.machine import require_cuda
    from onevision.bench.result import write_result

    if as_json + as_csv + as_markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other")
    given = context.get_parameter_source("model")
    if synthetic and given is not None and given.name == "COMMANDLINE":
        raise UsageError("--synthetic and --model exclude each other")
    if synthetic is None and (vision or backbone):
        raise UsageError("--vision and --backbone are for --synthetic", hint="a bundle has its precisions")
    if output is not None and output.exists() and not force:
        raise UsageError(f"{output} exists", hint="--force replaces it")
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UsageError(f"cannot write {output}", hint="name a file in a folder that exists")
    if device == "cuda":
        require_cuda()  # before a bundle is made, which takes minutes
        vision = vision or "fp16"  # int8 graphs are made for CPUs
    result = onevision.benchmark(
        _synthetic(synthetic, vision, backbone, threads) if synthetic else bundle_folder(model),
        scenarios=scenario or (),
        files=file or (),
        quick=quick,
        runs=runs,
        seconds=seconds,
        isolate=isolate,
        against=against or (),
        checkpoint=checkpoint,
        template=options.template,
        system=options.system,
        device=device,
        threads=threads,
        check=check,
        progress=ConsoleProgress(lines=False),
    )
    if output:
        write_result(output, result)
    _print(result, "json" if as_json else "csv" if as_csv else "markdown" if as_markdown else "table")
    if result.interrupted:
        raise SystemExit(print_error("interrupted", None, INTERRUPTED))  # the result is printed already


def _synthetic(
    size: SynthSize, vision: EncoderPrecision | None, backbone: BackbonePrecision | None, threads: int | None
) -> Path:
    """Folder of the bundle with random weights."""
    from onevision.bench.synthetic import Synthetic, synthetic_bundle
    from onevision.bundle import open_bundle
    from onevision.files import readable

    wanted = Synthetic(size, vision or Synthetic.vision, backbone or Synthetic.backbone)
    progress = ConsoleProgress()
    folder = synthetic_bundle(wanted, progress, threads=threads)
    disk = readable(open_bundle(folder).bytes)
    progress.note(f"weights are random, only times mean something: {folder}, {disk}")
    return folder


def _print(result: Result, form: str) -> None:
    from onevision.bench import report

    if form == "json":
        print_json(asdict(result) | report.summary(result))
    elif form == "csv":
        print(report.to_csv(result), end="")
    elif form == "markdown":
        print(report.to_markdown(result), end="")
    else:
        console = stdout()
        console.print(report.heading(result), style="bold")
        if load := result.load:
            console.print(f"loaded in {report.loaded(load)}")
        for table in report.tables(result):
            print()
            print_table(table.columns, table.rows)
        print()
        for line in report.limits(result):
            console.print(line)
        for line in report.warnings(result):
            print_warning(line)


@app.command("compare", cls=Command, help=COMPARE_HELP, short_help="Tell a slower stage from noise.")
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A file of `bench --output`.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another one.")],
    threshold: Annotated[
        str, typer.Option(metavar="SHARE", help="Ignore changes smaller than this: 5% or 0.05.")
    ] = "5%",
    as_json: Json = False,
) -> None:
    """Compare two results."""
    from onevision.bench import compare as comparing
    from onevision.bench.result import read_result

    share = _share(threshold)
    comparison = comparing.compare(read_result(before), read_result(after), share)
    show(as_json, comparison.to_dict(), _print_changes, comparison)
    if comparison.regressions:
        raise typer.Exit(_SLOWER)
    if comparison.ours("inconclusive"):
        raise typer.Exit(_INCONCLUSIVE)


def _print_changes(comparison: BenchComparison) -> None:
    from onevision.bench.report import changes

    table = changes(comparison)
    print_table(table.columns, table.rows)
    stdout().print(comparison.note)


@app.command("plot", cls=Command, help=PLOT_HELP, short_help="Draw results.")
def plot(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Files of `bench --output`.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Folder.  [default: <first result>-plots]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw results."""
    from onevision.bench.plot import label_results, write_plots
    from onevision.bench.result import read_result
    from onevision.extras import require

    require("bench", "plotting")
    labeled = label_results(results, [read_result(path) for path in results])
    files = write_plots(labeled, output or Path(f"{results[0].stem}-plots"))
    show(as_json, {"files": list(map(str, files))}, print, "\n".join(map(str, files)))


def _share(text: str) -> float:
    """``5%`` or ``0.05``."""
    try:
        share = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(f"--threshold is {text!r}", hint="a share from 0 to 1, or percent: 5%")
    return share
