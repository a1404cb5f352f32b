"""What the commands share: options, errors, JSON, tables on stdout, and progress on stderr."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onevision.errors import UsageError
from onevision.native.device import MAX_THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from onevision.progress import StepProgress

Model = Annotated[
    Path | None,
    typer.Option(
        "-m",
        "--model",
        metavar="FOLDER",
        envvar="ONEVISION_MODEL",
        help="The bundle.  [default: the tiny model]",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, or auto: the best there is.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_THREADS, metavar="N", help="CPU threads.  [default: all cores]"),
]
Prefill = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What reads the prompt: onnx (the bundle's prefill graph), llama, or auto: the graph if there "
        "is one and the prompt is long.",
    ),
]
MaxTiles = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Cut a single picture into at most N tiles, base view included: fewer are faster and show less. "
        "`onevision plan` lists what they cost.  [default: no limit]",
    ),
]
Detail = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Of a single picture: low is one tile, auto is as in training, high enlarges a small picture "
        "until it fills all tiles that the model takes.",
    ),
]
Dedup = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Encode frames of a video that differ by at most T levels of 255 on average only once; 0 for "
        "identical ones.  [default: off]",
    ),
]
TtftTarget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Choose the largest budget whose first token comes in TIME: 5s, 800ms or 1.5. Needs the times "
        "that `onevision bench --quick` keeps of a bundle.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
CheckSums = Annotated[bool, typer.Option("--check", help="Compare checksums of all files, not only sizes.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Keep what was computed of a picture in DIR: another question about it answers at once.",
    ),
]
Exif = Annotated[bool, typer.Option("--exif/--no-exif", help="Turn pictures as their EXIF data says.")]


def examples(about: str, *commands: str) -> str:
    r"""Help of a command: a sentence, and commands a line each (``\b`` keeps the lines)."""
    lines = "\n".join(f"  {command}" for command in commands)
    return f"{about}\n\n\b\nExamples:\n{lines}"


def bundle_folder(model: Path | None) -> Path:
    """The bundle that ``-m`` names, or the tiny model's.

    Raises:
        BundleError: See :func:`onevision.models.default_bundle`.
    """
    if model is not None:
        return model
    from onevision.models import default_bundle

    return default_bundle()


def one_of(value: str, known: tuple[str, ...], option: str) -> Any:  # noqa: ANN401
    """``value`` if it is one of the names of a Literal.

    Raises:
        UsageError: It is not.
    """
    if value not in known:
        raise UsageError(f"{option} is {value!r}", hint=f"one of {', '.join(known)}")
    return value


def duration(text: str | None, option: str) -> float | None:
    """Seconds of ``5s``, ``800ms`` or ``1.5``; None of None.

    Raises:
        UsageError: It is something else, or not more than 0.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) *(ms|s)?", text.strip())
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    if not 0 < seconds <= 1e6:
        raise UsageError(f"{option} is {text!r}", hint="a time of more than 0: 5s, 800ms or 1.5")
    return seconds


def print_error(message: str, hint: str | None) -> None:
    """An error as the user sees it, on stderr."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def print_warning(message: str) -> None:
    """Something unexpected that is no error, on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(data, ensure_ascii=False))


def stderr() -> Console:
    """A rich console on stderr. Names of files are text: nothing in them is markup."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def stdout() -> Console:
    """A rich console on stdout, like :func:`stderr`; lines are folded on a terminal only."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; where it is too wide, each row becomes its first cell with the others below.

    Args:
        columns: Names; the first column is text, the others are numbers.
        rows: Cells, which are never cut.
    """
    from rich.table import Table

    if not rows:
        return
    console = stdout()
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    roomy = console.options.update(max_width=sys.maxsize)
    if console.measure(table, options=roomy).maximum <= console.width:
        console.print(table)
        return
    for first, *cells in rows:
        console.print(first, style="bold")
        pairs = zip(columns[1:], cells, strict=True)
        named = (f"{name} {cell}".replace(" ", "\N{NO-BREAK SPACE}") for name, cell in pairs)
        for line in wrap("  ".join(named), console.width - 2, break_on_hyphens=False):
            console.print(f"  {line}")


def print_facts(facts: Mapping[str, str]) -> None:
    """Names and values in two columns on stdout; a long value goes on below itself."""
    from rich.text import Text

    console = stdout()
    indent = max(map(len, facts)) + 2
    for name, value in facts.items():
        lines = wrap(value, console.width - indent, break_on_hyphens=False) or [""]
        console.print(Text.assemble((name.ljust(indent), "bold"), ("\n" + " " * indent).join(lines)))


class ConsoleProgress:
    """Progress on stderr: a bar per step on a terminal, and a line when a step ends.

    Args:
        lines: Print a line at the end of each step, on a terminal or not.
    """

    def __init__(self, *, lines: bool = True) -> None:
        self._lines = lines

    @cached_property
    def _console(self) -> Console:
        return stderr()

    @contextmanager
    def step(self, name: str) -> Iterator[StepProgress]:
        """Show a bar while the body runs, and then its duration."""
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.text import Text

        started = time.perf_counter()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
        )
        console = self._console
        with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            task = bars.add_task(name, total=None, text="")

            def advance(fraction: float, text: str = "") -> None:
                bars.update(task, total=1.0, completed=fraction, text=text)

            yield advance
        if self._lines:
            took = f"{time.perf_counter() - started:.1f} s"
            console.print(Text.assemble(("✓", "green"), f" {name} ", (took, "dim")))

    def note(self, text: str) -> None:
        """Print a line between steps."""
        self._console.print(f"  {text}", style="dim", soft_wrap=True)
