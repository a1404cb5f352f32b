"""Forms of an answer as users give them: choices, and texts or files that hold a schema or grammar."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from onevision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST = 1000  # choices
_IS_GRAMMAR = re.compile(r"::=|^\s*(%|start\b)", re.MULTILINE)


def parse_choices(value: object) -> tuple[str, ...]:
    """Choices of a list, or of a text: a JSON list, or names between commas.

    Raises:
        UsageError: Something else, or an empty list.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"choices is not a valid JSON list: {error}") from error
    elif isinstance(value, str):
        value = [each.strip() for each in value.split(",")]
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"choices is {value!r}, it must be a list", hint='such as "yes,no"')
    if value == []:
        raise UsageError("choices is empty", hint='such as "yes,no"')
    return tuple(value)


def check_choices(choices: Sequence[object], *, letters: bool) -> None:
    """Check that there is something to choose from.

    Raises:
        UsageError: Fewer than two, an empty one, the same one twice, or more than there are letters.
    """
    for at, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise UsageError(f"choices has {choice!r}, each must be a text that is not empty")
        if choice in choices[:at]:
            raise UsageError(f"choices has {choice!r} twice")
    if len(choices) < 2:
        raise UsageError("choices has one choice, it must have two or more", hint='such as "yes,no"')
    if len(choices) > (most := len(ascii_uppercase) if letters else _MOST):
        raise UsageError(f"choices has {len(choices)}, it may have {most}{' with letters' * letters}")


def grammar_text(value: object) -> str:
    """A grammar: the text itself, or that of a file.

    Raises:
        UsageError: The file cannot be read.
    """
    return text_or_file(value, "grammar", _IS_GRAMMAR.search)


def text_or_file(value: object, name: str, is_text: Callable[[str], object]) -> str:
    """A text, or that of a file.

    Args:
        value: The text, or the path.
        name: Of the option, for errors.
        is_text: Whether a string is the text itself.

    Raises:
        UsageError: It is neither, or the file cannot be read.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name} is {value!r}, it must be a text or a file")
    if isinstance(value, str) and is_text(value):
        return value
    try:
        return Path(value).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{value} is not UTF-8 text") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the {name} {str(value)[:80]!r}: {reason}") from error
