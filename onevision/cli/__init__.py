"""The command line: parse, call a function of :mod:`onevision`, print. One module per group of commands.

Answers and ``--json`` go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException

from onevision._version import __version__
from onevision.cli import bench, cache, chat, check, demo, evaluate, export, models, plan, quant, run
from onevision.cli.console import INTERRUPTED, print_error
from onevision.cli.usage import explain
from onevision.errors import OneVisionError

if TYPE_CHECKING:
    from types import FrameType

_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="onevision",
    help="LLaVA-OneVision on a laptop: export to ONNX and GGUF, run without torch, prove the answers.",
    rich_markup_mode=None,  # plain help: nothing is cut off in 80 columns, and it needs no rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (export, run, chat, demo, evaluate, bench, plan, check, models, quant, cache):
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"onevision {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error, as ONEVISION_DEBUG=1 does.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``onevision`` command."""
    _prepare_streams()
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments or os.environ.get("ONEVISION_DEBUG", "0") not in {"", "0"}
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    if arguments[0] in ("help", "version"):  # commands that people try
        arguments = [*arguments[1:], f"--{arguments[0]}"]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    report = partial(print_error, as_json="--json" in options)
    try:
        code = app(arguments, prog_name="onevision", standalone_mode=False)
        sys.stdout.flush()
    except OneVisionError as error:
        _show_traceback(debug)
        return report(error.message, error.hint, error.exit_code)
    except TyperException as error:
        return report(*explain(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (SystemExit, BrokenPipeError) as end:
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            return int(end.code or 0)  # SIGTERM, or reported where it happened
        # The reader of our output has what it wanted, as in `| head`.
        _discard_stdout()
        return 0
    except OSError as error:
        # Errors with the user's files are reported where they happen; this one is about our own output.
        _show_traceback(debug)
        print_error(f"the operating system refused: {error.strerror or error}", None)
        _discard_stdout()
        return 1
    if code == INTERRUPTED:
        return report("interrupted", None, INTERRUPTED)
    return code if isinstance(code, int) else 0


def _show_traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _prepare_streams() -> None:
    """Use UTF-8 in every locale, and the null device in the place of a closed stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):
        # A file name may have bytes that are not UTF-8; inside JSON its escape is JSON's own.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _discard_stdout() -> None:
    """Send what is still buffered to the null device, instead of failing again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    """Exit by an exception, so that half-written work is removed."""
    sys.exit(_TERMINATED)
