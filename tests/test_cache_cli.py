"""``onevision cache``: what is listed, what is removed, and what stays."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from onevision.cli import _run
from onevision.runtime.cache import Cache

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert _run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def kinds(report: dict[str, Any]) -> dict[str, int]:
    return {row["kind"]: row["entries"] for row in report["kinds"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Entries of three kinds, of 1 to 4 days ago, and files that are no entries."""
    folder = tmp_path / "cache"
    cache = Cache(folder)
    for age, kind in enumerate(("features", "features", "prefix", "other"), start=1):
        cache.put(f"{kind}-{age}", bytes(60))
        cache.flush()
        used = time.time() - age * DAY
        os.utime(folder / f"{kind}-{age}.ovc", (used, used))
    (folder / ".half.part").write_bytes(bytes(10))
    (folder / "photo.jpg").write_bytes(b"mine")
    return folder


def test_an_answer_is_listed_by_kind(toy_bundle: Path, clip: Path, tmp_path: Path, capsys):
    folder = tmp_path / "cache"
    run(capsys, "run", "What?", "-v", clip, "--frames", 3, "-m", toy_bundle, "--cache", folder, "-n", 2)
    report = run(capsys, "cache", "list", "--cache", folder)
    assert kinds(report) == {"image features": 3, "keys and values of prompts": 1, "video frames": 1}
    assert report["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert _run(["cache", "list", "--cache", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "video frames" in out
    assert f"in {folder}" in err


def test_clear_removes_entries_alone(folder: Path, capsys):
    assert kinds(run(capsys, "cache", "list", "--cache", folder)) == {
        "image features": 2,
        "keys and values of prompts": 1,
        "unfinished or unknown": 2,
    }
    removed = run(capsys, "cache", "clear", "--cache", folder)
    assert removed["bytes"] == 4 * 100 + 10
    assert [path.name for path in folder.iterdir()] == ["photo.jpg"]
    assert run(capsys, "cache", "clear", "--cache", folder)["kinds"] == []


def test_clear_by_age(folder: Path, capsys):
    assert kinds(run(capsys, "cache", "clear", "--cache", folder, "--older-than", 2.5)) == {
        "keys and values of prompts": 1,
        "unfinished or unknown": 1,
    }
    assert (folder / "features-2.ovc").exists()
    assert not (folder / "prefix-3.ovc").exists()


def test_the_folder_of_onevision_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path / "own"))
    assert run(capsys, "cache", "list")["kinds"] == []
    (tmp_path / "own" / "speed").mkdir(parents=True)
    (tmp_path / "own" / "speed" / "a.json").write_text("{}")
    (tmp_path / "own" / "bundle").mkdir()
    assert kinds(run(capsys, "cache", "clear")) == {"speed profiles": 1}
    assert sorted(path.name for path in (tmp_path / "own").rglob("*")) == ["bundle", "speed"]
