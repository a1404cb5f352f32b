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
from onevision.quant.requantise import (
    Encoder,
    EncoderPrecision,
    check_floats,
    check_precisions,
    finish,
    make_backbone,
    make_draft,
    make_encoder,
    verify_draft,
)
from tests.conftest import NoProgress, make_bundle, replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.bundle import Bundle


def requantise(source: Path, folder: Path, vision: Any, backbone: Any) -> Bundle:
    """All pieces in a row, without gates."""
    floats = open_bundle(source)
    folder.mkdir()
    encoder = make_encoder(floats, vision, folder, NoProgress(), threads=1)
    written = make_backbone(floats, backbone, folder, NoProgress(), threads=1)
    draft = make_draft(floats, folder, encoder, written)
    return finish(draft, verify_draft(draft, threads=1))


@pytest.mark.parametrize(("vision", "backbone"), [("fp16", "f16"), ("fp32", "f32")])
def test_floats_are_what_the_export_writes(
    toy_bundle: Path, toy_checkpoint: Path, tmp_path: Path, vision: Any, backbone: Any
) -> None:
    made = requantise(toy_bundle, tmp_path / "made", vision, backbone)
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


def test_a_quantised_bundle_is_whole_and_says_what_it_is(toy_bundle: Path, tmp_path: Path) -> None:
    source = open_bundle(toy_bundle)
    made = requantise(toy_bundle, tmp_path / "made", "int8", "q8_0")
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
        picture = np.full((60, 90, 3), 99, np.uint8)
        assert model.generate("What is it?", images=[picture], max_tokens=2).usage.tiles > 1


def test_one_encoder_serves_several_candidates(toy_bundle: Path, tmp_path: Path) -> None:
    floats = open_bundle(toy_bundle)
    encoder = make_encoder(floats, "int8", tmp_path, NoProgress(), threads=1)
    sizes = []
    for name in ("q8_0", "q4_0"):
        folder = tmp_path / name
        folder.mkdir()
        draft = make_draft(
            floats, folder, encoder, make_backbone(floats, name, folder, NoProgress(), threads=1)
        )
        assert (folder / VISION_DATA).read_bytes() == (tmp_path / VISION_DATA).read_bytes()
        sizes.append(draft.bundle.bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert floats.damage(checksums=True) == []


def test_an_encoder_of_floats_is_not_made_again(toy_bundle: Path, tmp_path: Path) -> None:
    floats = open_bundle(toy_bundle)
    encoder = make_encoder(floats, "fp32", tmp_path, NoProgress())
    assert isinstance(encoder, Encoder)
    assert (encoder.path, encoder.quant) == (toy_bundle / VISION, None)
    assert list(tmp_path.iterdir()) == []


# Refusals.


@pytest.mark.parametrize(("file", "precision"), [(VISION, "int8"), (BACKBONE, "q8_0"), (BACKBONE, "q4_k_m")])
def test_what_is_quantised_already(toy_bundle: Path, tmp_path: Path, file: str, precision: str) -> None:
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    path = copy / "onevision.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"][file]["precision"] = precision
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(QuantError, match="is quantised already") as caught:
        check_floats(open_bundle(copy))
    assert "in floats" in str(caught.value.hint)


def test_no_precision_is_made_up(toy_checkpoint: Path, toy_bundle: Path, tmp_path: Path) -> None:
    half = open_bundle(make_bundle(toy_checkpoint, tmp_path / "half", vision="fp16", backbone="f16"))
    check_floats(half)
    for wanted in ({"vision": "fp32"}, {"backbone": "f32"}):
        with pytest.raises(UsageError, match="larger and no better"):
            check_precisions(half, **wanted)
        check_precisions(open_bundle(toy_bundle), **wanted)
    for vision in ("fp16", "int8"):
        check_precisions(half, vision)
    for backbone in ("f16", "bf16", "q8_0"):
        check_precisions(half, backbone=backbone)


def test_a_weight_that_half_precision_cannot_hold(toy_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    weights = np.fromfile(copy / VISION_DATA, np.float32)
    weights[-1] = 1e6
    replace_file(copy, VISION_DATA, weights.tobytes())
    (tmp_path / "made").mkdir()
    with pytest.raises(ExportError, match="does not fit in fp16"):
        make_encoder(open_bundle(copy), "fp16", tmp_path / "made", NoProgress())
    assert list((tmp_path / "made").iterdir()) == []


def test_precisions_of_an_encoder() -> None:
    assert get_args(EncoderPrecision) == ("fp32", "fp16", "int8")
