"""Options of an answer on the command line, built from the fields of :class:`AnswerOptions`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from onevision.cli.console import duration
from onevision.runtime.options import AnswerOptions, make_options

if TYPE_CHECKING:
    from collections.abc import Callable


def answer_options(*names: str, **defaults: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of an answer, in the place of its parameter ``options``.

    Args:
        names: Fields of :class:`AnswerOptions`; none: all that have a help text.
        **defaults: Other defaults than those of the fields.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        added = [
            _parameter(name, defaults)
            for name in names or [item.name for item in fields(AnswerOptions) if item.metadata]
        ]

        @wraps(command)
        def call(**arguments: Any) -> Any:  # noqa: ANN401
            chosen = {each.name: arguments.pop(each.name) for each in added}
            if "ttft_target" in chosen:
                chosen["ttft_target"] = duration(chosen["ttft_target"], "--ttft-target")
            return command(**arguments, options=make_options(chosen))

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            here = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
            parameters += added if parameter.name == "options" else here
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def _parameter(name: str, defaults: dict[str, object]) -> inspect.Parameter:
    item = AnswerOptions.__dataclass_fields__[name]
    kind, default = get_type_hints(AnswerOptions)[name], defaults.get(name, item.default)
    if name == "ttft_target":
        kind = str | None
    elif name == "stop":
        kind, default = list[str] | None, None
    metadata = item.metadata
    option = typer.Option(*metadata["flags"], metavar=metadata["metavar"], help=metadata["help"])
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
