"""Options: what is taken, what is refused, and by which words."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from onevision.errors import UsageError
from onevision.runtime.options import DEFAULT_MAX_TOKENS, AnswerOptions, make_options

GOOD = {
    "temperature": (0, 0.0, 0.7, 1, 5.0),
    "top_k": (0, 1, 40, 10**6),
    "top_p": (1, 1.0, 0.5, 1e-6),
    "min_p": (0, 0.05, 1.0),
    "repetition_penalty": (1, 1.05, 0.5, 2.0),
    "seed": (None, 0, 7, 2**32 - 1),
    "max_tokens": (1, 512, 10**9),
    "frames": (None, 1, 32),
    "fps": (None, 0.1, 1, 24),
    "from_time": (None, 0, 1.5),
    "to_time": (None, 0, 90),
    "frames_by": ("number", "time"),
    "max_tiles": (None, 1, 37),
    "detail": ("low", "auto", "high"),
    "dedup": (None, 0, 1.5, 255),
    "ttft_target": (None, 0.001, 5, 1e6),
    "exif": (True, False),
    "page": (None, "1", "12", "2-4", "1,3-5", "3,1", "all"),
    "stretch": (True, False),
    "ignore_end": (True, False),
    "template": (None, "training", "hf"),
    "system": (None, "", "Be brief."),
    "stop": ((), ("\n",), ("END", "\n\n")),
    "json_schema": (None, "{}", '{"type": "object"}'),
    "regex": (None, "", "[a-z]+", "(?i)yes|no"),
    "grammar": (None, 'root ::= "yes" | "no"', "start: /a+/"),
    "choices": ((), ("yes", "no"), ("yes", "yes, please", "Yes")),
    "letters": (False,),
    "logprobs": (True, False),
    "top_logprobs": (0,),
}
BAD = {
    "temperature": (-0.1, math.inf, math.nan, 1e30, "0.5", None, True),
    "top_k": (-1, 2.5, "3", 2**31, None),
    "top_p": (0, -0.1, 1.01, math.nan, "1", None),
    "min_p": (-0.1, 1.1, math.nan, None),
    "repetition_penalty": (0, -1, math.inf, math.nan, "1", None),
    "seed": (-1, 2**32, 1.5, "7"),
    "max_tokens": (0, -1, 1.5, "5", None, math.inf, True),
    "frames": (0, -1, 2.5, "8"),
    "fps": (0, -1, math.nan, math.inf, 1001, "1", True),
    "from_time": (-1, math.nan, math.inf, "", "x", "-1", "1:2:3:4", "1:75", "1m", "1:", True),
    "to_time": (-0.5, math.nan, "ten", "75:75", "0:90:00"),
    "frames_by": ("index", "", None),
    "max_tiles": (0, -1, 2.5, "8", True),
    "detail": ("medium", "", None),
    "dedup": (-0.1, 255.1, math.nan, "1"),
    "ttft_target": (0, -1, math.inf, math.nan, "5s"),
    "page": ("", "0", "-1", "1-", "2-1", "1,,2", "last", 0, -1, 1.5, True, "1" * 10),
    "stretch": (1, "yes", None),
    "template": ("chatml", "", 3),
    "stop": ("", ("",), ("END", ""), (3,), [None]),
    "json_schema": (3, [], "[1]", '"x"', "{", "", "no-such-file.json", False, {"typ": "object"}),
    "regex": (3, "(", "(?=a)b", r"(a)\1", b"a"),
    "grammar": (3, "no-such-file.lark", "root ::= [a-", "start: other", "start: start"),
    "choices": ((1, 2), ["yes"], [], "", "yes,,no", "yes,yes", '["a", 1]', "[", 5, {"a": 1, "b": 2}),
    "letters": (True, 1, None),  # True: without choices
    "logprobs": (1, None, "yes"),
    "top_logprobs": (-1, 101, 1.5, None, 3),  # 3: without logprobs
}


def table(values: dict[str, tuple[Any, ...]]) -> Any:
    pairs = [(name, value) for name, row in values.items() for value in row]
    return pytest.mark.parametrize(("name", "value"), pairs, ids=[f"{n}={v!r}" for n, v in pairs])


@table(GOOD)
def test_good_values_are_kept(name: str, value: Any):
    options = make_options({name: value})
    assert getattr(options, name) == value


@table(BAD)
def test_bad_values_are_refused_by_name(name: str, value: Any):
    with pytest.raises(UsageError, match=r"stop string" if name == "stop" else name.replace("_", "[-_]")):
        make_options({name: value})


def test_every_option_is_in_the_tables():
    names = {field.name for field in fields(AnswerOptions)}
    assert set(GOOD) == names
    assert names - set(BAD) == {"exif", "ignore_end", "system"}


@pytest.mark.parametrize("detail", ["low", "high"])
def test_detail_and_a_limit_of_tiles_exclude_each_other(detail: str):
    with pytest.raises(UsageError, match="exclude each other"):
        make_options({"detail": detail, "max_tiles": 4})
    assert make_options({"detail": "auto", "max_tiles": 4}).max_tiles == 4


def test_defaults_are_greedy():
    options = make_options({})
    assert options == AnswerOptions()
    assert options.max_tokens == DEFAULT_MAX_TOKENS
    assert options.temperature == 0


def test_a_page_may_be_a_number():
    assert make_options({"page": 3}) == make_options({"page": "3"})


def test_one_stop_string_need_not_be_in_a_list():
    assert make_options({"stop": "END"}).stop == ("END",)
    assert make_options({"stop": ["a", "b"]}).stop == ("a", "b")
    assert make_options({"stop": None}).stop == ()


def test_no_form_is_a_free_answer():
    assert make_options({"json_schema": None, "grammar": None, "choices": None}) == AnswerOptions()


@pytest.mark.parametrize("name", ["temprature", "max_new_tokens", "sampling", "do_sample"])
def test_unknown_options_are_named_with_the_known_ones(name: str):
    with pytest.raises(UsageError, match=name) as caught:
        make_options({"seed": 1, name: 1})
    assert "temperature" in str(caught.value.hint)
    assert "max_tokens" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("1:30", 90), ("01:30.25", 90.25), ("1:01:30", 3690), ("100:00:00", 360_000)],
)
def test_times_of_a_video(text: str, seconds: float):
    assert make_options({"from_time": text}).from_time == seconds
    assert make_options({"to_time": text}).to_time == seconds


def test_a_part_of_a_video_does_not_end_before_it_starts():
    assert make_options({"from_time": 2, "to_time": "0:02"}).to_time == 2
    with pytest.raises(UsageError, match="from_time is 3 s, after to_time, 2 s"):
        make_options({"from_time": 3, "to_time": 2})
