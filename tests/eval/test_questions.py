"""The tiny suite by family, and what may stand in a user's file. What may not is in test_evaluate.py."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from onevision.errors import InputError, UsageError
from onevision.eval.questions import read_questions, tiny_suite
from onevision.eval.suite import FAMILIES, iter_samples


def write(folder: Path, *lines: object, name: str = "questions.jsonl", newline: str = "\n") -> Path:
    text = newline.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that need only be there."""
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "clip.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


# The tiny suite.


def test_all_families_in_turn():
    suite = tiny_suite(limit=60)
    samples = list(suite)
    assert len(samples) == len(suite) == 60
    assert [sample.family for sample in samples] == (list(FAMILIES) * 3)[:60]
    assert {sample.split for sample in samples} == {"test"}
    assert len(tiny_suite()) == 100 * len(FAMILIES)
    assert len(tiny_suite(["sum", "colour"])) == 200


def test_a_family_is_the_same_whatever_else_is_asked():
    alone = list(tiny_suite(["sum", "sum"], limit=2))
    among = [sample for sample in tiny_suite(["colour", "sum"], limit=4) if sample.family == "sum"]
    reference = islice(iter_samples("test", 0, ["sum"]), 2)
    for one, other, third in zip(alone, among, reference, strict=True):
        assert one.id == other.id == third.id
        assert one.prompt == other.prompt == third.prompt
        np.testing.assert_array_equal(one.images[0], other.images[0])


def test_seeds_differ():
    (one,), (other,) = (tiny_suite(["sum"], limit=1, seed=seed) for seed in (0, 1))
    assert one.id != other.id
    assert not np.array_equal(one.images[0], other.images[0])


def test_unknown_family():
    with pytest.raises(UsageError, match="no family 'color'"):
        tiny_suite(["colour", "color"])


# A user's file.


def test_kinds(folder: Path):
    place = write(
        folder,
        {"prompt": "1 + 1?", "answer": 2},
        {"prompt": "What?", "image": "a.png", "answer": "x", "images": None},
        {"prompt": "What?", "images": ["a.png"], "answers": ["x", "y"]},
        {"prompt": "What?", "images": ["a.png", "sub/b.png"], "answer": "x"},
        {"prompt": "What?", "video": "clip.mp4", "answer": "x"},
        {"prompt": "What?", "images": [], "answer": "x"},
    )
    samples = read_questions(place)
    assert [sample.kind for sample in samples] == ["text", "image", "image", "images", "video", "text"]
    assert [sample.answers for sample in samples][:3] == [("2",), ("x",), ("x", "y")]
    assert samples[3].images == (folder / "a.png", folder / "sub" / "b.png")
    assert samples[4].video == folder / "clip.mp4"
    assert {(sample.family, sample.form, sample.chance, sample.split) for sample in samples} == {
        ("all", "short", None, None)
    }
    assert [sample.id for sample in samples] == ["1", "2", "3", "4", "5", "6"]


def test_names_and_forms(folder: Path):
    place = write(
        folder,
        {"prompt": "Q", "answer": "E", "form": "letter", "family": "age", "id": 17},
        {"prompt": "Q", "answers": ["It is red.", "red"], "form": "sentence", "id": "x"},
    )
    one, other = read_questions(place)
    assert (one.id, one.family, one.form, one.answers) == ("17", "age", "letter", ("E",))
    assert (other.id, other.family, other.form) == ("x", "all", "sentence")


def test_a_folder_and_paths_from_there(folder: Path, monkeypatch: pytest.MonkeyPatch):
    write(folder, {"prompt": "Q", "image": "sub/b.png", "answer": "x"})
    monkeypatch.chdir(folder.parent)
    (sample,) = read_questions(Path(folder.name))
    assert sample.images[0].is_file()
    write(folder, {"prompt": "Q", "image": str(folder / "a.png"), "answer": "x"})
    assert read_questions(folder)[0].images == (folder / "a.png",)


def test_bytes_before_and_between_lines(folder: Path):
    """A byte order mark, blank lines, lines that end as on Windows, and a line separator inside a text."""
    first = '\ufeff{"prompt": "Was heißt 图?", "answer": "x"}'
    place = write(folder, first, "", "  ", '{"prompt": "a\u2028b", "answer": "x"}', "", newline="\r\n")
    samples = read_questions(place)
    assert [(sample.id, sample.prompt) for sample in samples] == [("1", "Was heißt 图?"), ("4", "a\u2028b")]


def test_some_of_them(folder: Path):
    lines = [{"prompt": "Q", "answer": "x", "family": "ab"[at % 2]} for at in range(10)]
    place = write(folder, *lines)
    assert Counter(sample.family for sample in read_questions(place, limit=3)) == {"a": 2, "b": 1}
    assert [sample.id for sample in read_questions(place, ["b"], limit=2)] == ["2", "4"]
    with pytest.raises(UsageError, match="no family 'c'"):
        read_questions(place, ["c"])


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        (" <image> <image>\n\nWhat?", "What?"),
        ("<video>What?", "What?"),
        ("What is <image>?", "What is <image>?"),
    ],
)
def test_a_leading_placeholder_is_left_out(folder: Path, prompt: str, asked: str):
    path = write(folder, {"prompt": prompt, "image": "a.png", "answer": "x"})
    (sample,) = list(read_questions(path))
    assert sample.prompt == asked


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"prompt": "<image>\nWhat?", "answer": "x"},
            "the prompt has <image>, and there is no image or video",
        ),
        ({"prompt": "<image>\n", "image": "a.png", "answer": "x"}, "prompt is empty"),
    ],
)
def test_a_placeholder_without_its_image_or_question_is_refused(folder: Path, line: dict, said: str):
    with pytest.raises(InputError, match=said):
        list(read_questions(write(folder, line)))
