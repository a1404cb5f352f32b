"""The 0.5b in its true shape, through the command line: synth, export, run on a photograph and on a video."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from onevision.bundle import open_bundle

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

GB = 1e9
#: 640×427 is row 5 of the model's table of sizes: two by two tiles and the base view.
PHOTO_TILES, PHOTO_TOKENS = 5, 2709
FRAME_TOKENS = 196


def command(*arguments: str | Path) -> tuple[str, float]:
    """Output of ``onevision …`` and the most memory that it held at a time, in bytes."""
    call = "import sys; from onevision.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", call, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        watched = psutil.Process(process.pid)
        while not ended.wait(0.02):
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    ended.set()
    watcher.join()
    assert process.returncode == 0, err
    return out, float(peak)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    command("synth", "--size", "0.5b", folder / "checkpoint")
    exact = ("--vision", "fp32", "--prefill", "none")
    out, peak = command(
        "export", "--source", folder / "checkpoint", "-o", folder / "bundle", *exact, "--json"
    )
    assert peak <= 6 * GB
    assert json.loads(out)["verify"]["passed"]
    return folder / "bundle"


def test_manifest_has_the_true_shape(bundle: Path) -> None:
    manifest = open_bundle(bundle, check=True).manifest
    assert (manifest.vision.layers, manifest.vision.hidden, manifest.vision.image_size) == (26, 1152, 384)
    assert (manifest.backbone.layers, manifest.backbone.hidden) == (24, 896)
    assert manifest.backbone.vocab_size == 152000
    assert 8 < manifest.backbone.bits_per_weight < 9


def test_photograph(bundle: Path, photo: Path) -> None:
    out, peak = command("run", "What is it?", "-i", photo, "-m", bundle, "-n", "4", "--json")
    answer = json.loads(out)
    assert answer["usage"]["tiles"] == PHOTO_TILES
    assert answer["usage"]["image_tokens"] == PHOTO_TOKENS
    assert peak <= 3.5 * GB


def test_video(bundle: Path, clip: Path) -> None:
    out, peak = command(
        "run", "What happens?", "--video", clip, "--frames", "3", "-m", bundle, "-n", "4", "--json"
    )
    answer = json.loads(out)
    assert answer["usage"]["tiles"] == 3
    assert answer["usage"]["image_tokens"] == 3 * FRAME_TOKENS + 1
    assert peak <= 3.5 * GB
