"""The vision encoder's graph against optimum's own export of the same checkpoint."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onevision.errors import ExportError
from onevision.export.checkpoint import Checkpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.vision import export_vision, siglip_of
from onevision.graphs.siglip import TOWER, Siglip, write_siglip
from onevision.runtime.vision import VisionEncoder
from tests.test_parity import SHAPES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.test_cli import Cli

pytest.importorskip("optimum.exporters.onnx")

from onevision.proof.optimum import TOLERANCE, optimum_error, write_optimum


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_those_of_optimum(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(synthesize(tmp_path / "checkpoint", SHAPES[name]))
    export_vision(checkpoint, tmp_path / "vision.onnx")
    assert 0 < optimum_error(tmp_path / "vision.onnx", siglip_of(checkpoint)) <= TOLERANCE
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint", "vision.onnx", "vision.onnx.data"}


@pytest.mark.slow
def test_features_of_the_published_size_are_those_of_optimum(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(synthesize(tmp_path / "checkpoint", SynthSpec.preset("0.5b", "hf")))
    export_vision(checkpoint, tmp_path / "vision.onnx")
    assert optimum_error(tmp_path / "vision.onnx", siglip_of(checkpoint)) <= TOLERANCE


def test_weights_of_another_layer_are_noticed(toy_checkpoint: Path, tmp_path: Path) -> None:
    siglip = siglip_of(Checkpoint.open(toy_checkpoint))
    layer = f"{TOWER}encoder.layers.{{}}.mlp.fc1.weight"

    def mixed_up(name: str) -> Any:
        return siglip.tensor(layer.format(0) if name == layer.format(1) else name)

    write_siglip(tmp_path / "vision.onnx", Siglip(siglip.shape, siglip.features, mixed_up))
    with pytest.raises(ExportError, match="differs from optimum's export"):
        optimum_error(tmp_path / "vision.onnx", siglip)


def test_optimums_graph_runs_in_the_runtime(toy_checkpoint: Path, tmp_path: Path) -> None:
    siglip = siglip_of(Checkpoint.open(toy_checkpoint))
    write_optimum(tmp_path / "vision.onnx", siglip)
    assert {path.name for path in tmp_path.iterdir()} == {"vision.onnx", "vision.onnx.data"}
    assert (tmp_path / "vision.onnx.data").stat().st_size >= 4 * siglip.weights
    with closing(VisionEncoder(tmp_path / "vision.onnx", device="cpu")) as encoder:
        assert (encoder.patches, encoder.hidden_size) == (siglip.shape.patches, siglip.features)
        pixels = np.zeros((2, 3, encoder.image_size, encoder.image_size), np.float32)
        features = encoder.encode(pixels, batch=2)
    np.testing.assert_allclose(features[0], features[1], rtol=1e-5)


def test_exporter_optimum(cli: Cli, toy_checkpoint: Path, tmp_path: Path) -> None:
    export = ("export", "--source", toy_checkpoint, "--backbone", "f32", "--exporter", "optimum", "-o")
    assert cli(*export, tmp_path / "bundle", "--json")[0] == 0
    assert cli("verify", "-m", tmp_path / "bundle")[0] == 0
    status, _, err = cli("quant", "apply", tmp_path / "bundle", tmp_path / "int8", "--vision", "int8")
    assert status == 1
    assert "not a vision encoder in fp32 or fp16 as this version exports it" in err
    for vision in ("fp16", "int8"):
        status, _, err = cli(*export, tmp_path / "other", "--vision", vision)
        assert status == 2
        assert "--exporter optimum writes fp32" in err


def test_libraries_are_quiet_and_left_as_they_were(
    toy_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    def state() -> list[object]:
        loggers = [logging.getLogger(name).level for name in ("optimum", "transformers", "torch.onnx")]
        attention = torch.nn.functional.scaled_dot_product_attention
        return [*loggers, torch.onnx.export, torch.Tensor.unfold, attention]

    before = state()
    write_optimum(tmp_path / "vision.onnx", siglip_of(Checkpoint.open(toy_checkpoint)))
    assert state() == before
    assert capfd.readouterr() == ("", "")
