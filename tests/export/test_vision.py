"""The ONNX vision encoder computes what transformers' tower and projector compute."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from onevision.errors import CheckpointError, ExportError
from onevision.export.checkpoint import Checkpoint
from onevision.export.vision import export_vision
from onevision.runtime import vision
from onevision.runtime.vision import VisionEncoder
from tests.export.conftest import as_lmms_lab, edit_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

POST_NORM = "vision_tower.vision_model.post_layernorm"


class Shape(NamedTuple):
    image_size: int
    patch_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    features: int


SHAPES = {
    "one layer": Shape(28, 14, 32, 48, 1, 2, 32),
    "patch 14, 8 pixels never seen": Shape(50, 14, 64, 96, 2, 4, 48),
    "patch 16": Shape(64, 16, 128, 200, 3, 4, 64),
    "patch 16, 9 pixels never seen": Shape(57, 16, 48, 130, 2, 2, 80),
    "one patch": Shape(14, 14, 32, 64, 2, 4, 16),
}


@dataclass(frozen=True)
class Case:
    """A checkpoint as transformers saves it, and the model that it was saved from."""

    checkpoint: Checkpoint
    model: Any

    def pixels(self, tiles: int) -> npt.NDArray[np.float32]:
        side = self.checkpoint.config.vision.image_size
        return np.random.default_rng(tiles).uniform(-1, 1, (tiles, 3, side, side)).astype(np.float32)

    def features(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As LlavaOnevisionModel.get_image_features has them before it packs them."""
        import torch

        core = self.model.model
        with torch.inference_mode():
            hidden = core.vision_tower(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
            return core.multi_modal_projector(hidden[core.config.vision_feature_layer]).numpy()


def make_case(folder: Path, shape: Shape, dtype: str = "float32") -> Case:
    import torch
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    side = shape.image_size
    config = LlavaOnevisionConfig(
        vision_config={
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "image_size": side,
            "patch_size": shape.patch_size,
            "vision_use_head": False,
        },
        text_config={
            "hidden_size": shape.features,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 300,
            "rope_theta": 1e6,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_grid_pinpoints=[[side, side * 2], [side * 2, side]],
        image_token_index=298,
        video_token_index=299,
    )
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # As in a trained tower, matrices keep the size of what they multiply; nothing is zero or one.
            size = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.normal_(std=size)
            if "layer_norm" in name and name.endswith("weight"):
                parameter.add_(1)
            if "post_layernorm" in name:
                parameter.mul_(1000)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return Case(Checkpoint.open(folder), model.float())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("checkpoint"), SHAPES["patch 14, 8 pixels never seen"])


@pytest.fixture(scope="module")
def exported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("fp32"), case.checkpoint)


def export_to(folder: Path, checkpoint: Checkpoint, **options: Any) -> Path:
    """Path of the graph in a folder that is made for it."""
    folder.mkdir(exist_ok=True)
    export_vision(checkpoint, folder / "vision.onnx", **options)
    return folder / "vision.onnx"


def data_of(path: Path) -> Path:
    return path.with_name("vision.onnx.data")


def graph_of(path: Path) -> Any:
    import onnx

    return onnx.load(path, load_external_data=False).graph


def relative_error(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = make_case(tmp_path / "checkpoint", SHAPES[name])
    path = export_to(tmp_path, case.checkpoint)
    pixels = case.pixels(5)
    expected = case.features(pixels)
    assert expected.shape == (5, case.checkpoint.config.vision.patches, SHAPES[name].features)
    with closing(VisionEncoder(path, device="cpu")) as encoder:
        assert encoder.notes == ()
        for batch in (1, 2, 5):
            features = encoder.encode(pixels, batch=batch)
            assert relative_error(features, expected) <= 1e-5
            assert np.abs(features - expected).max() <= 1e-4


def test_post_layernorm_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    def wild(tensors: dict[str, Any]) -> None:
        for leaf in ("weight", "bias"):
            tensors[f"{POST_NORM}.{leaf}"].mul_(-1e3).add_(7)

    before = export_to(tmp_path / "before", Checkpoint.open(tiny))
    edit_tensors(tiny, wild)
    after = export_to(tmp_path / "after", Checkpoint.open(tiny))
    assert before.read_bytes() == after.read_bytes()
    assert data_of(before).read_bytes() == data_of(after).read_bytes()


def test_a_layer_that_does_not_run_is_left_out(tiny: Path, tmp_path: Path) -> None:
    two = export_to(tmp_path / "two", Checkpoint.open(tiny))
    as_lmms_lab(tiny, stored_layers=3)
    three = export_to(tmp_path / "three", Checkpoint.open(tiny))
    assert three.read_bytes() == two.read_bytes()
    assert data_of(three).read_bytes() == data_of(two).read_bytes()


def test_only_tower_and_projector_are_read(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    tensor = Checkpoint.tensor

    def recorded(checkpoint: Checkpoint, name: str) -> Any:
        read[name] += 1
        return tensor(checkpoint, name)

    monkeypatch.setattr(Checkpoint, "tensor", recorded)
    export_vision(case.checkpoint, tmp_path / "vision.onnx")
    own = ("model.vision_tower.", "model.multi_modal_projector.")
    names = {name for name in case.checkpoint.names if name.startswith(own) and "post_layernorm" not in name}
    assert read == dict.fromkeys(names, 1)


def test_input_and_output(exported: Path) -> None:
    from onnx import TensorProto

    def described(value: Any) -> tuple[Any, ...]:
        tensor = value.type.tensor_type
        return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]

    graph = graph_of(exported)
    assert [described(value) for value in graph.input] == [
        ("pixel_values", TensorProto.FLOAT, ["tiles", 3, 50, 50])
    ]
    assert [described(value) for value in graph.output] == [
        ("image_features", TensorProto.FLOAT, ["tiles", 9, 48])
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_is_valid_and_small(case: Case, precision: Any, tmp_path: Path) -> None:
    import onnx

    path = export_to(tmp_path, case.checkpoint, precision=precision)
    onnx.checker.check_model(path, full_check=True)
    nodes = [node.op_type for node in graph_of(path).node]
    assert nodes.count("MultiHeadAttention") == 2
    assert nodes.count("Gelu") == 2 + 1
    assert nodes.count("MatMul") == 2 * 6 + 2
    casts = {"fp32": 0, "fp16": 2}[precision]  # of pixels and features
    assert nodes.count("Cast") == casts
    assert len(nodes) == 18 * 2 + 9 + casts


def test_weights_keep_their_names_and_matrices_start_on_pages(case: Case, exported: Path) -> None:
    import onnx

    lengths = []
    for weight in graph_of(exported).initializer:
        places = {entry.key: entry.value for entry in weight.external_data}
        assert bool(places) == (len(weight.dims) > 1)
        if places:
            assert places["location"] == data_of(exported).name
            assert int(places["offset"]) % 4096 == 0
            lengths.append(int(places["length"]))
    config = case.checkpoint.config.vision
    in_layers = config.layers * (
        4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    )
    assert sum(lengths) > 4 * in_layers
    arrays = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(exported).graph.initializer}
    tower = "model.vision_tower.vision_model."
    for name in ("encoder.layers.1.mlp.fc1.weight", "encoder.layers.0.self_attn.q_proj.weight"):
        np.testing.assert_array_equal(arrays[tower + name], case.checkpoint.tensor(tower + name).T)
    name = f"{tower}embeddings.patch_embedding.weight"
    np.testing.assert_array_equal(arrays[name], case.checkpoint.tensor(name))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mapped files")
def test_matrices_are_mapped_until_the_session_is_closed(exported: Path) -> None:
    def is_mapped() -> bool:
        return str(data_of(exported)) in Path("/proc/self/maps").read_text(encoding="utf-8")

    encoder = VisionEncoder(exported, device="cpu")
    assert is_mapped()
    encoder.close()
    assert not is_mapped()


def test_fp16_is_half_precision_throughout(
    case: Case, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import TensorProto

    path = export_to(tmp_path, case.checkpoint, precision="fp16")
    floats = {weight.data_type for weight in graph_of(path).initializer} - {TensorProto.INT64}
    assert floats == {TensorProto.FLOAT16}
    assert data_of(path).stat().st_size < 0.6 * data_of(exported).stat().st_size
    pixels = case.pixels(2)
    with closing(VisionEncoder(path, device="cpu")) as encoder:
        assert encoder.notes == (), "small enough to cost nothing"
    monkeypatch.setattr(vision, "_COSTLY_FP16", 0)
    with closing(VisionEncoder(path, device="cpu")) as encoder:
        features = encoder.encode(pixels)
        assert "int8 is smaller and faster" in " ".join(encoder.notes)
    assert features.dtype == np.float32
    assert 1e-5 < relative_error(features, case.features(pixels)) <= 5e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_a_16_bit_checkpoint_are_exact(dtype: str, tmp_path: Path) -> None:
    import onnx

    case = make_case(tmp_path / "checkpoint", SHAPES["one layer"], dtype)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 1e-3)):  # fp16 rounds pixels and activations
        path = export_to(tmp_path / precision, case.checkpoint, precision=precision)
        with closing(VisionEncoder(path, device="cpu")) as encoder:
            pixels = case.pixels(2)
            assert relative_error(encoder.encode(pixels), case.features(pixels)) <= tolerance
        arrays = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer}
        name = "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
        weight = case.checkpoint.tensor(name).T.astype(np.float32)
        np.testing.assert_allclose(arrays[name], weight, rtol=0, atol=2**-25)  # half of the smallest fp16


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_same_bytes_each_time(case: Case, precision: Any, tmp_path: Path) -> None:
    exports = []
    for folder in (tmp_path / "a", tmp_path / "elsewhere"):
        folder.mkdir()
        path = export_to(folder, case.checkpoint, precision=precision)
        exports.append((path.read_bytes(), data_of(path).read_bytes()))
        assert not any(str(tmp_path).encode() in content for content in exports[-1])
    assert exports[0] == exports[1]


def test_progress_reaches_one(case: Case, tmp_path: Path) -> None:
    fractions: list[float] = []
    export_vision(case.checkpoint, tmp_path / "vision.onnx", advance=fractions.append)
    assert fractions == sorted(fractions)
    assert len(fractions) > 10
    assert fractions[-1] == 1


# What goes wrong leaves nothing behind, and an older export as it was.


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "vision.onnx").write_bytes(b"older")
    yield folder / "vision.onnx"
    assert [path.name for path in folder.iterdir()] == ["vision.onnx"]
    assert (folder / "vision.onnx").read_bytes() == b"older"


def test_checkpoint_that_vanishes_half_way(tiny: Path, target: Path) -> None:
    def vanish(fraction: float) -> None:
        if fraction > 0.5:
            (tiny / "model.safetensors").unlink(missing_ok=True)

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export_vision(Checkpoint.open(tiny), target, advance=vanish)


def test_interrupted(case: Case, target: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_vision(case.checkpoint, target, advance=interrupt)


def test_disk_full(case: Case, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ExportError, match="not enough disk space"):
        export_vision(case.checkpoint, target)


def test_weights_that_are_not_finite(tiny: Path, target: Path) -> None:
    edit_tensors(tiny, lambda tensors: tensors["multi_modal_projector.linear_1.weight"][3].fill_(np.nan))
    with pytest.raises(CheckpointError, match="not finite") as caught:
        export_vision(Checkpoint.open(tiny), target)
    assert "take an earlier checkpoint" in str(caught.value.hint)


def test_weights_too_large_for_fp16(tiny: Path, target: Path, tmp_path: Path) -> None:
    name = "vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight"
    edit_tensors(tiny, lambda tensors: tensors[name][0, 0].fill_(7e4))
    with pytest.raises(ExportError, match=rf"model\.{name} does not fit in fp16") as caught:
        export_vision(Checkpoint.open(tiny), target, precision="fp16")
    assert caught.value.hint == "choose --vision fp32 or int8"
    path = export_to(tmp_path / "fp32", Checkpoint.open(tiny))
    with closing(VisionEncoder(path, device="cpu")) as encoder:
        side = encoder.image_size
        assert np.isfinite(encoder.encode(np.ones((1, 3, side, side), np.float32))).all()
