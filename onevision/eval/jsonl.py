"""JSON Lines: one object per line, read with its line number for error messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from onevision.errors import InputError
from onevision.files import os_errors
from onevision.typed import build, parse_json

T = TypeVar("T")


def read_objects(path: Path, *, unfinished: bool = False) -> dict[int, dict[str, Any]]:
    """Read the objects of a file by line number, from 1. Blank lines are skipped.

    Args:
        path: The file, in UTF-8.
        unfinished: The writer may have been interrupted: leave out a last line without an end.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or a line is not a JSON object.
    """
    with os_errors(f"read {path}", InputError):
        data = path.read_bytes()
    if unfinished:
        data = data[: data.rfind(b"\n") + 1]
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text", hint="one JSON object per line, saved as UTF-8"
        ) from error
    return {
        number: _parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    }


def read_as(
    kind: type[T], path: Path, noun: str, *, unfinished: bool = False, hint: str | None = None
) -> list[T]:
    """Read the lines of a file as dataclass ``kind``, called ``noun`` in messages ("an answer").

    Raises:
        InputError: See :func:`read_objects`, or a line is something else.
    """

    def convert(number: int, data: dict[str, Any]) -> T:
        try:
            return build(kind, data)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not {noun}: {error}", hint=hint) from error

    return [convert(*item) for item in read_objects(path, unfinished=unfinished).items()]


def to_line(data: dict[str, Any]) -> bytes:
    """One line. Bytes of a file name that are not UTF-8 become JSON escapes."""
    return json.dumps(data, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _parse(line: str, where: str) -> dict[str, Any]:
    hint = "each line must be one whole JSON object"
    try:
        data = parse_json(line)
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}", hint=hint) from error
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a JSON object", hint=hint)
    return data
