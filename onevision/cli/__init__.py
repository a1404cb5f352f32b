"""The command line: parse, call, print. One file per group of commands, imported when it is needed.

Answers and ``--json`` go to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onevision import __version__
from onevision.cli import check, export, plan, run
from onevision.cli.console import print_error
from onevision.errors import OneVisionError

if TYPE_CHECKING:
    from types import FrameType

#: Base of the argument parser's own errors; typer brings the parser along and exports only some of it.
_ParserError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="onevision",
    help="LLaVA-OneVision on a laptop: export to ONNX and GGUF, run without torch, prove the answers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (export, run, plan, check):
    module.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"onevision {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="ONEVISION_DEBUG", help="Show a traceback with an error.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = debug


def main() -> None:
    """Entry point of the ``onevision`` command."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments[:1] or os.environ.get("ONEVISION_DEBUG") == "1"
    try:
        code = app(arguments, prog_name="onevision", standalone_mode=False)
        sys.stdout.flush()
    except OneVisionError as error:
        if debug:
            traceback.print_exc()
        print_error(error.message, error.hint)
        return error.exit_code
    except _ParserError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "onevision"
        print_error(_sentence(error.format_message()), f"{command} --help")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print_error("interrupted", None)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone: nothing more to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _sentence(text: str) -> str:
    """In the form of our own messages: lower-case start, no full stop."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    """Leave by an exception, so that half-written work is removed."""
    sys.exit(143)
