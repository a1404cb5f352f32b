"""The answers file: what it holds, and how it is written, stopped and gone on with."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from onevision.errors import InputError, OneVisionError, UsageError
from onevision.eval.jsonl import read_objects, to_line
from onevision.eval.records import AnswersFile, Record, read_records
from tests.eval.conftest import record, sample

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MADE = [record(0), record(1, "grün 图\u2028", chance=None), record(2, error="a.png is damaged")]


def stopped_after(records: list[Record]) -> Iterator[Record]:
    yield from records
    raise KeyboardInterrupt


def write(file: AnswersFile, records: Iterable[Record]) -> None:
    with file.writing() as add:
        for each in records:
            add(each)


def test_round_trip(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    write(AnswersFile(path), MADE)
    assert read_records(path) == MADE
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == [
        {**asdict(each), "answers": ["red"]} for each in MADE
    ]


def test_a_right_answer_and_one_that_never_came():
    good, _, bad = MADE
    assert (good.right, good.error, good.finish_reason) == (True, None, "stop")
    assert (bad.right, bad.error, bad.finish_reason, bad.ttft_ms) == (False, "a.png is damaged", None, None)


def test_names_that_are_no_utf8(tmp_path: Path):
    line = to_line({"error": "a\udcff.png is damaged"})
    (tmp_path / "a").write_bytes(line)
    assert read_objects(tmp_path / "a") == {1: {"error": "a\udcff.png is damaged"}}


def test_each_answer_is_on_disk_at_once(tmp_path: Path):
    file = AnswersFile(tmp_path / "a.jsonl")
    with file.writing() as add:
        for count, each in enumerate(MADE, 1):
            add(each)
            assert read_records(file.part) == MADE[:count]
        assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("torn", [b"", b'{"id": "colour-1", "fam', '{"text": "图'.encode()[:-1]])
def test_going_on(tmp_path: Path, torn: bytes):
    """After whole lines; of a line that was being written nothing is left."""
    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(AnswersFile(path), stopped_after(MADE[:1]))
    assert not path.exists()
    part = tmp_path / "a.jsonl.part"
    part.write_bytes(part.read_bytes() + torn)
    file = AnswersFile(path)
    assert file.kept == MADE[:1]
    write(file, MADE[1:])
    assert read_records(path) == MADE
    assert not part.exists()


def test_nothing_kept_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        write(AnswersFile(tmp_path / "a.jsonl"), stopped_after([]))
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_by_force(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"a\.jsonl exists"):
        AnswersFile(path)
    with pytest.raises(KeyboardInterrupt):
        write(AnswersFile(path, force=True), stopped_after([]))
    assert path.read_bytes() == b"precious"
    write(AnswersFile(path, force=True), MADE)
    assert read_records(path) == MADE


def test_only_the_same_run_is_gone_on_with(tmp_path: Path):
    file = AnswersFile(tmp_path / "a.jsonl")
    file.part.write_bytes(b"".join(to_line(asdict(each)) for each in MADE[:2]))
    samples = [sample(0), sample(1, chance=None), sample(2)]
    kept = AnswersFile(tmp_path / "a.jsonl")
    kept.check(samples, "run")
    others = [
        (samples, "another bundle"),
        (samples[1:], "run"),
        (samples[:1], "run"),
        ([samples[0], replace(samples[1], answers=("green",))], "run"),
    ]
    for asked, run in others:
        with pytest.raises(UsageError, match="is of another run"):
            kept.check(asked, run)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file size")
def test_a_disk_that_is_full(tmp_path: Path):
    import resource
    import signal

    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(to_line(asdict(MADE[0]))) + 10, before[1]))
    try:
        with pytest.raises(OneVisionError, match=r"cannot write .*a\.jsonl\.part: File too large"):
            write(AnswersFile(tmp_path / "a.jsonl"), MADE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert AnswersFile(tmp_path / "a.jsonl").kept == MADE[:1]


@pytest.mark.parametrize(
    "change", [{"text": None}, {"right": "yes"}, {"id": 7}, {"answers": "red"}, {"run": ...}]
)
def test_lines_that_are_no_answers(tmp_path: Path, change: dict):
    data = {key: value for key, value in (asdict(MADE[0]) | change).items() if value is not ...}
    (tmp_path / "a.jsonl").write_bytes(to_line(asdict(MADE[0])) + to_line(data))
    with pytest.raises(
        InputError, match=rf"line 2 is not an answer: {next(iter(change))} is (missing|.*, expected)"
    ):
        read_records(tmp_path / "a.jsonl")
