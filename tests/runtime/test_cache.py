"""What is kept of a picture: the same answer at once, and never a wrong one."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from onevision import OneVision
from onevision.errors import UsageError
from onevision.runtime import cache as caching
from onevision.runtime.cache import Cache, key_of
from onevision.runtime.features import encode_once
from tests.runtime.media import photograph

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS = ("What is on the table?", "Which colour is it?")
SETTINGS = {"device": "cpu", "threads": 1}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ovc"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    photograph("china").resize((120, 90)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(toy_bundle: Path, picture: Path) -> list[tuple[int, ...]]:
    """Answers without a cache."""
    with OneVision.load(toy_bundle, **SETTINGS) as model:
        return [model.generate(q, images=[picture], max_tokens=12).token_ids for q in QUESTIONS]


def test_a_second_question_reads_only_itself(toy_bundle: Path, picture: Path, expected):
    with OneVision.load(toy_bundle, **SETTINGS, cache=Cache()) as model:
        first, second, again = (
            model.generate(question, images=[picture], max_tokens=12)
            for question in (*QUESTIONS, QUESTIONS[0])
        )
    assert [first.token_ids, second.token_ids] == expected
    assert again.token_ids == first.token_ids
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == again.usage.cached_tokens > second.usage.image_tokens
    assert second.timings.encode == 0


def test_another_process_goes_on(toy_bundle: Path, picture: Path, tmp_path: Path, expected):
    for question, answer in zip(QUESTIONS, expected, strict=True):
        with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
            got = model.generate(question, images=[picture], max_tokens=12)
            assert got.token_ids == answer
            assert model._encoder is None or question == QUESTIONS[0], "a known picture needs no encoder"
    assert got.usage.cached_tokens > 0


def test_a_changed_picture_under_the_same_name_is_another(toy_bundle: Path, tmp_path: Path):
    path = tmp_path / "picture.png"
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path / "cache") as model:
        pixels = np.array(photograph("china").resize((120, 90)))
        for _ in range(2):
            Image.fromarray(pixels).save(path)
            assert model.generate("What?", images=[path], max_tokens=1).usage.cached_tokens == 0
            pixels[40, 40] ^= 255


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damage_is_passed_over_and_removed(
    toy_bundle: Path, picture: Path, tmp_path: Path, expected, damage: str
):
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        model.generate(QUESTIONS[0], images=[picture], max_tokens=1)
    for path in files(tmp_path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"flip": data, "cut": data[:-9], "empty": b""}[damage])
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        answer = model.generate(QUESTIONS[1], images=[picture], max_tokens=12)
    assert answer.token_ids == expected[1]
    assert answer.usage.cached_tokens == 0
    assert Cache(tmp_path).get(files(tmp_path)[0].stem) is not None, "written anew"


def test_a_full_disk_fails_no_answer(
    toy_bundle: Path, picture: Path, tmp_path: Path, expected, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.Path, "replace", full)
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        assert model.generate(QUESTIONS[0], images=[picture], max_tokens=12).token_ids == expected[0]
        assert any("No space left" in note for note in model.notes)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_told(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot make the cache"):
        Cache(tmp_path / "file")


def test_what_was_used_longest_ago_goes(tmp_path: Path):
    import os

    cache = Cache(tmp_path, memory_bytes=250, disk_bytes=450)
    for at, name in enumerate("abc"):
        cache.put(name, name.encode() * 100)
        os.utime(tmp_path / f"{name}.ovc", (at, at))
    assert list(cache._memory) == ["b", "c"]
    assert cache.get("a") == b"a" * 100  # from the disk; now the newest
    cache.put("d", b"d" * 100)
    assert [path.stem for path in files(tmp_path)] == ["a", "c", "d"]
    cache.put("large", b"x" * 1000)
    assert cache.get("large") is None


def test_keys_tell_facts_apart():
    assert (
        len({key_of("a", "b"), key_of("ab"), key_of(b"ab"), key_of(("a", "b")), key_of(1), key_of("1")}) == 6
    )


def test_equal_tiles_are_encoded_once():
    tiles = np.zeros((5, 2, 2, 3), np.uint8)
    tiles[1] = tiles[3] = 7
    seen, told = [], []

    def encode(some, on_some):
        seen.append(len(some))
        for done in range(1, len(some) + 1):
            on_some(done, len(some))
        return some[:, :1, 0].astype(np.float32)

    found = encode_once(tiles, encode, None, (), (1, 3), lambda *step: told.append(step))
    assert found[:, 0, 0].tolist() == [0, 7, 0, 7, 0]
    assert seen == [2]
    assert told == [(3, 5), (5, 5)]


WRITER = """
import sys
from onevision.runtime.cache import Cache
cache = Cache(sys.argv[1], memory_bytes=0, disk_bytes=3_000_000)
print("ready", flush=True)
for turn in range(int(sys.argv[2])):
    name = f"k{turn % 5}"
    data = cache.get(name)
    assert data is None or data == name.encode() * 500_000, name
    cache.put(name, name.encode() * 500_000)
assert cache.problem is None or "No such file" in cache.problem, cache.problem
"""


def writer(folder: Path, turns: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("turns", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_two_processes_share_a_folder(tmp_path: Path, turns: int):
    processes = [writer(tmp_path, turns) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_nothing_wrong(tmp_path: Path, rounds: int):
    for _ in range(rounds):
        process = writer(tmp_path, 10_000)
        assert process.stdout
        process.stdout.readline()
        process.kill()
        process.communicate()
        for path in files(tmp_path):
            assert Cache(tmp_path).get(path.stem) == path.stem.encode() * 500_000
