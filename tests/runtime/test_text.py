"""Bytes of tokens to text: whole characters, and nothing of a stop string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onevision.runtime.text import TextStream

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
cuts = st.lists(st.integers(0, 200), max_size=12)


def pieces_of(data: bytes, at: list[int]) -> list[bytes]:
    """``data`` cut at some places, some of which may be the same or beyond its end."""
    places = [0, *sorted(at), len(data)]
    return [data[start:end] for start, end in pairwise(places) if end >= start]


def streamed(data: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """What comes out piece by piece, as the engine asks for it."""
    text, out = TextStream(stop), []
    for piece in data:
        out.append(text.add(piece))
        if text.stopped:
            break
    out.append(text.finish())
    assert text.text == "".join(out)
    return out, text


@given(anything, cuts)
@example("naïve 🙂 日本語 \u0301", list(range(30)))
def test_text_comes_out_whole_however_it_is_cut(text: str, at: list[int]):
    out, _ = streamed(pieces_of(text.encode(), at))
    assert "".join(out) == text
    assert out[-1] == ""  # nothing was kept for longer than needed


@given(anything)
def test_a_character_comes_with_its_last_byte(text: str):
    stream = TextStream()
    for character in text:
        *first, last = character.encode()
        assert all(stream.add(bytes([byte])) == "" for byte in first)
        assert stream.add(bytes([last])) == character


@given(st.binary(max_size=40), cuts)
@example(b"\xff", [])
@example(b"ab\xe2\x82", [3])
@example(b"\xf0\x9f\x99\x82\xf0\x9f", [1, 2, 5])
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes, at: list[int]):
    out, _ = streamed(pieces_of(data, at))
    assert "".join(out) == data.decode("utf-8", "replace")


def cut_at_first(text: str, stop: tuple[str, ...]) -> str | None:
    """The text before the stop string that is complete first, by the slowest way; None without one."""
    for end in range(1, len(text) + 1):
        starts = [end - len(item) for item in stop if text[:end].endswith(item)]
        if starts:
            return text[: min(starts)]
    return None


few_letters = st.text("abé🙂", max_size=30)
stops = st.lists(st.text("abé🙂", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


@given(few_letters, cuts, stops)
@example("xaabab", list(range(7)), ("aab", "abab"))
@example("abcdef", [], ("abcdef", "cd"))
@example("aaab", [1, 2, 3], ("aab",))
def test_nothing_of_a_stop_string_leaks(text: str, at: list[int], stop: tuple[str, ...]):
    out, stream = streamed(pieces_of(text.encode(), at), stop)
    expected = cut_at_first(text, stop)
    assert "".join(out) == (text if expected is None else expected)
    assert stream.stopped == (expected is not None)
    assert not any(item in stream.text for item in stop)


def test_the_start_of_a_stop_string_is_held_until_it_is_none():
    stream = TextStream(("END",))
    assert [stream.add(piece) for piece in (b"one E", b"N", b"C", b" E")] == ["one ", "", "ENC", " "]
    assert stream.finish() == "E"
    assert stream.text == "one ENC E"
    assert not stream.stopped


@pytest.mark.parametrize("rest", [b"", b" and more", b"\xe2\x82"])
def test_nothing_follows_a_stop_string(rest: bytes):
    stream = TextStream(("\n\n",))
    assert stream.add(b"answer\n\n" + rest) == "answer"
    assert stream.stopped
    assert stream.finish() == ""
    assert stream.text == "answer"


def test_a_stop_string_can_be_completed_by_the_end():
    stream = TextStream(("\ufffd",))
    assert stream.add(b"ab\xe2\x82") == "ab"
    assert stream.finish() == ""
    assert stream.stopped
