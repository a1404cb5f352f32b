"""Messages for wrong options and arguments, in one form whatever refused the value."""

from __future__ import annotations

import re
from math import isnan
from typing import TYPE_CHECKING, Any

import typer

from onevision.errors import closest

if TYPE_CHECKING:
    from typer.exceptions import TyperException

#: What Typer says of a value, and the valid values in words.
_REFUSALS = (
    (r"'(?P<value>.*)' is not one of (?P<choices>.*)", "one of {choices}"),
    (r"(?P<value>\S+) is not in the range x>=(?P<low>\S+)", "{low} or more"),
    (r"(?P<value>\S+) is not in the range x<=(?P<high>\S+)", "at most {high}"),
    (r"(?P<value>\S+) is not in the range (?P<low>\S+)<=x<=(?P<high>\S+)", "from {low} to {high}"),
    (r"'(?P<value>.*)' is not a valid int(eger)?( range)?", "a whole number"),
    (r"'(?P<value>.*)' is not a valid float( range)?", "a number"),
)
#: The same for the types of pydantic's errors, which Typer raises from version 0.29 on.
_PYDANTIC = {
    "greater_than_equal": "{input} is not in the range x>={ge}",
    "less_than_equal": "{input} is not in the range x<={le}",
    "int_parsing": "'{input}' is not a valid integer",
    "float_parsing": "'{input}' is not a valid float",
}


def not_nan(value: float | None) -> float | None:
    """Callback of options with a range: Typer before 0.29 takes nan to be in every range."""
    if value is not None and isnan(value):
        raise typer.BadParameter("nan is not in the range x>=0")
    return value


def explain(error: TyperException) -> tuple[str, str]:
    """Message and hint for an error of the parser."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "onevision"
    message, hint = _sentence(error.format_message()), f"{command} --help"
    if isinstance(error, typer.BadParameter) and error.param is not None:
        name = (
            error.param.metavar
            if error.param.param_type_name == "argument"
            else max(error.param.opts, key=len)
        )
        for pattern, wanted in _REFUSALS:
            if match := re.search(pattern, _refusal(error)):
                found = match.groupdict() | {
                    "choices": (match.groupdict().get("choices") or "").replace("'", "")
                }
                in_range = "in the range" in pattern
                value = found["value"] if in_range else repr(found["value"])
                message = f"{name} is {value}, it must be {wanted.format(**found)}"
                message = re.sub(r"(\d)\.0\b", r"\1", message) if in_range else message
                if found["choices"] and (close := closest(found["value"], found["choices"].split(", "))):
                    hint = f"did you mean {close}?"
    elif context and (match := re.match(r"no such (command|option):? '?([^ '.]+)", message)):
        kind, name = match.groups()
        flags = [flag for param in context.command.params for flag in (*param.opts, *param.secondary_opts)]
        close = closest(name, context.command.list_commands(context) if kind == "command" else flags)
        message = match[0] + "'" * (kind == "command")
        hint = f"did you mean {close}?" if close else hint
    elif match := re.search(r"unexpected extra argument\S* \((\S+)", message):
        if command.split()[-1] in ("run", "chat"):
            hint = f"give images with -i, one -i for each: {command} … -i a.png -i b.png"
        elif context and any("-m" in param.opts for param in context.command.params):
            hint = f"name a bundle with -m: {command} -m {match[1].rstrip(')')}"
    return message, hint


def _refusal(error: typer.BadParameter) -> str:
    details: Any = error.__cause__
    if not hasattr(details, "errors"):
        return error.message.rstrip(".")
    first = details.errors()[0]
    text: str = _PYDANTIC.get(first["type"], first["msg"]).format(
        input=first["input"], **first.get("ctx", {})
    )
    return text.rstrip(".")


def _sentence(text: str) -> str:
    """A message in our form: it starts in lower case and has no full stop."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]
