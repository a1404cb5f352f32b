"""Options shared by the commands, and the options of an answer from the fields of :class:`AnswerOptions`."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from onevision.cli.console import ConsoleProgress, duration
from onevision.errors import UsageError
from onevision.named import named_bundle
from onevision.native.device import MAX_THREADS
from onevision.native.device import Device as DeviceName
from onevision.runtime.options import AnswerOptions, make_options
from onevision.runtime.options import Prefill as PrefillName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Function = Callable[..., Any]

#: For newcomers whose photo goes to the default model.
TINY_NOTE = "note: this is the tiny demo model, which knows drawings alone; for photos: -m 0.5b"
INPUT, MACHINE = "Input", "Machine"  # groups of options in the help, beside those of AnswerOptions


def choices(kind: object) -> str:
    """Names of a Literal for the help: ``auto|cpu|cuda``."""
    return "|".join(get_args(kind))


_MODEL = "Folder of the bundle, or a size (0.5b, 7b-si) or Hub id: fetched or exported once, into the cache."
Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME",
        envvar="ONEVISION_MODEL",
        help=f"{_MODEL}  [default: the tiny model]",
        show_default=False,
        rich_help_panel=INPUT,
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "-i",
        "--image",
        metavar="FILE",
        help="An image; repeat -i for several. - reads one from stdin.",
        rich_help_panel=INPUT,
    ),
]
Videos = Annotated[
    list[str] | None,
    typer.Option(
        "-v",
        "--video",
        metavar="FILE",
        help="A video, or a folder of frames; repeat -v for several. Needs onevision[video].",
        rich_help_panel=INPUT,
    ),
]
Device = Annotated[
    DeviceName,
    typer.Option(
        metavar=choices(DeviceName),
        help="Processor; auto is a GPU that both libraries can use.",
        rich_help_panel=MACHINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_THREADS,
        metavar="N",
        help="CPU threads.  [default: all cores]",
        rich_help_panel=MACHINE,
    ),
]
Prefill = Annotated[
    PrefillName,
    typer.Option(
        metavar=choices(PrefillName),
        help="Prefill backend: onnx is the bundle's prefill graph; auto takes it for long prompts.",
        rich_help_panel=MACHINE,
    ),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Cache image features and video frames in DIR, so that further questions start almost at once.",
        rich_help_panel=MACHINE,
    ),
]
CheckSums = Annotated[
    bool,
    typer.Option("--check", help="Compare checksums of all files, not only sizes.", rich_help_panel=MACHINE),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, warnings or statistics.")]


_PATHS = ("FILE", "FOLDER", "DIR", "PLACE")


class Command(TyperCommand):
    """A command whose help lists its options in groups, and its arguments without Python types."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse; an empty path, as of an unset variable, is not taken for the working folder."""
        for flag, value in zip(["", *args], args, strict=False):
            name, sign, text = value.partition("=")
            name = name if sign and not text else flag if not value else ""
            if any(name in param.opts and getattr(param, "metavar", "") in _PATHS for param in self.params):
                raise UsageError(f"{name} is empty", hint="name a file or folder")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write a section per group; options without a group come last."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is None:
                continue
            if param.param_type_name == "argument":
                groups["Arguments"].append((_name(param), record[1]))
            else:
                groups.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        groups["Options"] = groups.pop("Options")
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Names of the arguments, in brackets if they may be left out."""
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(_name(each) if each.required else f"[{_name(each)}]" for each in arguments)]


def _name(argument: Any) -> str:  # noqa: ANN401
    name: str = argument.metavar or argument.name.upper()
    return name if argument.nargs == 1 or name.endswith("...") else f"{name}..."


def examples(about: str, *commands: str) -> str:
    r"""Help of a command: what it does, and commands a line each (``\b`` keeps the lines)."""
    lines = "\n".join(f"  {command}" for command in commands)
    return f"{about}\n\n\b\nExamples:\n{lines}"


def bundle_folder(model: str | None, *, quiet: bool = False) -> Path:
    """The bundle of ``-m``, or the tiny model's; it is fetched or made first, with progress, if it has to be.

    Raises:
        OneVisionError: See :func:`onevision.named.named_bundle`.
    """
    return named_bundle(model, ConsoleProgress(quiet=quiet))


def mention_tiny(model: str | None, images: Sequence[str], *, quiet: bool = False) -> None:
    """Print :data:`TINY_NOTE` if the tiny model is used by default, for an image that no demo drew."""
    if model is None and not quiet and not all(map(_is_demos, images)):
        print(TINY_NOTE, file=sys.stderr)


def _is_demos(image: str) -> bool:
    """Whether an image lies beside the page of a demo that drew it."""
    page = Path(image).with_name("index.html") if Path(image).name else Path()
    if not page.is_file():
        return False
    from onevision.eval.demo import files_of

    return Path(image).name in files_of(page)


def add_command(app: typer.Typer, function: Function, *commands: str, name: str | None = None) -> None:
    """Add a command; its help is the docstring of ``function``, and examples.

    Args:
        app: The application or group.
        function: The command. The first sentence of its docstring is its line in the list of commands.
        commands: Examples.
        name: Name of the command, if not the function's.
    """
    about = " ".join((function.__doc__ or "").split())
    app.command(
        name or function.__name__,
        cls=Command,
        help=examples(about, *commands),
        short_help=about.partition(". ")[0].rstrip(".") + ".",
    )(function)


def expand(
    parameter: str, options: Sequence[inspect.Parameter], join: Callable[[dict[str, Any]], Any]
) -> Callable[[Function], Function]:
    """Decorate a command: give it options in the place of one of its parameters.

    Args:
        parameter: Name of the parameter.
        options: Options, as parameters for Typer.
        join: Makes the parameter's value of the options' values.
    """

    def decorate(command: Function) -> Function:
        command.__annotations__.pop(parameter)  # its type need not be importable here
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for each in signature.parameters.values():
            here = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
            parameters += options if each.name == parameter else here

        @wraps(command)
        def call(**arguments: Any) -> Any:  # noqa: ANN401
            values = {option.name: arguments.pop(option.name) for option in options}
            return command(**arguments, **{parameter: join(values)})

        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def option(name: str, kind: Any, default: object, *flags: str, **settings: Any) -> inspect.Parameter:  # noqa: ANN401
    """Make a parameter that Typer takes for an option; ``settings`` are those of ``typer.Option``."""
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(*flags, **settings)],
    )


def answer_options(
    *names: str, without: Sequence[str] = (), **defaults: object
) -> Callable[[Function], Function]:
    """Give a command the options of an answer, in the place of its parameter ``options``.

    Args:
        names: Fields of :class:`AnswerOptions`; none: all that have a help text.
        without: Fields to leave out.
        **defaults: Defaults that differ from those of the fields.
    """
    hints = get_type_hints(AnswerOptions)
    added = []
    for item in fields(AnswerOptions):
        if not item.metadata or item.name in without or (names and item.name not in names):
            continue
        kind, default = hints[item.name], defaults.get(item.name, item.default)
        if item.name in ("ttft_target", "from_time", "to_time"):
            kind = str | None
        elif item.name == "choices":
            kind, default = str | None, None
        elif item.name == "stop":
            kind, default = list[str] | None, None
        known = [choices(each) for each in (kind, *get_args(kind)) if get_origin(each) is Literal]
        about = {"metavar": item.metadata["metavar"] or "".join(known) or None, "help": item.metadata["help"]}
        panel = item.metadata["panel"]
        added.append(
            option(item.name, kind, default, *item.metadata["flags"], rich_help_panel=panel, **about)
        )
    return expand("options", added, _options)


def _options(values: dict[str, Any]) -> AnswerOptions:
    """Options of an answer; errors name the flags."""
    if "ttft_target" in values:
        values["ttft_target"] = duration(values["ttft_target"], "--ttft-target")
    try:
        return make_options(values)
    except UsageError as error:
        raise UsageError(_in_flags(error.message), hint=error.hint and _in_flags(error.hint)) from error


def _in_flags(text: str) -> str:
    """A text that names fields of :class:`AnswerOptions`, with their flags instead."""
    flags = {
        item.name: (f"--{item.name.replace('_', '-')}", *item.metadata.get("flags", ()))[-1]
        for item in fields(AnswerOptions)
    }
    return re.sub(rf"\b({'|'.join(flags)})\b", lambda match: flags[match[1]], text)
