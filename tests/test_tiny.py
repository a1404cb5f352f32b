"""The default bundle: what it is, when it is made, and when it is not."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision import OneVision, __version__
from onevision.bundle import open_bundle
from onevision.cli import _run
from onevision.errors import ExportError, UsageError
from onevision.models import SHIPPED
from onevision.tiny import default_bundle
from tests.conftest import NoProgress

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place(toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a toy in place of the tiny model, which is quicker to export."""
    monkeypatch.delenv("ONEVISION_MODEL", raising=False)
    monkeypatch.setitem(SHIPPED, ("tiny", "ov"), shutil.copytree(toy_checkpoint, tmp_path / "checkpoint"))
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Toys are exported faster so."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_it_is_the_shipped_checkpoint_in_full_precision(tiny_bundle: Path, cache: Path) -> None:
    assert tiny_bundle.parent == cache
    assert re.fullmatch(rf"tiny-{re.escape(__version__)}-[0-9a-f]{{16}}", tiny_bundle.name)
    manifest = open_bundle(tiny_bundle, check=True).manifest
    assert (manifest.name, manifest.size, manifest.variant) == ("tiny", "tiny", "ov")
    assert manifest.files["vision.onnx"].precision == "fp32"
    assert manifest.files["backbone.gguf"].precision == "f32"
    assert manifest.video.frames == 8, "as the model was trained"
    assert manifest.quality["verify"]["passed"]


def test_it_is_found_the_next_time(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a step, without the extra, and where nothing can be written."""
    before, progress = times(tiny_bundle), NoProgress()
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    monkeypatch.setattr(Path, "mkdir", None)
    assert default_bundle(progress) == tiny_bundle
    assert progress.notes == []
    assert times(tiny_bundle) == before


def test_it_is_loaded_where_none_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ONEVISION_MODEL", raising=False)
    clip = np.random.default_rng(0).integers(0, 256, (24, 60, 60, 3), np.uint8)
    with OneVision.load(threads=1) as model:
        assert model.bundle.folder == tiny_bundle
        answer = model.generate("What happens?", video=clip, max_tokens=4)
    assert answer.usage.tiles == 8, "of the 24 frames"
    capfd.readouterr()
    assert _run(["run", "Hi", "-n", "4", "--threads", "1"]) == 0
    out, err = capfd.readouterr()
    assert (out.count("\n") > 0, err) == (True, "")


@pytest.mark.usefixtures("one_thread")
def test_it_is_made_on_first_use_and_when_it_is_damaged(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = [place / "tiny-mine" / "onevision.json", place / "tiny-holiday.jpg"]
    ours = [
        place / "tiny-0.0.9-0123456789abcdef" / "onevision.json",
        place / ".tiny-0.0.9-0123456789abcdef.x1y2.partial" / "vision.onnx",
    ]
    for path in (*theirs, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert _run(["run", "Hi", "-n", "1"]) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    assert err.startswith(f"  the tiny model is exported once, into {place}\n✓ vision encoder to ONNX (fp32)")
    (bundle,) = place.glob("tiny-*-*")
    assert bundle == default_bundle()
    assert {path.name for path in place.iterdir()} == {
        bundle.name, "tiny.lock", "tiny-mine", "tiny-holiday.jpg",
    }  # fmt: skip
    assert all(path.exists() for path in theirs)

    (bundle / "onevision.json").unlink()
    (bundle / "left-over").touch()
    assert _run(["run", "Hi", "-n", "1", "--quiet"]) == 0
    assert capfd.readouterr() == (out, "")
    assert "left-over" not in times(bundle)
    assert open_bundle(bundle, check=True).manifest.size == "tiny"


@pytest.mark.usefixtures("one_thread")
def test_another_checkpoint_is_another_bundle(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One byte is enough; the size of no file has changed."""
    first = default_bundle(NoProgress())
    weights = SHIPPED["tiny", "ov"] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with caplog.at_level(logging.INFO, "onevision"):
        second = default_bundle()
    assert "verifying the bundle" in caplog.messages
    assert second != first
    assert not first.exists()


WAITING = """
import logging, sys
from pathlib import Path
from onevision.tiny import default_bundle
from onevision.models import SHIPPED

logging.basicConfig(level=logging.INFO, format="%(message)s")
SHIPPED["tiny", "ov"] = Path(sys.argv[1])
print(default_bundle())
"""


def test_of_two_processes_one_makes_it(place: Path) -> None:
    command = [sys.executable, "-c", WAITING, str(SHIPPED["tiny", "ov"])]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, env=environment, **streams) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] == f"{default_bundle()}\n"
    assert sum("vision encoder to ONNX" in err for _, err in said) == 1


class Stopping(NoProgress):
    """Ctrl-C in the middle."""

    def step(self, name: str):
        if name.startswith("backbone"):
            raise KeyboardInterrupt
        return super().step(name)


@pytest.mark.usefixtures("one_thread")
def test_an_interrupt_leaves_nothing(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        default_bundle(Stopping())
    assert [path.name for path in place.iterdir()] == ["tiny.lock"]


def test_a_cache_that_cannot_be_written(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place.write_text("a file", encoding="utf-8")
    with pytest.raises(ExportError, match=r"cannot write in the cache .*cache: ") as caught:
        default_bundle(NoProgress())
    assert "ONEVISION_CACHE" in str(caught.value.hint)
    assert _run(["run", "Hi"]) == 1
    assert re.fullmatch(r"error: cannot write in the cache .*\nhint: .*\n", capfd.readouterr().err)


def test_without_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "filelock"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="making the default one needs torch, filelock") as caught:
        default_bundle(NoProgress())
    assert caught.value.hint == "pip install 'onevision[export]', or name a bundle: -m FOLDER"
    assert not place.exists()


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the system keeps such things, unless the environment says otherwise."""
    from platformdirs import user_cache_path

    from onevision.export.cached import cache_folder

    monkeypatch.setenv("ONEVISION_CACHE", "~/kept")
    assert cache_folder() == Path("~/kept").expanduser()
    monkeypatch.setenv("ONEVISION_CACHE", "")
    assert cache_folder() == user_cache_path("onevision", appauthor=False)
