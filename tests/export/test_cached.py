"""Bundles in the user's cache: made once, whole, and replaced by those of another version."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onevision import __version__
from onevision.bundle import open_bundle, write_bundle
from onevision.errors import ExportError, UsageError
from onevision.export.cached import cached_bundle
from onevision.files import cache_folder
from tests.conftest import NoProgress

if TYPE_CHECKING:
    from onevision.progress import Progress

DIGEST = "0123456789abcdef"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(toy: Path, progress: Progress | None = None, digest: str = DIGEST) -> Path:
    """The toy's bundle in the cache; making it is copying it."""

    def make(target: Path, progress: Progress) -> None:
        with write_bundle(target) as folder, progress.step("copying"):
            shutil.copytree(toy, folder, dirs_exist_ok=True)

    return cached_bundle("toy", digest, make, progress, what="a toy", instead="name a bundle: -m FOLDER")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_it_is_made_once(place: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next time without a step, without the extra, and where nothing can be written."""
    progress = NoProgress()
    bundle = cached(toy_bundle, progress)
    assert bundle.parent == place
    assert re.fullmatch(rf"toy-{re.escape(__version__)}-{DIGEST}", bundle.name)
    assert progress.notes == [f"a toy is exported once, into {place}"]
    open_bundle(bundle, check=True)
    before, progress = times(bundle), NoProgress()
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    monkeypatch.setattr(Path, "mkdir", None)
    assert cached(toy_bundle, progress) == bundle
    assert progress.notes == []
    assert times(bundle) == before


def test_a_damaged_one_is_made_again_and_others_are_left_alone(place: Path, toy_bundle: Path) -> None:
    theirs = [place / "toy-mine" / "onevision.json", place / "toy-holiday.jpg"]
    ours = [
        place / f"toy-0.0.9-{DIGEST}" / "onevision.json",
        place / f".toy-0.0.9-{DIGEST}.x1y2.partial" / "vision.onnx",
    ]
    for path in (*theirs, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    bundle = cached(toy_bundle)
    assert {path.name for path in place.iterdir()} == {bundle.name, "toy.lock", "toy-mine", "toy-holiday.jpg"}
    assert all(path.exists() for path in theirs)

    (bundle / "onevision.json").unlink()
    (bundle / "left-over").touch()
    progress = NoProgress()
    assert cached(toy_bundle, progress) == bundle
    assert any("damaged" in note for note in progress.notes)
    assert "left-over" not in times(bundle)
    open_bundle(bundle, check=True)


def test_another_digest_is_another_bundle(
    place: Path, toy_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = cached(toy_bundle, NoProgress())
    with caplog.at_level(logging.INFO, "onevision"):
        second = cached(toy_bundle, digest="f" * 16)
    assert "copying" in caplog.messages
    assert second != first
    assert not first.exists()


WAITING = """
import logging, sys, time
from pathlib import Path
from tests.export import test_cached

logging.basicConfig(level=logging.INFO, format="%(message)s")
copy = test_cached.shutil.copytree
test_cached.shutil.copytree = lambda *a, **k: (time.sleep(1), copy(*a, **k))
print(test_cached.cached(Path(sys.argv[1])))
"""


def test_of_two_processes_one_makes_it(place: Path, toy_bundle: Path) -> None:
    command = [sys.executable, "-c", WAITING, str(toy_bundle)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    both = [subprocess.Popen(command, env=dict(os.environ), **streams) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] == f"{cached(toy_bundle)}\n"
    assert sum("copying" in err for _, err in said) == 1


class Stopping(NoProgress):
    """Ctrl-C in the middle."""

    def step(self, name: str):
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing(place: Path, toy_bundle: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached(toy_bundle, Stopping())
    assert [path.name for path in place.iterdir()] == ["toy.lock"]


def test_a_cache_that_cannot_be_written(place: Path, toy_bundle: Path) -> None:
    place.write_text("a file", encoding="utf-8")
    with pytest.raises(ExportError, match=r"cannot write in the cache .*cache: ") as caught:
        cached(toy_bundle, NoProgress())
    assert "ONEVISION_CACHE" in str(caught.value.hint)


def test_without_the_extra(place: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "filelock"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="exporting a toy needs onnx, filelock") as caught:
        cached(toy_bundle, NoProgress())
    assert caught.value.hint == "pip install 'onevision[export]', or name a bundle: -m FOLDER"
    assert not place.exists()


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system keeps such things, unless the environment says otherwise."""
    from platformdirs import user_cache_path

    monkeypatch.setenv("ONEVISION_CACHE", "~/kept")
    assert cache_folder() == Path("~/kept").expanduser()
    monkeypatch.setenv("ONEVISION_CACHE", "")
    assert cache_folder() == user_cache_path("onevision", appauthor=False)
