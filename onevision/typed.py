"""Dataclasses from parsed JSON, each value checked against its annotation."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


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
