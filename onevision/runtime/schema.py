"""JSON Schemas: read, and checked for what cannot be kept to.

In: an object, JSON text or a file. Out: JSON text in which every keyword is one that
:mod:`~onevision.runtime.grammar` keeps to, or an error that names the first that is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import chain, product
from typing import TYPE_CHECKING, Any, cast

from onevision.errors import PromptError, UsageError
from onevision.runtime.forms import text_or_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Keywords by what their values are: schemas by name, lists of schemas, schemas, anything else.
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems", "anyOf", "allOf", "oneOf")
_SCHEMAS = ("items", "additionalItems", "additionalProperties")
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_OTHERS = (
    "type", "enum", "const", "$ref", "$id", "$anchor", "$schema", "required", "minProperties",
    "maxProperties", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "multipleOf",
)  # fmt: skip
#: Keywords that describe, and exclude no value.
_NOTES = (
    "$comment", "contentEncoding", "contentMediaType", "default", "deprecated", "description",
    "discriminator", "examples", "readOnly", "title", "writeOnly",
)  # fmt: skip
_FORMATS = '{"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}, or {"type": "json_object"}'
_KNOWN = frozenset((*_NAMED, *_LISTS, *_SCHEMAS, *_BOUNDS, *_OTHERS, *_NOTES))


def schema_text(value: object) -> str:
    """A JSON Schema as JSON text: of an object, of text that begins with a brace, or of a file.

    Raises:
        UsageError: It cannot be read, or is not a schema.
    """
    if isinstance(value, (Mapping, bool)):
        text = json.dumps(value)
    else:
        text = text_or_file(value, "json_schema", lambda text: text.lstrip()[:1] in ("{", "[", '"', ""))
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"json_schema is not valid JSON: {error}") from error
    if schema is True:
        return "{}"
    if not isinstance(schema, dict):
        raise UsageError(f"json_schema is {text[:40]}, it must be an object")
    return json.dumps(schema)  # one text per schema, whatever file it came from


def requested_schema(format: object) -> Mapping[str, Any] | None:  # noqa: A002 - Ollama's word
    """The schema of a request: of OpenAI's ``response_format`` or Ollama's ``format``; None for text.

    Raises:
        PromptError: Another form.
    """
    if format == "json":
        return {"type": "object"}
    if not isinstance(format, Mapping):
        raise PromptError(f"the format of the answer is {format!r}, it must be an object", hint=_FORMATS)
    kind, named = format.get("type"), format.get("json_schema")
    if kind in ("text", "json_object") and len(format) == 1:
        return None if kind == "text" else {"type": "object"}
    if kind != "json_schema":
        return format
    if not isinstance(named, Mapping) or not isinstance(named.get("schema"), Mapping):
        raise PromptError("response_format has no json_schema with a schema", hint=_FORMATS)
    return cast("Mapping[str, Any]", named["schema"])


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse what llguidance would ignore, or keep to in part.

    Raises:
        UsageError: A keyword, by its name and place.
    """
    if control := re.search(r"(?<!\\)(?:\\\\)*(\\u00[01].)", json.dumps(schema)):
        raise UsageError(f"json_schema has the control character {control[1]}, which no answer can have")
    parts = list(_schemas(schema, "#", 0))
    for where, each in parts:
        for key, value in each.items():
            if key not in _KNOWN:
                raise UsageError(
                    f"json_schema has the keyword {key!r} at {where}, which cannot be kept to",
                    hint="leave it out, and check the answer for it",
                )
            if key == "$ref" and not str(value).startswith("#"):
                raise UsageError(f"json_schema refers to {value!r} at {where}: only # is looked up")
            if key in _BOUNDS and isinstance(value, bool):
                raise UsageError(f"json_schema has {key} {value} at {where}, it must be a number")
            if key == "multipleOf" and isinstance(value, (int, float)) and value <= 0:
                raise UsageError(f"json_schema has multipleOf {value} at {where}, it must be above 0")
        # Keys that are not named may be repeated, and a key counts once.
        open_keys = each.get("additionalProperties", True) is not False or each.get("patternProperties")
        if open_keys and isinstance(least := each.get("minProperties"), int) and least > 1:
            raise UsageError(
                f"json_schema has minProperties {least} at {where}, which cannot be kept to for any keys",
                hint='name the properties, with "additionalProperties": false, or "required"',
            )
    _check_bounds([each for _, each in parts])


def _check_bounds(parts: Sequence[dict[str, Any]]) -> None:
    """Refuse an exclusive whole number less than 1 from the other bound: llguidance takes it for inclusive.

    Raises:
        UsageError: There are such bounds in a schema, or in several that apply together.
    """
    together = any(
        "allOf" in each or ({"anyOf", "oneOf", "$ref"} & each.keys() and {*_BOUNDS} & each.keys())
        for each in parts
    )
    bounds = [
        [(key, float(each[key])) for key in _BOUNDS if isinstance(each.get(key), (int, float))]
        for each in parts
        if each.get("type") != "integer"
    ]
    for group in [[*chain(*bounds)]] if together else bounds:
        lowest, highest = ([each for each in group if each[0].endswith(end)] for end in ("inimum", "aximum"))
        for (key, least), (other, most) in product(lowest, highest):
            exclusive = (key[:2] == "ex" and least.is_integer()) or (other[:2] == "ex" and most.is_integer())
            if exclusive and 0 < most - least < 1:
                raise UsageError(
                    f"json_schema has {key} {least:g} and {other} {most:g}, which cannot be kept to",
                    hint="give the exclusive bound a fraction: 0.001 for 0",
                )


def _schemas(schema: Any, where: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401
    """A schema and those in it, with their places."""
    if depth > 100:
        raise UsageError(f"json_schema is nested too deeply at {where[:80]}…")
    if not isinstance(schema, dict):
        return
    yield where, schema
    for key, value in schema.items():
        inner: Any = ()
        if key in _NAMED and isinstance(value, dict):
            inner = value.items()
        elif isinstance(value, list) and (key in _LISTS or key == "items"):
            inner = enumerate(value)
        elif key in _SCHEMAS:
            yield from _schemas(value, f"{where}/{key}", depth + 1)
        for name, each in inner:
            yield from _schemas(each, f"{where}/{key}/{name}", depth + 1)
