"""Bundles in fewer bits, made of one in floats: the same files as from the checkpoint, and true reports."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, get_args

import gguf
import numpy as np
import pytest

from onevision import OneVision, __version__
from onevision.bundle import BACKBONE, CARD, GOLDEN, NEWLINE, VISION, VISION_DATA, open_bundle
from onevision.errors import ExportError, QuantError, UsageError
from onevision.export.card import seal
from onevision.native.quantize import RECIPES
from onevision.precisions import BackbonePrecision, EncoderPrecision
from onevision.quant.candidates import Candidate, GateConfig, Quantizer, check_source
from tests.conftest import NoProgress, make_bundle, replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.bundle import Bundle


@pytest.fixture
def quantizer(toy_bundle: Path, tmp_path: Path) -> Quantizer:
    return quantizer_of(toy_bundle, tmp_path)


def quantizer_of(source: Path, folder: Path) -> Quantizer:
    (folder / "scratch").mkdir()
    return Quantizer(open_bundle(source), folder / "scratch", GateConfig(threads=1), NoProgress())


def requantize(quantizer: Quantizer, folder: Path, vision: Any, backbone: Any) -> Bundle:
    """Made, verified and sealed, without the gate."""
    folder.mkdir()
    made = quantizer.make(Candidate(vision, backbone), folder)
    return seal(folder, made.manifest, quantizer.verify(made), **made.manifest.quality)


@pytest.mark.parametrize(("vision", "backbone"), [("fp16", "f16"), ("fp32", "f32")])
def test_floats_are_what_the_export_writes(
    quantizer: Quantizer, toy_checkpoint: Path, tmp_path: Path, vision: Any, backbone: Any
) -> None:
    made = requantize(quantizer, tmp_path / "made", vision, backbone)
    exported = make_bundle(toy_checkpoint, tmp_path / "exported", vision=vision, backbone=backbone)
    for name in (VISION, VISION_DATA, NEWLINE, GOLDEN):
        assert (made.folder / name).read_bytes() == (exported / name).read_bytes(), name
    # llama.cpp orders a file's metadata in its own way.
    ours, theirs = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(folder / BACKBONE).tensors}
        for folder in (made.folder, exported)
    )
    assert ours == theirs
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(
        path.name for path in exported.iterdir()
    )


def test_a_quantized_bundle_is_whole_and_says_what_it_is(quantizer: Quantizer, tmp_path: Path) -> None:
    source = quantizer.source
    made = requantize(quantizer, tmp_path / "made", "int8", "q8_0")
    opened = open_bundle(made.folder, check=True)
    manifest = opened.manifest
    assert manifest.to_json() == made.manifest.to_json()
    precisions = {name: info.precision for name, info in manifest.files.items() if info.precision}
    assert precisions == {VISION: "int8", VISION_DATA: "int8", BACKBONE: "q8_0"}
    assert 8 < manifest.backbone.bits_per_weight < 9
    assert opened.bytes < 0.4 * source.bytes
    assert manifest.created_by == source.manifest.created_by
    assert manifest.created_by["onevision"] == __version__
    for name in (NEWLINE, GOLDEN):
        assert manifest.files[name] == source.manifest.files[name]
    assert manifest.quality["verify"]["passed"]
    assert manifest.quality["encoder"]["cosine"] >= 0.999
    assert manifest.quality["encoder"]["kept"] == {}
    card = (opened.folder / CARD).read_text(encoding="utf-8")
    assert "int8" in card
    assert "q8_0" in card
    with OneVision(opened, device="cpu", threads=1) as model:
        image = np.full((60, 90, 3), 99, np.uint8)
        assert model.generate("What is it?", images=[image], max_tokens=2).usage.tiles > 1


def test_one_encoder_serves_several_candidates(quantizer: Quantizer, tmp_path: Path) -> None:
    sizes, encoders = [], set()
    for name in ("q8_0", "q4_0"):
        (tmp_path / name).mkdir()
        sizes.append(quantizer.make(Candidate("int8", name), tmp_path / name).bytes)
        encoders.add((tmp_path / name / VISION_DATA).read_bytes())
    assert encoders == {(tmp_path / "scratch" / "int8" / VISION_DATA).read_bytes()}
    assert quantizer.progress.steps.count("vision encoder in int8") == 1
    assert sizes == sorted(sizes, reverse=True)
    assert quantizer.source.damage(checksums=True) == []


def test_an_encoder_of_floats_is_not_made_again(
    quantizer: Quantizer, toy_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    made = quantizer.make(Candidate("fp32", "f32"), tmp_path / "made")
    assert made.path(VISION_DATA).read_bytes() == (toy_bundle / VISION_DATA).read_bytes()
    assert made.manifest.quality == {}
    assert list((tmp_path / "scratch").rglob("vision.*")) == []


def test_without_reference_vectors(toy_bundle: Path, tmp_path: Path) -> None:
    """A bundle that was exported without the reference has none, and is quantized all the same."""
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    manifest = json.loads((copy / "onevision.json").read_text(encoding="utf-8"))
    del manifest["files"][GOLDEN]
    (copy / "onevision.json").write_text(json.dumps(manifest), encoding="utf-8")
    (copy / GOLDEN).unlink()
    made = requantize(quantizer_of(copy, tmp_path), tmp_path / "made", "fp16", "q8_0")
    assert made.manifest.quality["verify"] == {"passed": None, "cases": []}
    assert open_bundle(made.folder, check=True).manifest.files.keys() == manifest["files"].keys()


# Refusals.


@pytest.mark.parametrize(("file", "precision"), [(VISION, "int8"), (BACKBONE, "q8_0"), (BACKBONE, "q4_k_m")])
def test_what_is_quantized_already(toy_bundle: Path, tmp_path: Path, file: str, precision: str) -> None:
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    path = copy / "onevision.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"][file]["precision"] = precision
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(QuantError, match="is quantized already") as caught:
        check_source(open_bundle(copy))
    assert "in floats" in str(caught.value.hint)


def test_no_precision_is_made_up(toy_checkpoint: Path, toy_bundle: Path, tmp_path: Path) -> None:
    half = open_bundle(make_bundle(toy_checkpoint, tmp_path / "half", vision="fp16", backbone="f16"))
    check_source(half)
    for wanted in ({"vision": "fp32"}, {"backbone": "f32"}):
        with pytest.raises(UsageError, match="larger and no better"):
            check_source(half, **wanted)
        check_source(open_bundle(toy_bundle), **wanted)
    for vision in ("fp16", "int8"):
        check_source(half, vision)
    for backbone in ("f16", "bf16", "q8_0"):
        check_source(half, backbone=backbone)


def test_a_weight_that_half_precision_cannot_hold(toy_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    weights = np.fromfile(copy / VISION_DATA, np.float32)
    weights[-1] = 1e6
    replace_file(copy, VISION_DATA, weights.tobytes())
    (tmp_path / "made").mkdir()
    with pytest.raises(ExportError, match="does not fit in fp16"):
        quantizer_of(copy, tmp_path).make(Candidate("fp16", "f16"), tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []
    assert list((tmp_path / "scratch" / "fp16").iterdir()) == []


def test_names_of_precisions() -> None:
    assert get_args(EncoderPrecision) == ("fp32", "fp16", "int8")
    assert set(get_args(BackbonePrecision)) == RECIPES.keys()
    for vision, backbone in (("int4", "q4_0"), ("int8", "q4")):
        with pytest.raises(UsageError, match="unknown precision") as caught:
            Candidate(vision, backbone)
        assert "fp16" in str(caught.value.hint) or "q8_0" in str(caught.value.hint)
