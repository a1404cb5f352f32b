"""Answers in a form: never another, wherever they are cut; choices and tokens with their probabilities."""

from __future__ import annotations

import io
import json
import re
import runpy
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from onevision.cli import _run
from onevision.errors import GenerationError, PromptError, UsageError
from onevision.eval.evaluate import evaluate
from onevision.runtime.choices import LETTER_INSTRUCTION, with_letters
from onevision.runtime.engine import OneVision
from onevision.runtime.grammar import Constraint, _byte_tokens, compile_grammar
from onevision.runtime.messages import Message, conversation_of, parse_request
from onevision.runtime.options import make_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

QUESTION = "What color is the star?"
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["small", "large"]}, "maxItems": 2},
    },
    "required": ["color", "count", "tags"],
    "additionalProperties": False,
}
ANYTHING = "(?s:.*)"
END = 256  # of the tokenizer with a token per byte


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(tiny_bundle, device="cpu", threads=1) as loaded:
        yield loaded


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


def teacher_forced(model: OneVision, tokens: list[int]) -> tuple[list[float], float]:
    """Log-probabilities of tokens as the answer to QUESTION, and of the end after them."""
    pipeline = model.pipeline
    prepared = pipeline.prepare(conversation_of(QUESTION, (), None, None), make_options({}))
    pipeline.prefill(prepared, [], room=len(tokens) + 1)
    logs = []
    for token in tokens:
        logs.append(log_softmax(pipeline.backbone.logits())[token])
        pipeline.backbone.append(token)
    last = np.exp(log_softmax(pipeline.backbone.logits()))
    tokenizer = pipeline.backbone.tokenizer
    return logs, float(np.log(sum(last[at] for at in range(tokenizer.size) if tokenizer.ends(at))))


@pytest.mark.parametrize("temperature", [0, 1, 30])
def test_an_answer_is_valid_json_of_the_schema(model: OneVision, temperature: float):
    answer = model.generate(QUESTION, json_schema=SCHEMA, temperature=temperature, seed=1)
    assert answer.finish_reason == "stop"
    Draft202012Validator(SCHEMA).validate(json.loads(answer.text))


SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "forms.py"))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_schemas_have_no_invalid_answer(model: OneVision, seed: int):
    counts = SCRIPT["check_schemas"](model, 1, seed, max_tokens=60)
    assert counts["invalid"] == 0
    assert counts["whole"] + counts["cut"] == 4 or counts["refused"] == 1


@settings(max_examples=100)
@given(random=st.randoms(use_true_random=False))
def test_random_walks_through_random_schemas_end_in_valid_answers(random: Random):
    """A model may say anything that is allowed: bytes are drawn, closing ones more often."""
    schema = SCRIPT["random_schema"](random)
    try:
        source = compile_grammar("json_schema", json.dumps(schema))
    except UsageError:
        return
    state, written = Constraint(_byte_tokens(), source), bytearray()
    while not state.complete and len(written) < 300:
        allowed = state.allowed().tolist()
        closing = [byte for byte in allowed if byte in {*b'"}],'}]
        if END in allowed and (len(allowed) == 1 or random.random() < 0.5):
            break
        byte = random.choice(closing if closing and random.random() < 0.4 else allowed)
        if byte != END:
            written.append(byte)
            state.accept(byte)
    if len(written) < 300:
        Draft202012Validator(schema).validate(json.loads(written.decode()))


def test_a_cut_answer_is_a_beginning_and_says_so(model: OneVision):
    whole = model.generate(QUESTION, json_schema=SCHEMA)
    for length in range(1, len(whole.token_ids)):
        cut = model.generate(QUESTION, json_schema=SCHEMA, max_tokens=length)
        assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:length], "length")
        assert cut.warnings == (
            f"the answer was cut at {length} tokens, so its JSON may be incomplete: raise --max-tokens",
        )
        assert whole.text.startswith(cut.text)
    exact = model.generate(QUESTION, json_schema=SCHEMA, max_tokens=len(whole.token_ids))
    assert (exact.text, exact.finish_reason, exact.warnings) == (whole.text, "stop", ())
    assert model.generate(QUESTION, max_tokens=1).warnings == ()


def test_a_form_that_takes_anything_changes_nothing(model: OneVision):
    for options in ({}, {"temperature": 1.5, "top_k": 40, "seed": 3}, {"repetition_penalty": 1.3}):
        free = model.generate(QUESTION, **options)
        held = model.generate(QUESTION, regex=ANYTHING, **options)
        assert (held.token_ids, held.finish_reason) == (free.token_ids, free.finish_reason)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-f]{2,4}"}, "[0-9]{3}-[a-f]{2,4}"),
        ({"regex": "(?i)yes|no"}, "(?i)yes|no"),
        ({"regex": "größe: [äöü]{3}"}, "größe: [äöü]{3}"),
        ({"grammar": 'root ::= "it is " color\ncolor ::= "red" | "blue"'}, "it is (red|blue)"),
        ({"grammar": 'start: "<" WORD ">"\nWORD: /[a-z]{2}/'}, "<[a-z]{2}>"),
    ],
)
def test_a_text_is_of_its_form_as_a_whole(model: OneVision, options: dict[str, Any], pattern: str):
    for temperature in (0, 1, 30):
        answer = model.generate(QUESTION, temperature=temperature, seed=5, **options)
        assert answer.finish_reason == "stop"
        assert re.fullmatch(pattern, answer.text)


def test_a_stream_of_a_form_is_its_answer(model: OneVision):
    with model.stream(QUESTION, json_schema=SCHEMA) as stream:
        assert "".join(stream) == stream.answer.text


def test_no_special_token_is_ever_allowed(model: OneVision):
    pipeline = model.pipeline
    tokenizer = pipeline.backbone.tokenizer
    allowed = Constraint(pipeline._grammar_tokens, compile_grammar("regex", ANYTHING)).allowed().tolist()
    assert set(allowed) & set(pipeline.banned_tokens) == set()
    ends = [token for token in allowed if not tokenizer.piece(token)]
    assert ends == tokenizer.end_ids
    # An answer that cannot end yet has no end among its tokens.
    held = Constraint(pipeline._grammar_tokens, compile_grammar("regex", "(?s:.){9,}")).allowed().tolist()
    assert not set(held) & set(ends)


def test_a_key_has_one_spelling(model: OneVision):
    """``{"a": 1, "\\u0061": "x"}`` would be read as {"a": "x"}."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    matcher = Constraint(model.pipeline._grammar_tokens, compile_grammar("json_schema", json.dumps(schema)))
    for byte in b'{"\\':
        (token,) = model.pipeline.backbone.tokenizer.encode(chr(byte))
        matcher.accept(token)
    pieces = {model.pipeline.backbone.tokenizer.piece(token)[:1] for token in matcher.allowed().tolist()}
    assert pieces == {b'"', b"\\", b"b", b"f", b"n", b"r", b"t"}


@pytest.mark.parametrize(
    "choices",
    [("red", "green", "blue"), ("yes", "yes please", "yes, please", "no"), ("größe", "größer", " x\n", "😀")],
)
def test_a_choice_has_the_probability_of_its_tokens_and_the_end(model: OneVision, choices: tuple[str, ...]):
    answer = model.generate(QUESTION, choices=choices, logprobs=True)
    assert answer.choices is not None
    assert [each.text for each in answer.choices] == list(choices)
    assert sum(each.probability for each in answer.choices) == pytest.approx(1, abs=1e-6)
    encode = model.pipeline.backbone.tokenizer.encode
    for each in answer.choices:
        logs, end = teacher_forced(model, encode(each.text))
        assert each.logprob == pytest.approx(sum(logs) + end, abs=2e-3)
    total = sum(exp(each.logprob) for each in answer.choices)
    for each in answer.choices:
        assert each.probability == pytest.approx(exp(each.logprob) / total, rel=1e-3, abs=1e-9)
    best = max(answer.choices, key=lambda each: each.probability)
    assert (answer.text, answer.finish_reason) == (best.text, "stop")
    assert answer.logprobs is not None
    assert list(answer.token_ids) == [each.token_id for each in answer.logprobs] == encode(best.text)


def test_the_order_of_choices_does_not_matter(model: OneVision):
    choices = ["red", "redder", "green", "blue"]
    one = {each.text: each.logprob for each in model.generate(QUESTION, choices=choices).choices or ()}
    other = {
        each.text: each.logprob for each in model.generate(QUESTION, choices=choices[::-1]).choices or ()
    }
    assert one == pytest.approx(other, abs=1e-3)


def test_a_temperature_draws_among_the_choices(model: OneVision):
    options = {"choices": ("red", "green", "blue"), "temperature": 2.0}
    drawn = [model.generate(QUESTION, seed=seed, **options).text for seed in range(12)]
    assert len(set(drawn)) > 1
    assert drawn[3] == model.generate(QUESTION, seed=3, **options).text


def test_a_choice_longer_than_the_answer_may_be_is_cut(model: OneVision):
    whole = model.generate(QUESTION, choices=["a long choice", "another long one"])
    cut = model.generate(QUESTION, choices=["a long choice", "another long one"], max_tokens=2)
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:2], "length")
    assert whole.text.startswith(cut.text)
    assert cut.choices == whole.choices


def test_letters_are_listed_as_in_training(model: OneVision):
    (message,) = with_letters([Message("user", ("What is it?",))], ["a dog", "a cat"])
    assert message.content == (f"What is it?\nA. a dog\nB. a cat\n{LETTER_INSTRUCTION}",)
    answer = model.generate(QUESTION, choices=["red", "green"], letters=True)
    assert answer.choices is not None
    asked = f"{QUESTION}\nA. red\nB. green\n{LETTER_INSTRUCTION}"
    assert [each.logprob for each in answer.choices] == pytest.approx(
        [each.logprob for each in model.generate(asked, choices=["A", "B"]).choices or ()], abs=1e-4
    )
    assert answer.text in {"red", "green"}
    assert len(answer.token_ids) == 1


def test_log_probabilities_are_those_of_the_model(model: OneVision):
    for options in ({}, {"regex": "[a-z ]{12}"}, {"temperature": 2.0, "seed": 1}):
        answer = model.generate(QUESTION, logprobs=True, top_logprobs=4, max_tokens=12, **options)
        assert answer.logprobs is not None
        logs, _ = teacher_forced(model, list(answer.token_ids))
        assert [each.logprob for each in answer.logprobs] == pytest.approx(logs, abs=2e-3)
        for each in answer.logprobs:
            likely = [other.logprob for other in each.top]
            assert len(likely) == 4
            assert likely == sorted(likely, reverse=True)
            assert likely[0] >= each.logprob
        if not options:
            assert [each.top[0].token_id for each in answer.logprobs] == list(answer.token_ids)
            assert "".join(each.text for each in answer.logprobs) == answer.text
    assert model.generate(QUESTION, max_tokens=1).logprobs is None


def test_each_turn_of_a_conversation_is_of_the_form(model: OneVision):
    talk = model.chat(json_schema=SCHEMA)
    for question in (QUESTION, "And the circle?"):
        Draft202012Validator(SCHEMA).validate(json.loads(talk.ask(question).text))
    talk = model.chat(choices="red,green")
    first = talk.ask(QUESTION)
    assert first.choices == model.generate(QUESTION, choices=["red", "green"]).choices
    talk = model.chat(choices="red,green")
    talk.ask(QUESTION)
    second = talk.ask("And the circle?")
    assert second.text in {"red", "green"}
    assert second.usage.cached_tokens > 0


def test_a_form_that_is_too_hard_ends_the_answer_with_an_error(model: OneVision):
    with pytest.raises(GenerationError, match="too many expressions"):
        model.generate(QUESTION, regex="(.{1,1000}){1,1000}x", max_tokens=300)
    assert model.generate(QUESTION, regex="[0-9]").text.isdecimal()


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("regex", "a(", "unclosed group"),
        ("regex", r"\bx", "lookarounds not supported"),
        ("regex", "(a)\\1", "backreferences are not supported"),
        ("regex", "a" * 2**21, "2,097,152 characters"),
        ("grammar", 'start: "a" | b', 'line 1, column 8: unknown name: "b"'),
        ("grammar", 'start: x\nx: y "z"', "line 2, column 4: unknown name"),
        ("grammar", 'root ::= "a"\nb c', "Expected ::= at line 2"),
        ("grammar", 'root ::= "a" | b', "Rule 'b' not found"),
        ("grammar", 'b ::= "a"', "No 'root' rule found"),
        ("grammar", "start: <|im_end|>", "tokens by name or id are refused"),
        ("grammar", "start: <[7]>", "tokens by name or id are refused"),
        ("grammar", 'start: %json {"type": "null"}', "%json"),
        ("grammar", "start: start", "no answer can be of this form"),
        ("json_schema", '{"not": {}}', "the keyword 'not' at #,"),
        ("json_schema", '{"items": {"uniqueItems": true}}', "the keyword 'uniqueItems' at #/items,"),
        ("json_schema", '{"anyOf": [{"$defs": {"x": {"typ": 1}}}]}', "'typ' at #/anyOf/0/[$]defs/x"),
        ("json_schema", '{"x-guidance": {"lenient": true}}', "'x-guidance'"),
        ("json_schema", '{"$ref": "https://example.com/a"}', "only # is looked up"),
        ("json_schema", '{"$ref": "#/$defs/a"}', "Pointer '/[$]defs/a' does not exist"),
        ("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', "no answer can be"),
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"type": "string", "format": "iri"}', "Unknown format: iri"),
        ("json_schema", '{"type": "string", "pattern": "a("}', "unclosed group"),
        ("json_schema", '{"type": "string", "minLength": "3"}', "Expected positive integer"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum .* is greater than"),
        ("json_schema", '{"multipleOf": -1}', "must be above 0"),
        ("json_schema", '{"minimum": true}', "must be a number"),
        ("json_schema", '{"minProperties": 2}', "minProperties 2 at #"),
        ("json_schema", '{"exclusiveMinimum": 0, "maximum": 0.5}', "exclusiveMinimum 0 and maximum 0.5"),
        ("json_schema", '{"allOf": [{"minimum": 0.5}, {"exclusiveMaximum": 1}]}', "exclusiveMaximum 1"),
        ("json_schema", '{"const": "a\\u0000b"}', "control character"),
        ("json_schema", '{"enum": []}', "anyOf is empty"),
        ("json_schema", '{"oneOf": [{"type": "string"}, {"maxLength": 3}]}', "oneOf"),
        ("json_schema", '{"items":' * 120 + "{}" + "}" * 120, "nested too deeply"),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused_by_name(kind: str, text: str, says: str):
    with pytest.raises(UsageError, match=says):
        make_options({kind: text})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"json_schema": {}, "choices": "yes,no"}, "json_schema and choices exclude each other"),
        ({"regex": "a", "grammar": "start: /a/"}, "regex and grammar exclude each other"),
        ({"regex": "a", "stop": "b"}, "regex and stop exclude each other"),
        ({"choices": [f"c{at}" for at in range(27)], "letters": True}, "27, it may have 26 with letters"),
        ({"choices": [f"c{at}" for at in range(1001)]}, "1001, it may have 1000"),
        ({"choices": "yes,no,yes"}, "'yes' twice"),
        ({"choices": "yes"}, "two or more"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        make_options(options)


def test_a_form_without_llguidance_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onevision.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="regex needs llguidance") as caught:
        make_options({"regex": "not compiled before"})
    assert "onevision[schema]" in str(caught.value.hint)
    assert make_options({"choices": "yes,no"}).choices == ("yes", "no")


def test_a_context_without_room_for_the_choices_is_said(model: OneVision, tiny_bundle: Path):
    tokens = model.generate(QUESTION, max_tokens=1).usage.prompt_tokens
    with OneVision.load(tiny_bundle, device="cpu", threads=1) as small:
        small.pipeline.backbone.context_length = tokens + 3
        assert small.generate(QUESTION, choices="red,green").finish_reason == "stop"
        with pytest.raises(PromptError, match="more than the model's context"):
            small.generate(QUESTION, choices=["a very long choice of many words", "red"])
        cut = small.generate(QUESTION, regex="[a-z]{50}")
        assert cut.finish_reason == "length"
        assert cut.warnings == (
            "the answer was cut at 3 tokens, so it may be incomplete: the context is full",
        )


def test_a_schema_and_a_grammar_may_be_files(tmp_path: Path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.gbnf"
    schema.write_text("\ufeff" + json.dumps(SCHEMA), encoding="utf-8")
    grammar.write_text('root ::= "a" | "b"\n', encoding="utf-8")
    assert make_options({"json_schema": str(schema)}) == make_options({"json_schema": SCHEMA})
    assert make_options({"grammar": grammar}).grammar == grammar.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        ({"response_format": {"type": "text"}}, {"json_schema": None}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {"json_schema": SCHEMA},
        ),
        ({"format": "json"}, {"json_schema": {"type": "object"}}),
        ({"format": SCHEMA}, {"json_schema": SCHEMA}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    ],
)
def test_a_request_may_ask_for_a_form(request_: dict[str, Any], options: dict[str, Any]):
    request = parse_request({"messages": [{"role": "user", "content": "Hi"}], **request_})
    assert request.options == options
    make_options(request.options)


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", 3, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": "{}"}}],
)
def test_a_request_names_no_file(value: Any):
    with pytest.raises(PromptError):
        parse_request({"messages": [{"role": "user", "content": "Hi"}], "response_format": value})


def test_an_evaluation_may_have_choices(tiny_bundle: Path):
    done = evaluate(tiny_bundle, families=["shape"], limit=2, options=make_options({"choices": "red,green"}))
    assert {record.text for record in done.records} <= {"red", "green"}
    assert done.to_dict()["choices"] == ("red", "green")


def test_a_command_warns_of_json_that_is_cut(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    warning = "the answer was cut at 2 tokens, so its JSON may be incomplete: raise --max-tokens"
    form = ["-m", str(tiny_bundle), "--json-schema", json.dumps(SCHEMA), "-n", "2"]
    assert _run(["run", QUESTION, *form, "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["warnings"], err) == ([warning], f"warning: {warning}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))
    assert _run(["chat", *form]) == 0
    assert capsys.readouterr().err == f"warning: {warning}\n"


def test_a_command_prints_probabilities(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]):
    command = ["run", QUESTION, "-m", str(tiny_bundle), "--choices", "red,green", "--json"]
    assert _run([*command, "--logprobs", "--top-logprobs", "2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [each["text"] for each in printed["choices"]] == ["red", "green"]
    assert [len(each["top"]) for each in printed["logprobs"]] == [2] * len(printed["token_ids"])
