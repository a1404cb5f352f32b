"""Output of the commands: answers, JSON and tables on stdout, everything else on stderr."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from functools import cached_property
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from onevision._version import __version__
from onevision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

    from onevision.progress import StepProgress


#: Exit status after Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT

#: Letters between which a line may break: Chinese and Japanese, but not Korean, which has spaces.
_CJK = "\u2e80-\ua4cf\uf900-\ufaff\uff01-\uff60\U00020000-\U0003ffff"
#: Ends of lines, and words (a CJK letter, with what may not begin a line) with the spaces before them.
_PARTS = re.compile(rf"\s*?\n|[^\S\n]*(?:[{_CJK}][、。，．：；！？）」』】》〉]*|[^\s{_CJK}]+)|[^\S\n]+")


def duration(text: str | None, option: str) -> float | None:
    """Seconds of ``5s``, ``800ms`` or ``1.5``; None of None.

    Raises:
        UsageError: The text is not a time above 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) *(ms|s)?", text.strip())
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else 0.0
    if not 0 < seconds <= 1e6:
        raise UsageError(f"{option} is {text!r}, it must be a time above 0, such as 5s, 800ms or 1.5")
    return seconds


def print_error(message: str, hint: str | None, status: int = 1, *, as_json: bool = False) -> int:
    """Print an error and a hint on stderr, and as an object on stdout; returns the exit status."""
    print(f"error: {_one_line(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {_one_line(hint)}", file=sys.stderr)
    if as_json:
        print_json({"error": {"message": message, "hint": hint, "status": status}})
    return status


def print_warning(message: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {_one_line(message)}", file=sys.stderr)


def _one_line(text: str) -> str:
    """A text whose control characters, which a file name may have, are escaped."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


def print_next(command: str, *, quiet: bool = False) -> None:
    """Print the command that makes sense after this one, on stderr."""
    stderr(quiet=quiet).print(f"next: {command}", style="dim", soft_wrap=True)


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object on stdout, with the version of onevision."""
    print(json.dumps(data | {"onevision": __version__}, ensure_ascii=False))


def show(as_json: bool, data: dict[str, Any], table: Callable[..., object], *contents: object) -> None:
    """Print a result as JSON, or as ``table`` prints its contents."""
    if as_json:
        print_json(data)
    else:
        table(*contents)


def stderr(*, quiet: bool = False) -> Console:
    """A rich console on stderr. Names of files are text: nothing in them is markup."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False)


def stdout() -> Console:
    """A rich console on stdout, like :func:`stderr`; lines are folded on a terminal only."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            """Let the end of `| head` be no failure; rich's own exits with status 1."""
            raise BrokenPipeError

    console = Output(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, notes: bool = False) -> None:
    """Print a table on stdout; if it is too wide, more closely, or else each row as a paragraph.

    Args:
        columns: Names; the first column is text, the others are numbers.
        rows: Cells, which are never cut; an empty row is a blank line.
        notes: The last column is text as well.
    """
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    console = stdout()
    roomy = console.options.update(max_width=sys.maxsize)
    for gap, names in ((2, columns), (1, [name.replace(" ", "\n") for name in columns])):
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, gap - 1))
        for number, name in enumerate(names):
            is_text = number == 0 or (notes and number == len(columns) - 1)
            table.add_column(name, justify="left" if is_text else "right", no_wrap=True, vertical="bottom")
        for row in rows:
            table.add_row(*row)
        if console.measure(table, options=roomy).maximum <= console.width:
            with console.capture() as capture:
                console.print(table)
            print("\n".join(line.rstrip() for line in capture.get().rstrip().split("\n")))
            return
    for first, *cells in filter(None, rows):
        pairs = zip(columns[1:], map(str, cells), strict=True)
        named = (f"{name} {cell}".strip().replace(" ", "\N{NO-BREAK SPACE}") for name, cell in pairs if cell)
        text = "  ".join([str(first).strip(), *named])
        lines = Text("\n".join(wrap(text, console.width, subsequent_indent="  ", break_on_hyphens=False)))
        lines.stylize("bold", 0, len(str(first).strip()))
        console.print(lines)


def print_facts(facts: Mapping[str, str], console: Console | None = None) -> None:
    """Print names and values in two columns, on stdout by default; a long value is continued below itself."""
    from rich.text import Text

    console = console or stdout()
    indent = max(map(len, facts)) + 2
    for name, value in facts.items():
        lines = wrap(value, console.width - indent, break_on_hyphens=False) or [""]
        console.print(Text.assemble((name.ljust(indent), "bold"), ("\n" + " " * indent).join(lines)))


class ConsoleProgress:
    """Progress on stderr: a bar per step on a terminal, and a line when a step ends.

    Args:
        lines: Print a line at the end of each step, on a terminal or not.
        quiet: Print nothing at all.
    """

    def __init__(self, *, lines: bool = True, quiet: bool = False) -> None:
        self._lines, self._quiet = lines, quiet

    @cached_property
    def _console(self) -> Console:
        return stderr(quiet=self._quiet)

    @contextmanager
    def step(self, name: str) -> Iterator[StepProgress]:
        """Show a bar while the body runs, and then its duration."""
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
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
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            task = bars.add_task(name, total=None, text="")

            def advance(fraction: float | None, text: str = "") -> None:
                total = None if fraction is None else 1.0
                bars.update(task, total=total, completed=fraction, text=text)

            yield advance
        if self._lines:
            took = f"{time.perf_counter() - started:.1f} s"
            console.print(Text.assemble(("✓", "green"), f" {name} ", (took, "dim")))

    def note(self, text: str) -> None:
        """Print a line between steps."""
        self._console.print(f"  {text}", style="dim", soft_wrap=True)


class AnswerWriter:
    """An answer on stdout, piece by piece; on a terminal, a line ends between words.

    A word is shown when it is whole. One that is longer than a line breaks at the terminal's edge.
    """

    def __init__(self) -> None:
        self._columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self._column = 0  # cells that are taken in the line
        self._held = ""  # the last part, which may go on
        self._shown = 0  # characters of it that are written, since it is longer than a line

    def write(self, piece: str) -> None:
        """Write what is known to be whole."""
        if self._columns is None:
            print(piece, end="", flush=True)
            return
        from rich.cells import cell_len

        *parts, self._held = _PARTS.findall(self._held + piece.replace("\t", "    ")) or [""]
        for part in parts:
            self._place(part, self._columns)
        if cell_len(self._held.lstrip()) > self._columns:
            self._place(self._held, self._columns)
            self._shown = len(self._held)

    def _place(self, part: str, columns: int) -> None:
        """Write a part in this line or the next, or over the edge."""
        from rich.cells import cell_len

        word = part.lstrip()
        if part.endswith("\n"):
            part, self._column = "\n", 0
        elif self._column + cell_len(part) <= columns:
            self._column += cell_len(part)
        elif cell_len(word) <= columns:
            part, self._column = f"\n{word}", cell_len(word)
        else:
            part = part[self._shown :]
            for cells in map(cell_len, part):
                self._column = cells + (self._column if self._column + cells <= columns else 0)
        self._shown = 0
        print(part, end="", flush=True)

    def __enter__(self) -> AnswerWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._columns is not None:
            self._place(self._held.rstrip(), self._columns)


_STAGES = {"encode": "encoding tiles", "prefill": "reading the prompt"}


class AnswerProgress:
    """Bars for tiles and prompt tokens, on a terminal only, until the first piece of an answer.

    Args:
        start: Name of the work before the first tile or token.
        quiet: Show nothing.
    """

    def __init__(self, start: str, *, quiet: bool = False) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        console = stderr(quiet=quiet)
        if console.is_terminal and not quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=console, transient=True)
            self._tasks["start"] = self._bars.add_task(start, total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Receive the progress of a stage, see :data:`onevision.runtime.answer.OnProgress`."""
        if self._bars is not None:
            if "start" in self._tasks:
                self._bars.remove_task(self._tasks.pop("start"))
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(_STAGES.get(stage, stage), total=total)
            self._bars.update(self._tasks[stage], completed=done)

    def stop(self) -> None:
        """Remove the bars, before text is printed."""
        if self._bars is not None:
            self._bars.stop()

    def __enter__(self) -> AnswerProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
