"""What is kept of a picture: the same answer at once, and never a wrong one."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from onevision import Answer, OneVision
from onevision.errors import PromptError, UsageError
from onevision.runtime import cache as caching
from onevision.runtime import generate as generating
from onevision.runtime import pipeline
from onevision.runtime import prepare as preparing
from onevision.runtime import video as videos
from onevision.runtime.cache import Cache, key_of
from onevision.runtime.options import AnswerOptions
from onevision.runtime.video import read_video, share_frames
from onevision.runtime.vision import encode_once
from tests.runtime.media import photograph

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def test_a_slow_disk_delays_no_token(
    toy_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Writing begins after the first piece, and goes on while the others come and after the answer."""
    answered, write = threading.Event(), caching._write
    begun: list[int] = []

    def slow(path: Path, data: Any) -> None:
        begun.append(pieces)
        assert answered.wait(60), "the answer waits for the disk"
        write(path, data)

    monkeypatch.setattr(caching, "_write", slow)
    monkeypatch.setattr(generating, "_PATIENCE", 0.01)
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        stream, pieces = model.stream(QUESTIONS[0], images=[picture], max_tokens=4), 0
        for pieces, _ in enumerate(stream, start=1):  # noqa: B007 - for `slow`
            pass
        assert stream.answer.warnings == ()
        assert not files(tmp_path)
        again = model.generate(QUESTIONS[0], images=[picture], max_tokens=4)
        assert again.usage.cached_tokens > 0, "from memory"
        answered.set()
    assert begun[0] >= 1
    assert {path.stem.partition("-")[0] for path in files(tmp_path)} == {"features", "prefix"}
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        assert model.generate(QUESTIONS[1], images=[picture], max_tokens=4).usage.cached_tokens > 0


def test_what_waits_to_be_written_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The bound is for what waits: beyond it writing begins, and is waited for if it is at work already."""
    go, write, flush = threading.Event(), caching._write, Cache.flush
    waited: list[str] = []

    def slow(path: Path, data: Any) -> None:
        assert go.wait(60)
        write(path, data)

    def flushed(self: Cache, seconds: float | None = None) -> None:
        waited.append(name)
        go.set()
        flush(self, seconds)

    monkeypatch.setattr(caching, "_UNWRITTEN", 250)
    monkeypatch.setattr(caching, "_write", slow)
    monkeypatch.setattr(Cache, "flush", flushed)
    cache = Cache(tmp_path, memory_bytes=0)
    for name in "abcdef":
        cache.put(name, name.encode() * 100)
        assert name == "c" or cache.get(name) == name.encode() * 100
    assert waited == ["f"]
    assert [path.stem for path in files(tmp_path)] == list("abcdef")
    cache.put("g", b"g" * 100)
    cache.remove("g")
    cache.flush()
    assert cache.get("g") is None


def test_another_process_goes_on(toy_bundle: Path, picture: Path, tmp_path: Path, expected):
    for question, answer in zip(QUESTIONS, expected, strict=True):
        with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
            got = model.generate(question, images=[picture], max_tokens=12)
            assert got.token_ids == answer
            assert model.pipeline._encoder is None or question == QUESTIONS[0], (
                "a known picture needs no encoder"
            )
    assert got.usage.cached_tokens > 0


def test_a_second_question_about_a_video_neither_decodes_nor_encodes(
    toy_bundle: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with OneVision.load(toy_bundle, **SETTINGS) as model:
        expected = [model.generate(q, video=clip, frames=3, max_tokens=8).token_ids for q in QUESTIONS]
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    decoded = []

    def read(source: Any, **settings: Any) -> Any:
        decoded.append(str(source))
        return read_video(source, **settings)

    monkeypatch.setattr(preparing, "read_video", read)
    for path, question, answer in zip((clip, copy), QUESTIONS, expected, strict=True):
        with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path / "cache") as model:
            got = model.generate(question, video=path, frames=3, max_tokens=8)
            assert got.token_ids == answer
            assert (model.pipeline._encoder is None) == (path == copy)
    assert decoded == [str(clip)], "known by its content"
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path / "cache") as model:
        model.generate(QUESTIONS[0], video=clip, frames=3, from_time=0.5, max_tokens=1)
        assert decoded == [str(clip)] * 2, "another choice of frames"
        with pytest.raises(PromptError, match="3 frames"):
            model.pipeline.preparer.read_video(clip, AnswerOptions(frames=3), most=2)


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


def test_a_state_that_llama_refuses_is_removed(toy_bundle: Path, picture: Path, tmp_path: Path, expected):
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        model.generate(QUESTIONS[0], images=[picture], max_tokens=1)
    (path,) = tmp_path.glob("prefix-*.ovc")
    whole = Cache(tmp_path).get(path.stem)
    assert whole is not None
    cut = Cache(tmp_path)
    cut.put(path.stem, bytes(whole[: len(whole) // 2]))
    cut.flush()
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        answer = model.generate(QUESTIONS[1], images=[picture], max_tokens=12)
    assert (answer.token_ids, answer.usage.cached_tokens) == (expected[1], 0)
    assert len(Cache(tmp_path).get(path.stem) or b"") > len(whole) // 2, "written anew"


@pytest.mark.parametrize("library", ["onevision", "onnxruntime", "av"])
def test_entries_of_other_versions_are_not_read(
    toy_bundle: Path, clip: Path, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
):
    def ask() -> Answer:
        with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
            return model.generate(QUESTIONS[0], video=clip, frames=2, max_tokens=1)

    def kinds() -> list[str]:
        return [path.stem.partition("-")[0] for path in files(tmp_path)]

    ask()
    assert kinds() == ["features", "features", "frames", "prefix"]
    if library == "onevision":
        monkeypatch.setattr(caching, "__version__", "0.0.1")
    else:
        module = pipeline if library == "onnxruntime" else videos
        monkeypatch.setattr(module, "installed_version", lambda package: package)
    again = ask()
    assert (again.usage.cached_tokens > 0) == (library == "av")
    more = {"onevision": 8, "onnxruntime": 7, "av": 5}[library]
    assert len(kinds()) == more


class FullDisk(io.FileIO):
    """A file on a disk that has room for so many bytes."""

    room = 0

    def write(self, data: Any) -> int:
        taken = min(len(data), self.room)
        self.room -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data[:taken]) or 0


# Bytes for each file. With 10,000, features of a tile fit, and keys and values do not.
@pytest.mark.parametrize("room", [0, 10, 40, 10_000, "rename"])
def test_a_full_disk_fails_no_answer(
    toy_bundle: Path,
    picture: Path,
    tmp_path: Path,
    expected,
    monkeypatch: pytest.MonkeyPatch,
    room: int | str,
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(handle: int, mode: str) -> io.BufferedWriter:
        file = FullDisk(handle, mode)
        file.room = room
        return io.BufferedWriter(file)

    if room == "rename":
        monkeypatch.setattr(caching.Path, "replace", full)
    else:
        monkeypatch.setattr(caching.os, "fdopen", opened)
    with OneVision.load(toy_bundle, **SETTINGS, cache=tmp_path) as model:
        answer = model.generate(QUESTIONS[0], images=[picture], max_tokens=12)
        assert answer.token_ids == expected[0]
        assert any(os.strerror(errno.ENOSPC) in warning for warning in answer.warnings)
    assert sorted(tmp_path.iterdir()) == files(tmp_path), "no part of a file is left"
    assert bool(files(tmp_path)) == (room == 10_000)
    assert all(Cache(tmp_path).get(path.stem) for path in files(tmp_path))


def test_a_place_that_is_no_folder_is_told(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot make the cache"):
        Cache(tmp_path / "file")


def test_what_was_used_longest_ago_goes(tmp_path: Path):
    cache = Cache(tmp_path, memory_bytes=250, disk_bytes=450)
    for at, name in enumerate("abc"):
        cache.put(name, name.encode() * 100)
        cache.flush()
        os.utime(tmp_path / f"{name}.ovc", (at, at))
    assert list(cache._memory) == ["b", "c"]
    assert cache.get("a") == b"a" * 100  # from the disk; now the newest
    cache.put("d", b"d" * 100)
    cache.flush()
    assert [path.stem for path in files(tmp_path)] == ["a", "c", "d"]
    cache.put("large", b"x" * 1000)
    assert cache.get("large") is None


def test_keys_tell_facts_apart():
    assert (
        len({key_of("a", "b"), key_of("ab"), key_of(b"ab"), key_of(("a", "b")), key_of(1), key_of("1")}) == 6
    )


def test_features_are_kept_by_where_they_were_computed(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Not by the device that was asked for: ``auto`` is the CPU where there is no GPU."""
    cache, tiles = Cache(), np.zeros((1, 56, 56, 3), np.uint8)
    with OneVision.load(toy_bundle, device="cpu", threads=1, cache=cache) as model:
        features = model.pipeline.image_features(tiles)
    with OneVision.load(toy_bundle, device="auto", threads=1, cache=cache) as model:
        if (model.pipeline.vision_device, model.pipeline.backbone.offloaded) != ("cpu", False):
            pytest.skip("this machine has a GPU")
        assert np.array_equal(model.pipeline.image_features(tiles), features)
        assert model.pipeline._encoder is None, "it was known before"
        # Where a GPU might be used, the encoder tells whether it is.
        monkeypatch.setattr(pipeline, "has_cuda", lambda: True)
        assert np.array_equal(model.pipeline.image_features(tiles), features)
        assert model.pipeline._encoder.device == "cpu"
    assert len(cache._memory) == 1


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


# Frames that are like others.

#: Levels of frames; the threshold; the frame whose features each one takes.
ALIKE = (
    ((7, 7, 8, 7), 0, (0, 0, 2, 0)),
    ((10, 11, 12, 13), 1, (0, 0, 2, 2)),  # not a chain: 12 is compared with 10
    ((10, 12, 11), 1.5, (0, 1, 0)),  # of two that are equally near, the earlier
    ((10, 20, 18, 11), 5, (0, 1, 1, 0)),  # the nearest
    ((0, 255), 254.9, (0, 1)),
    ((0, 255), 255, (0, 0)),
    ((255, 0), 255, (0, 0)),
    ((3,), 255, (0,)),
)


@pytest.mark.parametrize(("levels", "threshold", "sources"), ALIKE)
def test_the_table_of_frames(levels, threshold, sources):
    frames = np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels])
    shared, reused = share_frames(frames, threshold)
    assert shared[:, 0, 0, 0].tolist() == [levels[source] for source in sources]
    assert reused == sum(source != at for at, source in enumerate(sources))


def test_a_difference_is_the_mean_of_all_pixels_and_colours():
    frames = np.zeros((2, 2, 2, 3), np.uint8)
    frames[1, 0, 0, 0] = 24  # of 12 values
    assert share_frames(frames, 2.0)[1] == 1
    assert share_frames(frames, 1.99)[1] == 0


@given(
    frames=arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(2), st.just(2), st.just(3))),
    threshold=st.floats(0, 255),
)
def test_no_frame_is_shown_as_one_that_differs_more(frames, threshold):
    shared, reused = share_frames(frames, threshold)
    assert shared.shape == frames.shape
    distances = np.abs(shared.astype(int) - frames.astype(int)).mean(axis=(1, 2, 3))
    assert (distances <= threshold).all()
    assert len(np.unique(shared, axis=0)) <= len(frames) - reused
    if threshold == 0:
        assert np.array_equal(shared, frames)


def test_a_video_takes_the_features_of_frames_like_others(toy_bundle: Path):
    scene = np.asarray(photograph("flower").resize((60, 50)))
    noise = np.random.default_rng(0).integers(-2, 3, (6, *scene.shape))
    video = (scene + noise).clip(0, 255).astype(np.uint8)
    video[3:] = video[3:, ::-1]  # a cut
    with OneVision.load(toy_bundle, **SETTINGS) as model:

        def ask(frames: np.ndarray, **options: Any) -> Any:
            return model.generate("What?", video=frames, max_tokens=8, **options)

        usual, shared, strict = ask(video), ask(video, dedup=3), ask(video, dedup=0)
        both = ask(video[[0, 0, 0, 3, 3, 3]])
    assert (usual.usage.reused_frames, strict.usage.reused_frames, shared.usage.reused_frames) == (0, 0, 4)
    assert strict.token_ids == usual.token_ids
    assert shared.token_ids == both.token_ids
    assert shared.usage.image_tokens == usual.usage.image_tokens
    assert shared.options.dedup == 3


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
    cache.flush()
assert cache.problem is None or "No such file" in cache.problem, cache.problem
"""


@contextmanager
def python(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block, nor five minutes: whoever waits for it goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    last = threading.Timer(300, process.kill)
    last.start()
    try:
        yield process
    finally:
        last.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("turns", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_two_processes_share_a_folder(tmp_path: Path, turns: int):
    with python(WRITER, tmp_path, turns) as one, python(WRITER, tmp_path, turns) as other:
        for process in (one, other):
            _, errors = process.communicate()
            assert process.returncode == 0, errors


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_nothing_wrong(tmp_path: Path, rounds: int):
    """Killed at any moment, with something written before."""
    for _ in range(rounds):
        with python(WRITER, tmp_path, 10_000) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            while not files(tmp_path):
                assert process.poll() is None
        for path in files(tmp_path):
            assert Cache(tmp_path).get(path.stem) == path.stem.encode() * 500_000


#: Writes an entry, and is killed after so many bytes of it; at -1 when it has only to be renamed.
KILLED = """
import io, os, signal, sys
from onevision.runtime import cache as caching

def die(*_):
    # On Windows, SIGTERM ends a process at once as well.
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

class Dying(io.FileIO):
    room = int(sys.argv[3])

    def write(self, data):
        done = super().write(data[: self.room])
        self.room -= done
        if not self.room:
            die()
        return done

if sys.argv[3] == "-1":
    caching.Path.replace = die
else:
    caching.os.fdopen = lambda handle, mode: io.BufferedWriter(Dying(handle, mode))
cache = caching.Cache(sys.argv[1])
cache.put(sys.argv[2], b"x" * 500_000)
cache.flush()
"""
_WHOLE = 500_040  # bytes of that entry's file


@pytest.mark.parametrize("room", [0, 10, 40, 250_000, _WHOLE, -1])
@pytest.mark.parametrize("name", ["new", "old"])
def test_a_writer_that_is_killed_while_it_writes(tmp_path: Path, name: str, room: int):
    before = Cache(tmp_path)
    before.put("old", b"y" * 100)
    before.flush()
    with python(KILLED, tmp_path, name, room) as process:
        _, errors = process.communicate()
        assert process.returncode == (-signal.SIGKILL if os.name == "posix" else signal.SIGTERM), errors
    (part,) = tmp_path.glob("*.part")
    assert part.stat().st_size == (_WHOLE if room == -1 else room)
    cache = Cache(tmp_path, disk_bytes=600_000)
    assert cache.get("old") == b"y" * 100
    assert cache.get("new") is None
    # What it left counts, and goes when it is the oldest.
    os.utime(part, (0, 0))
    cache.put("more", b"z" * 400_000)
    cache.flush()
    assert part.exists() == (room not in {-1, _WHOLE, 250_000})
    assert [path.stem for path in files(tmp_path)] == ["more", "old"]
