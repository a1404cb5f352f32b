"""Answers in a form: two libraries on the JSON-Schema-Test-Suite, time per token, and validity.

    git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite
    python benchmarks/forms.py suite JSON-Schema-Test-Suite/tests/draft2020-12
    python benchmarks/forms.py masks full/fast
    python benchmarks/forms.py answers full/fast
    python benchmarks/forms.py schemas [BUNDLE] --count 500

* ``suite``: schemas that are kept to, refused, kept to in part (a valid value cannot be written) or wrong (an
  invalid value can), by llguidance as this package uses it and by llama.cpp's GBNF with the schema converter
  of llama-cpp-python; a crash is an error of the converter that names no keyword;
* ``masks``: milliseconds per token for both, over the bundle's whole tokenizer;
* ``answers``: time per token under a form divided by that without, in turns;
* ``schemas``: answers to random schemas, each compared with the schema by jsonschema.
"""

import ctypes
import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import llama_cpp as api
import numpy as np
import typer
from llama_cpp.llama_grammar import json_schema_to_gbnf

import onevision
from onevision.bundle import BACKBONE
from onevision.errors import OneVisionError, UsageError
from onevision.models import default_bundle
from onevision.native.llama import silence_llama
from onevision.runtime.grammar import Constraint, compile_grammar, make_tokens
from onevision.runtime.schema import schema_text
from onevision.runtime.tokenizer import GgufTokenizer, open_tokenizer

Engine = Callable[[object], Callable[[str], bool]]  # a schema to a test of texts
app = typer.Typer(add_completion=False)
FORMS = {
    "object": '{"type": "object", "properties": {"name": {"type": "string"}, "tags": {"type": "array", '
    '"items": {"type": "string"}}, "count": {"type": "integer"}}, "required": ["name", "tags", "count"]}',
    "any JSON": "{}",
}
TEXT = '{"name":"The quick brown fox, jumping over 13 dogs","tags":["animal","outdoor scene"],"count":14}'


class Gbnf:
    """llama.cpp's grammar sampler, for a schema."""

    def __init__(self, tokenizer: GgufTokenizer, schema: str) -> None:
        grammar = json_schema_to_gbnf(schema).encode()
        self._sampler = api.llama_sampler_init_grammar(tokenizer._vocab, grammar, b"root")
        if not self._sampler:
            raise ValueError("the grammar is refused")

    def allowed(self, tokens: list[int]) -> list[bool]:
        """Which of the tokens may come next."""
        data = (api.llama_token_data * len(tokens))(*((token, 0.0, 0.0) for token in tokens))
        array = api.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        api.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return [each.logit == 0 for each in data]

    def accept(self, token: int) -> None:
        """Go on with a token."""
        api.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        """Free the sampler."""
        api.llama_sampler_free(self._sampler)


def spellings(value: object) -> Iterator[str]:
    """A value as JSON, its keys in every order."""
    if isinstance(value, dict) and 1 < len(value) < 6:
        for keys in itertools.permutations(value):
            yield json.dumps({key: value[key] for key in keys}, ensure_ascii=False, separators=(",", ":"))
    else:
        yield json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@app.command()
def suite(folder: Path, details: bool = False) -> None:
    """Count schemas that are kept to, refused, kept to in part, or wrong."""
    silence_llama()
    with open_tokenizer(default_bundle() / BACKBONE) as tokenizer:
        for name, engine in (("llguidance", by_llguidance(tokenizer)), ("GBNF", by_gbnf(tokenizer))):
            counts: dict[str, Counter[str]] = defaultdict(Counter)
            for path in sorted(folder.glob("*.json")):
                for group in json.loads(path.read_text(encoding="utf-8")):
                    verdict = _verdict(engine, group)
                    counts[path.stem][verdict.partition(":")[0]] += 1
                    if details and not verdict.startswith("kept"):
                        print(f"{name} {path.stem} / {group['description']}: {verdict}")
            print(name, dict(sum(counts.values(), Counter())))


def by_llguidance(tokenizer: GgufTokenizer) -> Engine:
    """Schemas as this package keeps to them."""
    tokens, pieces, end = make_tokens(tokenizer, ()), _bytes(tokenizer), tokenizer.end_ids[-1]

    def engine(schema: object) -> Callable[[str], bool]:
        source = compile_grammar("json_schema", schema_text(schema))

        def accepts(text: str) -> bool:
            ids = [*(pieces[byte] for byte in text.encode()), end]
            return Constraint(tokens, source)._matcher.validate_tokens(ids) == len(ids)

        return accepts

    return engine


def by_gbnf(tokenizer: GgufTokenizer) -> Engine:
    """Schemas as llama-cpp-python converts them for llama.cpp."""
    pieces, end = _bytes(tokenizer), tokenizer.end_ids[-1]

    def engine(schema: object) -> Callable[[str], bool]:
        Gbnf(tokenizer, json.dumps(schema)).close()

        def accepts(text: str) -> bool:
            sampler = Gbnf(tokenizer, json.dumps(schema))
            try:
                for token in (pieces[byte] for byte in text.encode()):
                    if not sampler.allowed([token])[0]:
                        return False
                    sampler.accept(token)
                return sampler.allowed([end])[0]
            finally:
                sampler.close()

        return accepts

    return engine


def _bytes(tokenizer: GgufTokenizer) -> list[int]:
    """The token of each byte."""
    pieces = {tokenizer.piece(token): token for token in range(tokenizer.size)}
    return [pieces[bytes([byte])] for byte in range(256)]


def _verdict(engine: Engine, group: dict[str, Any]) -> str:
    schema = group["schema"]
    if isinstance(schema, dict):
        schema = {key: value for key, value in schema.items() if key != "$schema"}
    try:
        accepts = engine(schema)
    except (OneVisionError, ValueError, AssertionError) as error:
        return f"refused: {error}"
    except (AttributeError, TypeError, KeyError) as error:
        return f"crash: {error!r}"
    verdict = "kept to"
    for test in group["tests"]:
        accepted = any(map(accepts, spellings(test["data"])))
        if accepted and not test["valid"]:
            return f"wrong: {json.dumps(test['data'])} is accepted"
        if test["valid"] and not accepted:
            verdict = f"in part: {json.dumps(test['data'])} cannot be written"
    return verdict


@app.command()
def masks(bundle: Path) -> None:
    """Time what each library needs per token, over the whole tokenizer."""
    silence_llama()
    with open_tokenizer(bundle / BACKBONE) as tokenizer:
        started = time.perf_counter()
        tokens = make_tokens(tokenizer, ())
        print(f"{tokenizer.size:,} tokens; llguidance's tables in {time.perf_counter() - started:.2f} s")
        ids, everything = tokenizer.encode(TEXT), list(range(tokenizer.size))
        for name, schema in FORMS.items():
            constraint = Constraint(tokens, compile_grammar("json_schema", schema))
            spent = []
            for token in ids:
                started = time.perf_counter()
                allowed = constraint.allowed()
                spent.append((time.perf_counter() - started) * 1e3)
                if token not in allowed:
                    raise SystemExit(f"{tokenizer.piece(token)!r} is not allowed")
                constraint.accept(token)
            print(f"{name}, llguidance: mean {np.mean(spent):.2f} ms, at most {max(spent):.2f} ms")
            sampler = Gbnf(tokenizer, schema)
            data = (api.llama_token_data * len(everything))()
            spent = []
            for token in ids:
                for at in everything:
                    data[at].id, data[at].logit = at, 0.0
                array = api.llama_token_data_array(data=data, size=len(data), selected=-1, sorted=False)
                started = time.perf_counter()
                api.llama_sampler_apply(sampler._sampler, ctypes.byref(array))
                spent.append((time.perf_counter() - started) * 1e3)
                sampler.accept(token)
            sampler.close()
            print(f"{name}, GBNF: mean {np.mean(spent):.2f} ms, at most {max(spent):.2f} ms")


@app.command()
def answers(bundle: Path, rounds: int = 5, tokens: int = 48, threads: int | None = None) -> None:
    """Time tokens of an answer under a form, and of one without."""
    forms: dict[str, dict[str, Any]] = {
        "free": {"ignore_end": True},
        "schema": {
            "json_schema": '{"type": "array", "items": {"type": "string", "minLength": 12}, "minItems": 99}'
        },
        "regex": {"regex": "[a-z ]{4000}"},
    }
    spent: dict[str, list[float]] = defaultdict(list)
    with onevision.load(bundle, threads=threads) as model:
        for _ in range(rounds + 1):
            for name, form in forms.items():
                answer = model.generate("Describe the scene.", max_tokens=tokens, **form)
                if len(answer.token_ids) != tokens:
                    raise SystemExit(f"{name} ended early: {answer.text}")
                spent[name].append(answer.timings.decode / (tokens - 1))
    for name, times in spent.items():
        ratio = median(one / free for one, free in zip(times[1:], spent["free"][1:], strict=True))
        print(f"{name}: {median(times[1:]):.2f} ms per token, {ratio:.3f} x")


def random_schema(random: Random, depth: int = 3) -> dict[str, Any]:
    """A schema of objects, arrays, strings, numbers and alternatives."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format", "date"]
    kind = random.choice([*kinds, *(["object", "array", "anyOf", "tuple"] * 3 if depth else [])])
    low = random.randint(-50, 50)
    words = [
        random.choice(("red", "grün", 'a "b"', "x\\y", "", "two words", "\u4e2d\u6587")) for _ in range(3)
    ]
    names = random.sample(["a", "b c", "größe", "kind", "n", 'q"', "items"], random.randint(0, 4))

    def inner() -> dict[str, Any]:
        return random_schema(random, depth - 1)

    least = random.randint(0, 3)
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "string": lambda: {"type": "string", "minLength": least, "maxLength": least + random.randint(0, 12)},
        "integer": lambda: {
            "type": "integer",
            "minimum": low,
            "exclusiveMaximum": low + random.randint(1, 500),
        },
        "number": lambda: {"type": "number", "exclusiveMinimum": low, "maximum": low + 1 + random.random()},
        "boolean": lambda: {"type": "boolean"},
        "null": lambda: {"type": ["null", "integer"], "multipleOf": random.choice((1, 2, 5, 10))},
        "enum": lambda: {"enum": [*words, low, None, {"k": low}]},
        "const": lambda: {"const": random.choice((words, low, {"a": words}))},
        "pattern": lambda: {"type": "string", "pattern": random.choice(("^[A-Z]{2}-[0-9]+$", "a|b$", "x.y"))},
        "format": lambda: {"type": "string", "format": random.choice(("ipv4", "uuid", "email", "time"))},
        "date": lambda: {"type": "string", "format": random.choice(("date", "date-time", "ipv6"))},
        "object": lambda: {
            "type": "object",
            "properties": {name: inner() for name in names},
            "required": random.sample(names, random.randint(0, len(names))),
            "additionalProperties": random.choice((True, False, {"type": "integer"})),
        },
        "array": lambda: {"type": "array", "items": inner(), "minItems": least, "maxItems": least + 2},
        "tuple": lambda: {
            "type": "array",
            "prefixItems": [inner(), inner()],
            "items": False,
            "minItems": least % 3,
        },
        "anyOf": lambda: {"anyOf": [inner(), inner()]},
    }
    return made[kind]()


def check_schemas(model: onevision.OneVision, count: int, seed: int, max_tokens: int = 100) -> dict[str, int]:
    """Answer random schemas four times each: greedily, and three times sampled.

    Returns:
        Numbers of whole and cut answers, of refused schemas, and of whole answers that are not valid.
    """
    from jsonschema import Draft202012Validator

    random, counts = Random(seed), Counter(whole=0, cut=0, refused=0, invalid=0)  # noqa: S311
    for number in range(count):
        schema = random_schema(random)
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        for temperature in (0.0, 1.0, 3.0, 30.0):
            try:
                answer = model.generate(
                    "Describe the scene as JSON.", json_schema=schema, temperature=temperature,
                    seed=seed + number, max_tokens=max_tokens,
                )  # fmt: skip
            except UsageError as error:
                counts["refused"] += 1
                print(f"refused {error.message}: {json.dumps(schema)}")
                break
            counts["whole" if answer.finish_reason == "stop" else "cut"] += 1
            if answer.finish_reason == "stop":
                try:
                    problem = next(map(str, validator.iter_errors(json.loads(answer.text))), "")
                except ValueError as error:
                    problem = str(error)
                if problem:
                    counts["invalid"] += 1
                    print(f"invalid {answer.text!r}: {json.dumps(schema)}: {problem.splitlines()[0]}")
    return dict(counts)


@app.command()
def schemas(bundle: Path | None = None, count: int = 500, seed: int = 0, threads: int | None = None) -> None:
    """Answer random schemas, and check each answer."""
    with onevision.load(bundle, threads=threads) as model:
        print(check_schemas(model, count, seed))


if __name__ == "__main__":
    app()
