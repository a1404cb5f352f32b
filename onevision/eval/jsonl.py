"""JSON Lines: one object a line, read with the number of the line, so that an error can name it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from onevision.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def read_objects(path: Path, *, unfinished: bool = False) -> dict[int, dict[str, Any]]:
    """The objects of a file by line, from 1. Blank lines are passed over.

    Args:
        path: The file, in UTF-8.
        unfinished: The file may have been cut off while its last line was written: leave that line out.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or a line is no JSON object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if unfinished:
        data = data[: data.rfind(b"\n") + 1]
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text", hint="one JSON object a line, saved as UTF-8"
        ) from error
    return {
        number: _parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    }


def to_line(data: dict[str, Any]) -> bytes:
    """One line. Bytes of a file name that are no UTF-8 become escapes, which inside JSON are JSON's own."""
    return json.dumps(data, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not valid JSON: {error}", hint="each line is one JSON object, whole"
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"{where} is not a JSON object", hint="each line is one JSON object, whole")
    return data
