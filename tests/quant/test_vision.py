"""The int8 vision encoder: quantized with little loss, finer where int8 is not enough."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onevision.errors import ExportError, QuantError
from onevision.export.checkpoint import Checkpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.vision import export_vision, siglip_of
from onevision.graphs import kernels
from onevision.graphs.kernels import KEY_LEVELS, Attention, Kernels, Linear, quantize_columns
from onevision.graphs.nodes import CONTRIB
from onevision.graphs.siglip import PROJECTOR, SIZES, TOWER, EncoderPlan, Siglip, matmuls, write_siglip
from onevision.graphs.stored import read_siglip
from onevision.proof.reference import synthetic_image
from onevision.quant import vision
from onevision.quant.gates import Thresholds, compare_features
from onevision.quant.sensitivity import Upgrade, fewest, upgrades, watch_errors, watch_ranges
from onevision.quant.smooth import Ranges, smooth
from onevision.quant.vision import VisionQuant, quantize_vision
from onevision.runtime.vision import VisionEncoder
from tests.export.conftest import edit_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

LAYER = "vision_tower.vision_model.encoder.layers.{}."


class Noted:
    """Progress that is kept, to be looked at."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.notes: list[str] = []
        self.fractions: list[float] = []

    def step(self, name: str):
        self.names.append(name)
        return nullcontext(self.fractions.append)

    def note(self, text: str) -> None:
        self.notes.append(text)


def tiles(side: int, number: int = 6) -> Array:
    """Pixel values of synthetic images."""
    pixels = np.stack([synthetic_image(side, side, seed=seed) for seed in range(number)])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) / 127.5 - 1, dtype=np.float32)


def encode(path: Path, pixels: Array, batch: int = 1) -> Array:
    with closing(VisionEncoder(path, device="cpu", threads=1)) as encoder:
        return encoder.encode(pixels, batch=batch)


def relative_error(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def quantize(source: Path, target: Path, **options: Any) -> VisionQuant:
    pixels = options.pop("pixels", None)
    pixels = tiles(read_siglip(source).shape.image_size) if pixels is None else pixels
    return quantize_vision(source, target, pixels, options.pop("progress", Noted()), threads=1, **options)


def data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def plain(path: Path, target: Path) -> Path:
    """All matmuls in int8 without smoothing: what other tools' dynamic quantization does."""
    siglip = read_siglip(path)
    write_siglip(target, siglip, plan=EncoderPlan(dict.fromkeys(matmuls(siglip.shape), "int8")))
    return target


@pytest.fixture(scope="module")
def toy(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's encoder in fp32: two layers of 64, four heads, 16 patches, features of 128."""
    path = tmp_path_factory.mktemp("toy") / "vision.onnx"
    export_vision(Checkpoint.open(toy_checkpoint), path)
    return path


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    """The toy's encoder, to be damaged."""
    shutil.copytree(toy.parent, tmp_path / "source")
    return tmp_path / "source" / toy.name


# Reading an encoder back.


def test_encoder_is_read_from_its_file_alone(toy: Path, toy_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(toy_checkpoint)
    stored, source = read_siglip(toy), siglip_of(checkpoint)
    assert (stored.shape, stored.features) == (source.shape, source.features)
    assert 4 * stored.weights <= toy.with_name("vision.onnx.data").stat().st_size < 1.1e6
    names = [name for name in checkpoint.names if name.startswith((TOWER, PROJECTOR))]
    read = [name for name in names if "post_layernorm" not in name]
    assert len(read) == 3 + 2 * 16 + 4
    for name in read:
        np.testing.assert_array_equal(stored.tensor(name), source.tensor(name).astype(np.float32))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_written_again_it_has_the_same_bytes(
    precision: Any, toy: Path, toy_checkpoint: Path, tmp_path: Path
) -> None:
    export_vision(Checkpoint.open(toy_checkpoint), tmp_path / "vision.onnx", precision=precision)
    written = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    write_siglip(tmp_path / "vision.onnx", read_siglip(toy), precision=precision)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == written


def test_fp16_bundle_can_be_quantized_as_well(toy: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    export_vision(Checkpoint.open(toy_checkpoint), tmp_path / "half.onnx", precision="fp16")
    assert quantize(tmp_path / "half.onnx", tmp_path / "of_half.onnx").features.cosine >= 0.999
    quantize(toy, tmp_path / "of_whole.onnx")
    pixels = tiles(56)
    # The toy is stored in bf16: half precision loses next to nothing of it.
    error = relative_error(
        encode(tmp_path / "of_half.onnx", pixels), encode(tmp_path / "of_whole.onnx", pixels)
    )
    assert error < 1e-2


def test_smoothing_changes_nothing_in_fp32(outliers: Path, tmp_path: Path) -> None:
    siglip, pixels = read_siglip(outliers), tiles(56)
    ranges, features = watch_ranges(siglip, pixels, tmp_path, 1)
    plan = smooth(siglip, ranges)
    assert max(float(scale.max() / scale.min()) for scale in plan.scales.values()) > 30
    # Where there is no layer norm to take them up, as well.
    after_gelu = np.geomspace(0.1, 10, 128, dtype=np.float32)
    before_projector = np.geomspace(0.2, 5, 64, dtype=np.float32)
    scales = {**plan.scales, "layers.0.fc2": after_gelu, "projector.linear_1": before_projector}
    write_siglip(tmp_path / "smoothed.onnx", siglip, plan=replace(plan, precision={}, scales=scales))
    exact = encode(outliers, pixels)
    assert relative_error(encode(tmp_path / "smoothed.onnx", pixels), exact) <= 1e-5
    assert relative_error(features, exact) <= 1e-5


# Kernels, one at a time.


def run(build: Callable[[Kernels], str], inputs: dict[str, Array], folder: Path) -> Array:
    """The value that ``build`` leaves, computed by ONNX Runtime."""
    import onnxruntime
    from onnx import TensorProto, helper

    with (folder / "kernel.onnx.data").open("wb") as data:
        graph = Kernels(data, "kernel.onnx.data")
        output = build(graph)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "kernel",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)],
        ir_version=10,
    )
    (folder / "kernel.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "kernel.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
)
def test_columns_are_rounded_to_half_a_scale(weight: Array) -> None:
    levels, scales = quantize_columns(weight)
    assert levels.dtype == np.int8
    assert levels.min() >= -127  # symmetric
    largest = np.abs(weight).max(axis=0)
    assert (scales[largest > 0] >= 0.999 * largest[largest > 0] / 127).all()
    assert (scales[largest > 0] <= 1.001 * 2 * largest[largest > 0] / 127).all()
    assert (np.abs(levels * scales - weight) <= scales * 0.5001).all()


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-1, 1, width=32, allow_subnormal=False),
    ),
    st.data(),
)
def test_neighboring_products_never_overflow_in_16_bits(weight: Array, data: st.DataObject) -> None:
    """As CPUs without VNNI add them, with saturation: vpmaddubsw."""
    levels, _ = quantize_columns(weight)
    x = data.draw(hnp.arrays(np.uint8, len(weight), elements=st.sampled_from([0, 1, 128, 254, 255])))
    products = np.zeros((len(weight) + len(weight) % 2, weight.shape[1]), np.int64)
    products[: len(weight)] = x[:, None].astype(np.int64) * levels
    sums = products.reshape(-1, 2, weight.shape[1]).sum(axis=1)
    assert sums.min() >= -(2**15)
    assert sums.max() < 2**15


def test_columns_of_gaussian_weights_keep_nearly_eight_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(1152, 200)).astype(np.float32)
    levels, scales = quantize_columns(weight)
    error = relative_error(levels * scales, weight)
    exact = relative_error(np.rint(weight / (m := np.abs(weight).max(0) / 127)) * m, weight)
    assert exact < error < 1.45 * exact


def linear(columns: int = 40, *, after_gelu: bool = False) -> Linear:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(64, columns)), random.normal(size=columns)
    return Linear("linear", weight.astype(np.float32), bias.astype(np.float32), after_gelu=after_gelu)


@pytest.mark.parametrize("after_gelu", [False, True])
@pytest.mark.parametrize("precision", ["int8", "int8-token"])
def test_matmuls_round_to_scales(precision: Any, after_gelu: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(2, 9, 64)).astype(np.float32)
    x = np.maximum(x, -0.17) if after_gelu else x
    by = linear(after_gelu=after_gelu)
    actual = run(lambda graph: graph.linear("x", by, precision), {"x": x}, tmp_path)
    levels, scales = quantize_columns(by.weight)
    axes = -1 if precision == "int8-token" else None
    high, low = (side(x, axis=axes, keepdims=True) for side in (np.max, np.min))
    if precision == "int8":
        scale = (high - low) / 255
    else:
        zero = 24 if after_gelu else 128
        scale = np.maximum(high / (255 - zero), -low / zero)
    expected = (np.rint(x / scale) * scale) @ (levels * scales) + by.bias
    assert relative_error(actual, x @ by.weight + by.bias) < 0.02
    # A value in the middle of two levels may be rounded either way.
    assert relative_error(actual, expected) < 2e-3


@pytest.mark.parametrize("precision", ["int8", "int8-token"])
def test_rounding_does_not_move_the_mean_output(precision: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    mean = random.normal(0, 5, 64).astype(np.float32)
    x = (mean + random.normal(0, 1, (1, 400, 64))).astype(np.float32)
    moved = {}
    for name, given_mean in {"unknown": None, "known": mean}.items():
        by = replace(linear(), mean=given_mean)
        output = run(lambda graph, by=by: graph.linear("x", by, precision), {"x": x}, tmp_path)
        moved[name] = np.abs((output - (x @ by.weight + by.bias)).mean((0, 1))).mean()
    assert moved["known"] < 0.2 * moved["unknown"]


def test_one_large_token_spoils_no_other_with_a_scale_per_token(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(1, 9, 64)).astype(np.float32)
    x[0, 4] *= 200
    exact = x @ linear().weight + linear().bias
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    errors = {
        precision: relative_error(
            run(lambda graph, p=precision: graph.linear("x", linear(), p), {"x": x}, tmp_path)[0, others],
            exact[0, others],
        )
        for precision in ("int8", "int8-token")
    }
    assert errors["int8"] > 0.3
    assert errors["int8-token"] < 0.02


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
@pytest.mark.parametrize("precision", ["int8", "int8-token"])
def test_an_input_without_range(precision: Any, value: float, tmp_path: Path) -> None:
    x = np.full((1, 9, 64), value, np.float32)
    actual = run(lambda graph: graph.linear("x", linear(), precision), {"x": x}, tmp_path)
    assert relative_error(actual, x @ linear().weight + linear().bias) < 0.02


def heads_of(x: Array, heads: int) -> npt.NDArray[np.float64]:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3).astype(np.float64)


def softmax_attention(query: Array, key: Array, value: Array, heads: int) -> npt.NDArray[np.float64]:
    q, k, v = (heads_of(x, heads) for x in (query, key, value))
    scores = q @ k.transpose(0, 1, 3, 2) * q.shape[-1] ** -0.5
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = shares / shares.sum(axis=-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(query.shape)


def activations(patches: int = 50, hidden: int = 48) -> dict[str, Array]:
    random = np.random.default_rng(2)
    query, key, value = random.normal(size=(3, 2, patches, hidden)).astype(np.float32)
    return {"query": query * 2, "key": key, "value": value + 1}


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-6), ("int8", 0.02)])
def test_attention(precision: Any, allowed: float, tmp_path: Path) -> None:
    inputs = activations()
    actual = run(
        lambda graph: graph.attention("query", "key", "value", Attention(4, 48, 50), precision),
        inputs,
        tmp_path,
    )
    assert relative_error(actual, softmax_attention(**inputs, heads=4)) < allowed


def test_attention_in_groups_of_heads_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = activations(hidden=72)

    def attend(graph: Kernels) -> str:
        return graph.attention("query", "key", "value", Attention(6, 72, 50), "int8")

    whole = run(attend, inputs, tmp_path)
    for heads in (1, 2, 4):  # four do not divide six: groups of three
        monkeypatch.setattr(kernels, "_SCORES_BYTES", 4 * 50**2 * heads)
        np.testing.assert_array_equal(run(attend, inputs, tmp_path), whole)


def test_rows_that_attend_to_everything_are_not_lost(tmp_path: Path) -> None:
    """With one scale for all shares, those below 1/510 would be nothing: of 800 equal ones, all."""
    inputs = activations(patches=800, hidden=8)
    inputs["query"] *= 0
    inputs["query"][:, 0] = 50 * inputs["key"][:, 3]  # and one row sees a single patch
    actual = run(
        lambda graph: graph.attention("query", "key", "value", Attention(1, 8, 800), "int8"), inputs, tmp_path
    )
    assert relative_error(actual, softmax_attention(**inputs, heads=1)) < 0.02


def test_bytes_that_are_not_weights_cannot_overflow_in_16_bits() -> None:
    assert 2 * 255 * KEY_LEVELS < 2**15


# The whole encoder.


@pytest.fixture(scope="module")
def quantized(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> VisionQuant:
    return quantize(toy, tmp_path_factory.mktemp("int8") / "vision.onnx")


def test_report_says_what_the_runtime_measures(toy: Path, quantized: VisionQuant) -> None:
    pixels = tiles(56)
    exact = encode(toy, pixels)
    features = encode(quantized.path, pixels)
    worst = compare_features(features, exact)
    assert quantized.features.cosine == pytest.approx(worst.cosine, abs=1e-6)
    assert quantized.features.relative_error == pytest.approx(worst.relative_error, rel=1e-3)
    assert 0.999 <= quantized.features.cosine < 0.999999
    assert len(quantized.tiles) == 6
    errors = [relative_error(ours, theirs) for ours, theirs in zip(features, exact, strict=True)]
    assert [tile.relative_error for tile in quantized.tiles] == pytest.approx(errors, rel=1e-3)
    assert quantized.kept == ()


def test_input_and_output_are_as_before(toy: Path, quantized: VisionQuant) -> None:
    import onnx

    graphs = [onnx.load(path, load_external_data=False).graph for path in (toy, quantized.path)]
    for ends in ("input", "output"):
        before, after = ([value.SerializeToString() for value in getattr(graph, ends)] for graph in graphs)
        assert after == before
    onnx.checker.check_model(quantized.path)


def test_all_matrices_are_bytes_but_the_embeddings(quantized: VisionQuant) -> None:
    import onnx

    graph = onnx.load(quantized.path, load_external_data=False).graph
    floats = {
        tensor.name
        for tensor in graph.initializer
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT
    }
    assert floats == {f"{TOWER}embeddings.{name}_embedding.weight" for name in ("patch", "position")}
    ops = [node.op_type for node in graph.node]
    assert ops.count("MatMulIntegerToFloat") == 2 * (6 + 2) + 2
    assert "MatMul" not in ops


def test_a_quarter_of_the_size(tmp_path: Path) -> None:
    shape = SynthSpec(vision_hidden=192, vision_intermediate=768, vision_layers=3, image_size=70, hidden=256)
    export_vision(Checkpoint.open(synthesize(tmp_path / "checkpoint", shape)), tmp_path / "vision.onnx")
    report = quantize(tmp_path / "vision.onnx", tmp_path / "int8.onnx")
    assert report.features.cosine >= 0.999
    embeddings = 4 * 192 * (3 * 14 * 14 + 25)
    rest = (tmp_path / "vision.onnx.data").stat().st_size - embeddings
    assert data_of(report.path).stat().st_size - embeddings < 0.27 * rest


def test_same_bytes_each_time(toy: Path, quantized: VisionQuant, tmp_path: Path) -> None:
    again = quantize(toy, tmp_path / "vision.onnx")
    assert again.path.read_bytes() == quantized.path.read_bytes()
    assert data_of(again.path).read_bytes() == data_of(quantized.path).read_bytes()
    assert str(tmp_path).encode() not in again.path.read_bytes()


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_blank_tiles(level: float, toy: Path, quantized: VisionQuant) -> None:
    blank = np.full((1, 3, 56, 56), level, np.float32)
    assert compare_features(encode(quantized.path, blank), encode(toy, blank)).cosine > 0.998


def test_several_tiles_in_one_call(quantized: VisionQuant) -> None:
    """The tiles then share scales: close to, and not the same as, tile by tile."""
    pixels = tiles(56)
    together = encode(quantized.path, pixels, batch=6)
    assert compare_features(together, encode(quantized.path, pixels)).cosine > 0.998


def test_progress_is_reported(toy: Path, tmp_path: Path) -> None:
    progress = Noted()
    quantize(toy, tmp_path / "vision.onnx", progress=progress)
    assert progress.names == ["ranges of activations", "smoothing scales", "vision encoder in int8"]
    assert progress.fractions.count(1) >= 2
    assert progress.notes == []


def test_neither_torch_nor_transformers_is_needed(toy: Path, tmp_path: Path) -> None:
    script = """
import sys
for name in ("torch", "transformers", "optimum", "safetensors"):
    sys.modules[name] = None
from contextlib import nullcontext
from pathlib import Path
import numpy as np
from onevision.quant.vision import quantize_vision
class Noted:
    step = staticmethod(lambda name: nullcontext(lambda fraction: None))
    note = staticmethod(print)
pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 56, 56)).astype(np.float32)
print(quantize_vision(Path(sys.argv[1]), Path(sys.argv[2]), pixels, Noted(), threads=1).features.cosine)
"""
    command = [sys.executable, "-c", script, str(toy), str(tmp_path / "vision.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) >= 0.999


# Outliers, planted such that the function in fp32 is the same: powers of two are exact in any format.


def plant_norms(tensors: dict[str, Any]) -> None:
    """Channels behind layer norms 64 to 128 times larger, and the weights that read them as much smaller."""
    for layer in range(2):
        name = LAYER.format(layer)
        readers = {
            "layer_norm1": [f"self_attn.{letter}_proj" for letter in "qkv"],
            "layer_norm2": ["mlp.fc1"],
        }
        for norm, modules in readers.items():
            for channel, factor in ((5 + layer, 128), (40, 64)):
                for leaf in ("weight", "bias"):
                    tensors[f"{name}{norm}.{leaf}"][channel] *= factor
                for module in modules:
                    tensors[f"{name}{module}.weight"][:, channel] /= factor


def plant_attention(tensors: dict[str, Any]) -> None:
    """Channels of queries and values 128 times larger; of keys, and of what reads the values, smaller."""
    for layer in range(2):
        name = f"{LAYER.format(layer)}self_attn."
        for channel in (3, 30 + layer):
            for leaf in ("weight", "bias"):
                tensors[f"{name}q_proj.{leaf}"][channel] *= 128
                tensors[f"{name}k_proj.{leaf}"][channel] /= 128
                tensors[f"{name}v_proj.{leaf}"][channel + 9] *= 128
            tensors[f"{name}out_proj.weight"][:, channel + 9] /= 128


def export_planted(checkpoint: Path, folder: Path, *plants: Callable[[dict[str, Any]], None]) -> Path:
    planted = shutil.copytree(checkpoint, folder / "checkpoint")
    for plant in plants:
        edit_tensors(planted, plant)
    export_vision(Checkpoint.open(planted), folder / "vision.onnx")
    return folder / "vision.onnx"


@pytest.fixture(scope="module")
def outliers(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's encoder with all the outliers."""
    return export_planted(toy_checkpoint, tmp_path_factory.mktemp("outliers"), plant_norms, plant_attention)


@pytest.mark.parametrize("plants", [(plant_norms,), (plant_attention,), (plant_norms, plant_attention)])
def test_outliers_that_ruin_plain_int8(plants: Any, toy: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    path, pixels = export_planted(toy_checkpoint, tmp_path, *plants), tiles(56)
    exact = encode(path, pixels)
    assert relative_error(exact, encode(toy, pixels)) < 1e-5
    ruined = compare_features(encode(plain(path, tmp_path / "plain.onnx"), pixels), exact)
    assert ruined.cosine < 0.96
    report = quantize(path, tmp_path / "int8.onnx")
    assert report.kept == ()
    others = tiles(56, number=12)[6:]  # images that it was not calibrated with
    saved = compare_features(encode(report.path, others), encode(path, others))
    assert saved.cosine >= 0.999
    assert report.features.cosine >= 0.999
    assert "layers.0.qkv" in report.scaled


def unscaled(siglip: Siglip, ranges: object, progress: object) -> EncoderPlan:
    return EncoderPlan(dict.fromkeys(matmuls(siglip.shape), "int8"))


def test_what_smoothing_does_not_cure_is_kept_and_named(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plant(tensors: dict[str, Any]) -> None:
        tensors[f"{LAYER.format(1)}layer_norm2.weight"][7] *= 128
        tensors[f"{LAYER.format(1)}layer_norm2.bias"][7] *= 128
        tensors[f"{LAYER.format(1)}mlp.fc1.weight"][:, 7] /= 128

    path = export_planted(toy_checkpoint, tmp_path, plant)
    monkeypatch.setattr(vision, "smooth", unscaled)
    progress = Noted()
    report = quantize(path, tmp_path / "int8.onnx", progress=progress)
    assert [upgrade.matmul for upgrade in report.kept] == ["layers.1.fc1"]
    assert report.kept[0].precision == "fp32"
    assert report.features.cosine >= 0.999
    assert report.scaled == ()
    assert any("more than int8" in note for note in progress.notes)
    pixels = tiles(56)
    assert compare_features(encode(report.path, pixels), encode(path, pixels)).cosine >= 0.999


def test_a_stricter_gate_keeps_more(toy: Path, tmp_path: Path) -> None:
    strict = Thresholds(cosine=0.9999, relative_error=0.015)
    report = quantize(toy, tmp_path / "vision.onnx", thresholds=strict)
    assert report.features.cosine >= 0.9999
    assert report.features.relative_error <= 0.015
    assert 1 <= len(report.kept) < 12
    harms = [upgrade.harm for upgrade in report.kept if upgrade.precision == "fp32"]
    assert harms == sorted(harms, reverse=True)


def test_a_gate_that_fp32_does_not_pass(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantError, match="even with all matmuls in fp32"):
        quantize(toy, tmp_path / "vision.onnx", thresholds=Thresholds(cosine=1.1))
    assert list(tmp_path.iterdir()) == []


# Scales and sensitivity.


def test_scales_even_out_what_is_uneven_and_leave_the_rest(toy: Path, outliers: Path, tmp_path: Path) -> None:
    plans = []
    for path in (toy, outliers):
        siglip = read_siglip(path)
        ranges, _ = watch_ranges(siglip, tiles(56), tmp_path, 1)
        plans.append((smooth(siglip, ranges), ranges))
    (even, seen), (uneven, _) = plans
    assert set(even.precision.values()) == {"int8"}
    assert "projector.linear_1" not in even.scales  # a separate multiplication, which is not worth it here
    scale, before = uneven.scales["layers.0.qkv"], even.scales["layers.0.qkv"]
    ratio = (scale / before) / np.median(scale / before)
    # Half of the factor or more, and as much of all others as before.
    assert ratio[5] > 11
    assert ratio[40] > 8
    assert np.delete(ratio, [5, 40]).max() < 2
    shift, _ = even.keys["layers.0.attention"]
    np.testing.assert_allclose(shift, seen["layers.0.attention.k"].mean)


def ranges_of(x: Array) -> Ranges:
    """Of tiles [T, patches, channels]."""
    return Ranges.of_tiles(x.min(1), x.max(1), x.sum(1), np.square(x).sum(1), x.shape[1])


def test_ranges_after_a_shift() -> None:
    x = np.random.default_rng(0).normal(2, 3, (5, 100, 4)).astype(np.float32)
    shift = np.array([1, -2, 0, 30], np.float32)
    expected, actual = ranges_of(x - shift), ranges_of(x).less(shift)
    for name in ("low", "high", "mean", "square", "doubt", "largest"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(expected.mean, (x - shift).mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(expected.square, np.square(x - shift).mean((0, 1)), rtol=1e-4)


def test_only_a_mean_that_tiles_share_counts() -> None:
    random = np.random.default_rng(0)
    tiles_own = random.normal(0, 1, (8, 1, 600)).repeat(50, axis=1)
    shared = np.arange(600) % 2 * 5  # by every second channel
    seen = ranges_of((tiles_own + shared).astype(np.float32))
    np.testing.assert_allclose(seen.common_mean[1::2], seen.mean[1::2], rtol=0.1)
    assert np.square(seen.common_mean[::2]).mean() < 0.5 * np.square(seen.mean[::2]).mean()
    np.testing.assert_array_equal(ranges_of(np.ones((1, 9, 3), np.float32)).common_mean, 1)


def test_watched_errors_are_those_of_single_matmuls(toy: Path, tmp_path: Path) -> None:
    siglip, pixels = read_siglip(toy), tiles(56)
    errors = watch_errors(siglip, EncoderPlan(), pixels, tmp_path, 1)
    exact = encode(toy, pixels)
    for matmul in ("projector.linear_2", "projector.linear_1"):
        write_siglip(tmp_path / "one.onnx", siglip, plan=EncoderPlan({matmul: "int8"}))
        alone = relative_error(encode(tmp_path / "one.onnx", pixels), exact)
        name = f"{matmul}/{PROJECTOR}{matmul.split('.')[1]}"
        measured = (errors[f"{name}:int8"] / errors[f"{name}:fp32"]) ** 0.5
        # The last one is the output; the error of the one before passes through it.
        assert measured == pytest.approx(alone, rel=1e-3 if matmul.endswith("2") else 0.5)
    names = matmuls(siglip.shape)
    assert len(upgrades(errors, names)) >= len(names)


def test_upgrades_are_sorted_by_harm() -> None:
    def of(name: str, int8: float, token: float) -> dict[str, float]:
        return {f"{name}:fp32": 100.0, f"{name}:int8": int8, f"{name}:int8-token": token}

    errors = {
        **of(f"projector.linear_1/{PROJECTOR}linear_1", 4.0, 0.01),
        **of(f"projector.linear_2/{PROJECTOR}linear_2", 1.0, 0.9),
        **of(f"layers.0.out_proj/{TOWER}encoder.layers.0.self_attn.out_proj", 9.0, 9.0),
        "layers.0.out_proj:residual": 10_000.0,
        "layers.0.attention/attention:fp32": 4.0,
        "layers.0.attention/attention:int8": 4.0,
    }
    names = ["projector.linear_1", "projector.linear_2", "layers.0.out_proj", "layers.0.attention"]
    assert upgrades(errors, names) == [
        Upgrade("projector.linear_1", "int8-token", pytest.approx(0.2)),
        Upgrade("projector.linear_2", "fp32", pytest.approx(0.1)),
        Upgrade("layers.0.attention", "fp32", pytest.approx(0.1)),
        Upgrade("layers.0.out_proj", "fp32", pytest.approx(0.03)),
        Upgrade("projector.linear_1", "fp32", pytest.approx(0.01)),
    ]


@given(count=st.integers(1, 200), data=st.data())
def test_the_fewest_that_pass_are_found_in_few_trials(count: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, count))
    wanted = [Upgrade(str(number), "fp32", -number) for number in range(count)]
    tried: list[int] = []

    def passes(finer: dict[str, Any]) -> bool:
        assert list(finer) == [str(number) for number in range(len(finer))]
        tried.append(len(finer))
        return len(finer) >= needed

    assert fewest(wanted, passes) == tuple(wanted[:needed])
    assert len(tried) <= 2 * needed.bit_length() + 1
    assert fewest(wanted, lambda finer: False) is None


def test_a_matmul_upgraded_twice_is_named_once() -> None:
    ladder = [Upgrade("a", "int8-token", 3), Upgrade("b", "fp32", 2), Upgrade("a", "fp32", 1)]
    assert fewest(ladder, lambda finer: finer.get("a") == "fp32") == (ladder[2], ladder[1])


# What goes wrong leaves nothing behind, and an older encoder as it was.


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "vision.onnx").write_bytes(b"older")
    yield folder / "vision.onnx"
    assert [path.name for path in folder.iterdir()] == ["vision.onnx"]
    assert (folder / "vision.onnx").read_bytes() == b"older"


def change_weight(path: Path, name: str, change: Callable[[Any], None]) -> None:
    """Change a matrix in the data file."""
    import onnx

    tensors = {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    place = {entry.key: entry.value for entry in tensors[name].external_data}
    data = path.with_name(place["location"])
    weight = np.memmap(data, np.float32, "r+", int(place["offset"]), tuple(tensors[name].dims))
    change(weight)
    weight.flush()


def test_weights_that_are_not_finite(copy: Path, target: Path) -> None:
    change_weight(copy, f"{TOWER}encoder.layers.1.mlp.fc2.weight", lambda weight: weight.put(77, np.nan))
    with pytest.raises(QuantError, match=r"encoder\.layers\.1\.mlp\.fc2\.weight is not finite") as caught:
        quantize(copy, target)
    assert "export again" in str(caught.value.hint)


def test_features_that_are_not_finite(copy: Path, target: Path) -> None:
    for name in ("layers.0.mlp.fc1", "layers.0.mlp.fc2"):
        change_weight(
            copy, f"{TOWER}encoder.{name}.weight", lambda weight: np.multiply(weight, 1e25, out=weight)
        )
    with pytest.raises(QuantError, match="not finite"):
        quantize(copy, target)


def test_features_that_say_nothing_of_the_picture(copy: Path, target: Path) -> None:
    change_weight(copy, f"{TOWER}embeddings.patch_embedding.weight", lambda weight: weight.fill(0))
    with pytest.raises(QuantError, match="are the same for all images"):
        quantize(copy, target)


def test_a_matrix_of_zeros_is_fine(copy: Path, tmp_path: Path) -> None:
    for name in ("self_attn.v_proj", "mlp.fc1", "self_attn.q_proj"):
        change_weight(copy, f"{TOWER}encoder.layers.0.{name}.weight", lambda weight: weight.fill(0))
    assert quantize(copy, tmp_path / "int8.onnx").features.cosine >= 0.999


def test_a_graph_of_something_else(quantized: VisionQuant, target: Path) -> None:
    with pytest.raises(QuantError, match="not a vision encoder in fp32 or fp16") as caught:
        quantize_vision(quantized.path, target, tiles(56), Noted())
    assert "fp32" in str(caught.value.hint)


@pytest.mark.parametrize("sizes", [None, "", "[]", "{}", '{"features": 7}'])
def test_a_graph_of_another_version(sizes: str | None, copy: Path, target: Path) -> None:
    import onnx

    model = onnx.load(copy, load_external_data=False)
    onnx.helper.set_model_props(model, {} if sizes is None else {SIZES: sizes})
    copy.write_bytes(model.SerializeToString())
    with pytest.raises(QuantError, match="as this version exports it") as caught:
        quantize_vision(copy, target, tiles(56), Noted())
    assert "export the bundle again" in str(caught.value.hint)


@pytest.mark.parametrize("damage", ["no graph", "no ONNX", "no data", "short data"])
def test_damaged_files(damage: str, copy: Path, target: Path) -> None:
    data = copy.with_name("vision.onnx.data")
    match damage:
        case "no graph":
            copy.unlink()
        case "no ONNX":
            copy.write_bytes(b"\xff" * 99)
        case "no data":
            data.unlink()
        case "short data":
            data.write_bytes(data.read_bytes()[:-4096])
    with pytest.raises(QuantError, match="cannot read") as caught:
        quantize_vision(copy, target, tiles(56), Noted())
    assert "again" in str(caught.value.hint)


def test_disk_full(toy: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ExportError, match="not enough disk space"):
        quantize(toy, target)


def test_interrupted(toy: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vision, "compare_features", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(toy, target)
