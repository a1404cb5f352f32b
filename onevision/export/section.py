"""JSON files of a checkpoint, read key by key with the value's place named in every message.

In: a file that anybody may have written. Out: values of the type and range asked for, or an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from onevision import typed
from onevision.errors import CheckpointError, UnsupportedCheckpointError

DAMAGED_HINT = "compare the file with the published one, or fetch the checkpoint again"
SCOPE_HINT = "only LLaVA-OneVision can be exported: SigLIP tower, two-layer GELU projector, Qwen2, AnyRes"


def read_json(path: Path) -> object:
    """Parse a JSON file of a checkpoint.

    Raises:
        CheckpointError: The file is missing, unreadable or not JSON.
    """
    try:
        return typed.read_json(path)
    except FileNotFoundError:
        hint = "name the folder that holds the checkpoint's config.json and weights"
        raise CheckpointError(f"{path.parent} has no {path.name}", hint=hint) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", hint=DAMAGED_HINT) from error


def show(value: object) -> str:
    """A value as the file has it, cut to fit a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Section:
    """One JSON object. A key that is null counts as left out, as in the libraries that write these files.

    Args:
        values: What the parser gave.
        where: The file and the path inside it, such as ``config.json: text_config.``.

    Raises:
        CheckpointError: ``values`` is not an object.
    """

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(f"{where.rstrip(':. ')} is not a JSON object", hint=DAMAGED_HINT)
        self._values: dict[str, object] = values
        self.where = where

    def get(self, key: str, absent: object = None) -> object:
        """The value as it is."""
        value = self._values.get(key)
        return absent if value is None else value

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null, for the few keys where that is not the default."""
        return key in self._values and self._values[key] is None

    def section(self, key: str) -> Section:
        """The object under ``key``; an empty one when left out."""
        return Section(self.get(key, {}), f"{self.where}{key}.")

    def expect(self, key: str, wanted: object, *, absent: object = ...) -> None:
        """Refuse every value but ``wanted``; ``absent``, else ``wanted``, is what leaving it out means.

        Raises:
            UnsupportedCheckpointError: It is something else.
        """
        value = self.get(key, wanted if absent is ... else absent)
        if value != wanted:
            message = f"{self.where}{key} is {show(value)}, must be {show(wanted)}"
            raise UnsupportedCheckpointError(message, hint=SCOPE_HINT)

    def choice(self, key: str, names: Any, absent: str) -> Any:  # noqa: ANN401 (of the Literal ``names``)
        """One of the names of a Literal.

        Raises:
            UnsupportedCheckpointError: It is something else.
        """
        value = self.get(key, absent)
        if value not in get_args(names):
            message = f"{self.where}{key} is {show(value)}, must be one of {', '.join(get_args(names))}"
            raise UnsupportedCheckpointError(message, hint=SCOPE_HINT)
        return value

    def flag(self, key: str) -> bool:
        """True or false; false when left out."""
        value = self.get(key, absent=False)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def integer(self, key: str, absent: int, *, least: int = 1, most: int = 2**31 - 1) -> int:
        """A whole number in a range."""
        value = self.get(key, absent)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.bad(key, f"a whole number from {least} to {most}", value)
        return value

    def number(self, key: str, absent: float) -> float:
        """A finite number above zero."""
        value = self.get(key, absent)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1e30:
            raise self.bad(key, "a number above zero", value)
        return float(value)

    def integers(self, key: str, *, least: int, most: int) -> list[int]:
        """A whole number or a list of them, as a list; empty when left out."""
        value = self.get(key, [])
        items = value if isinstance(value, list) else [value]
        return [Section({key: item}, self.where).integer(key, -1, least=least, most=most) for item in items]

    def bad(self, key: str, must: str, value: object = None) -> CheckpointError:
        """The error for a value that makes no sense."""
        shown = show(self.get(key, value))
        return CheckpointError(f"{self.where}{key} is {shown}, must be {must}", hint=DAMAGED_HINT)
