"""JSON, read strictly, and dataclasses made of it, each value checked against its annotation."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

_MAX_FILE = 256 << 20  # bytes; messages may hold images
_MAX_DIGITS = 4000  # Python converts at most 4,300


def read_json(path: Path, limit: int = _MAX_FILE) -> Any:  # noqa: ANN401
    """Parse a JSON file of at most ``limit`` bytes, see :func:`parse_json`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is longer, or not JSON.
    """
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return parse_json(data)


def parse_json(data: bytes | str) -> Any:  # noqa: ANN401
    """Parse JSON in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: Not JSON, or an object that has a key twice; the message says why, and where.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        if not error.doc.strip():
            raise ValueError("it is empty") from error
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return values


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def build(kind: type[T], data: object, key: str = "") -> T:
    """Make dataclass ``kind`` from a JSON object. Unknown keys are ignored, those with a default may miss.

    Args:
        kind: Its fields are numbers, texts, literals, tuples, dictionaries, other such dataclasses, ``Any``,
            or one of these or None.
        data: The object.
        key: Its name in the file, for errors.

    Raises:
        ValueError: A key is missing or its value is of another type; the message names both.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{key or 'it'} is not a JSON object")  # noqa: TRY004 (the data's fault)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in fields(kind):  # type: ignore[arg-type]
        name = f"{key}.{item.name}" if key else item.name
        if item.name in data:
            values[item.name] = _convert(hints[item.name], data[item.name], name)
        elif item.default is MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**values)


def _convert(hint: Any, value: object, key: str) -> Any:  # noqa: ANN401
    """Convert one JSON value to an annotated type: tuples for lists, dataclasses for objects."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return build(hint, value, key)  # type: ignore[arg-type]
    if hint is Any or (origin is Literal and value in arguments):
        return value
    if origin in (Union, UnionType):
        return None if value is None else _convert(arguments[0], value, key)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                _convert(kind, item, f"{key}[{at}]")
                for at, (kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin is dict and isinstance(value, dict):
        return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif origin is None and isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    wanted = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
    raise ValueError(f"{key} is {repr(value)[:60]}, expected {wanted}")
