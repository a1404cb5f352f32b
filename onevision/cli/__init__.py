"""The command line: parse, call, print. One file per group of commands, imported when it is needed.

Answers and ``--json`` go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onevision._version import __version__
from onevision.cli import bench, chat, check, demo, evaluate, export, plan, quant, run
from onevision.cli.console import print_error
from onevision.errors import OneVisionError

if TYPE_CHECKING:
    from types import FrameType

#: Base of the argument parser's own errors; typer brings the parser along and exports only some of it.
_ParserError: Any = typer.BadParameter.__mro__[2]

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="onevision",
    help="LLaVA-OneVision on a laptop: export to ONNX and GGUF, run without torch, prove the answers.",
    add_completion=False,
    rich_markup_mode=None,  # plain help: nothing is cut off in 80 columns, and it needs no rich
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (export, run, chat, demo, evaluate, bench, plan, check, quant):
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"onevision {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _debug: Annotated[
        bool,
        typer.Option("--debug", help="Show a traceback with an error, as ONEVISION_DEBUG=1 does."),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
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
    try:
        code = app(arguments, prog_name="onevision", standalone_mode=False)
        sys.stdout.flush()
    except OneVisionError as error:
        _show_traceback(debug)
        print_error(error.message, error.hint)
        return error.exit_code
    except _ParserError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "onevision"
        print_error(_sentence(error.format_message()), f"{command} --help")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone: nothing more to say, and nobody to say it to.
        _discard_stdout()
        return 1
    except OSError as error:
        # Whatever reads or writes a file of the user's says which; what is left is our own output.
        _show_traceback(debug)
        print_error(f"the operating system refused: {error.strerror or error}", None)
        _discard_stdout()
        return 1
    if code == _INTERRUPTED:
        print_error("interrupted", None)
    return code if isinstance(code, int) else 0


def _show_traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _sentence(text: str) -> str:
    """In the form of our own messages: lower-case start, no full stop."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _prepare_streams() -> None:
    """UTF-8 whatever the locale, and the null device where the caller has closed a stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):
        # A file name may have bytes that are no UTF-8; inside JSON its escape is JSON's own.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _discard_stdout() -> None:
    """Let what is still buffered go nowhere when Python exits, instead of failing once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    """Leave by an exception, so that half-written work is removed."""
    sys.exit(_TERMINATED)
