"""``--synthetic``: a bundle with random weights in the cache, made once. The shape here is a toy's."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from onevision.bench import synthetic
from onevision.bench.synthetic import Synthetic, needed_bytes, synthetic_bundle
from onevision.bundle import BACKBONE, GOLDEN, PREFILL, VISION, open_bundle
from onevision.cli import _run
from onevision.errors import ExportError
from onevision.export.synth import SynthSpec
from tests.conftest import NoProgress

if TYPE_CHECKING:
    from pathlib import Path

TOY = SynthSpec()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("vision", "backbone"), [("int8", "q4_0"), ("fp16", "q8_0")])
def test_it_is_made_once(cache: Path, vision: str, backbone: str):
    wanted, progress = Synthetic("0.5b", vision, backbone), NoProgress()
    folder = synthetic_bundle(wanted, progress, threads=1, spec=TOY)
    bundle = open_bundle(folder, check=True)
    files = bundle.manifest.files
    assert (files[VISION].precision, files[BACKBONE].precision) == (vision, backbone)
    assert PREFILL in files
    assert GOLDEN not in files, "nothing is proven of random weights"
    assert "random" in bundle.manifest.name
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [folder.name, f"synthetic-0.5b-{vision}-{backbone}.lock"]
    ), "no checkpoint is left"
    assert sum(path.stat().st_size for path in folder.iterdir()) < needed_bytes(TOY, wanted)
    again = NoProgress()
    assert synthetic_bundle(wanted, again, threads=1, spec=TOY) == folder
    assert again.notes == []


def test_it_is_measured(cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setattr(SynthSpec, "preset", classmethod(lambda _cls, _size: TOY))
    words = ["bench", "--synthetic", "0.5b", "--scenario", "text", "--runs", "1", "--threads", "1"]
    monkeypatch.setattr("onevision.bench.roofline.TIME_BOX", 0.0)
    assert _run([*words, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["model"]["name"] == "synthetic-0.5b (random weights)"
    assert f"only times mean something: {cache}" in err


def test_a_full_disk_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(synthetic, "needed_bytes", lambda *_: 1 << 60)
    with pytest.raises(ExportError, match="disk"):
        synthetic_bundle(Synthetic("0.5b"), NoProgress(), threads=1, spec=TOY)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_an_interrupt_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_bundle(Synthetic("0.5b"), NoProgress(), threads=1, spec=TOY)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--synthetic", "3b"), "--synthetic"),
        (("--synthetic", "0.5b", "--vision", "int3"), "--vision"),
        (("--synthetic", "0.5b", "--backbone", "q1"), "--backbone"),
        (("--vision", "int8"), "are for --synthetic"),
        (("--synthetic", "0.5b", "-m", "bundle"), "exclude each other"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_cannot_be_asked_for(words: tuple[str, ...], error: str, capfd: pytest.CaptureFixture[str]):
    assert _run(["bench", *words]) == 2
    assert error in capfd.readouterr().err


def test_a_damaged_one_is_made_anew(cache: Path):
    wanted = Synthetic("0.5b", "fp16", "q8_0")
    folder = synthetic_bundle(wanted, NoProgress(), threads=1, spec=TOY)
    shutil.move(folder / BACKBONE, cache / "elsewhere")
    progress = NoProgress()
    assert synthetic_bundle(wanted, progress, threads=1, spec=TOY) == folder
    assert "the existing bundle is damaged" in progress.notes
    open_bundle(folder, check=True)
