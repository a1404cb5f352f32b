"""The tiny model's bundle: what it is, how it is built, and when it is used."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import onevision
from onevision import models
from onevision.bundle import GOLDEN, MANIFEST, open_bundle
from onevision.cli import _run
from onevision.errors import BundleError
from onevision.models import SHIPPED, default_bundle
from onevision.proof.golden import load_golden
from recipes.tiny import golden

ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_is_the_shipped_checkpoint_in_few_bytes(tiny_bundle: Path) -> None:
    assert default_bundle() == tiny_bundle
    bundle = open_bundle(tiny_bundle, check=True)
    manifest = bundle.manifest
    assert (manifest.name, manifest.size, manifest.variant) == ("tiny", "tiny", "ov")
    assert manifest.files["vision.onnx"].precision == "fp16"
    assert manifest.files["backbone.gguf"].precision == "q8_0"
    assert manifest.video.frames == 8, "as the model was trained"
    assert bundle.bytes < 12_000_000
    assert (tiny_bundle / GOLDEN).read_bytes() == (SHIPPED["tiny", "ov"] / GOLDEN).read_bytes()


def test_it_is_verified_without_torch(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["verify", "-m", str(tiny_bundle), "--threads", "1"]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert _run(["inspect", str(tiny_bundle)]) == 0
    assert "not run; its reference vectors are there" in capsys.readouterr().out


def test_its_vectors_are_the_references() -> None:
    """The committed file is what transformers computes from the committed checkpoint."""
    for ours, theirs in zip(load_golden(SHIPPED["tiny", "ov"] / GOLDEN), golden.cases(), strict=True):
        assert (ours.name, ours.prompt) == (theirs.name, theirs.prompt)
        for key in ("prompt_ids", "tiles", "tokens"):
            np.testing.assert_array_equal(getattr(ours, key), getattr(theirs, key))
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-3)
        for key in ("features", "embeddings"):
            if (rows := getattr(ours, key)) is not None:
                np.testing.assert_allclose(rows.values, getattr(theirs, key).values, atol=1e-3)
                np.testing.assert_allclose(rows.norms, getattr(theirs, key).norms, rtol=1e-4)


def test_it_is_loaded_where_none_is_named(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ONEVISION_MODEL", raising=False)
    clip = np.random.default_rng(0).integers(0, 256, (24, 60, 60, 3), np.uint8)
    with onevision.load(threads=1) as model:
        assert model.bundle.folder == tiny_bundle
        answer = model.generate("What happens?", video=clip, max_tokens=4)
    assert answer.usage.tiles == 8, "of the 24 frames"
    capfd.readouterr()
    assert _run(["run", "Hi", "-n", "4", "--threads", "1"]) == 0
    out, err = capfd.readouterr()
    assert (out.count("\n") > 0, err) == (True, "")


def test_a_checkout_that_was_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ONEVISION_MODEL", raising=False)
    monkeypatch.setattr(models, "TINY_BUNDLE", tmp_path / "tiny-bundle")
    with pytest.raises(BundleError, match="written when onevision is installed"):
        default_bundle()
    assert _run(["run", "Hi"]) == 1
    assert capfd.readouterr().err == (
        "error: the tiny model's bundle is missing: it is written when onevision is installed\n"
        "hint: run pip install -e . in the sources' folder, or name a bundle: -m FOLDER\n"
    )


# The build.

WRITE = """
import sys
from pathlib import Path
from onevision.export.tiny import write_tiny_bundle

write_tiny_bundle(Path(sys.argv[1]))
"""


def test_another_process_writes_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "bundle")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=100)
    assert contents(tmp_path / "bundle") == contents(tiny_bundle)


def test_the_wheel_has_it(tiny_bundle: Path, tmp_path: Path) -> None:
    """And an older one in the sources is replaced."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        place = "onevision/models/tiny-bundle/"
        packed = {
            name.removeprefix(place): archive.read(name)
            for name in archive.namelist()
            if name.startswith(place)
        }
    assert packed.keys() >= {MANIFEST, GOLDEN, "vision.onnx", "vision.onnx.data", "backbone.gguf"}
    assert packed == contents(tiny_bundle)
