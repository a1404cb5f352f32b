"""The ONNX Runtime session of the vision encoder: shapes, providers, damaged files."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onevision.errors import BundleError, DeviceError, GenerationError, InputError, UsageError
from onevision.models import default_bundle
from onevision.native import ort
from onevision.runtime import vision
from onevision.runtime.vision import VisionEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

SIDE, PATCH, WIDTH = 12, 4, 5
PATCHES = (SIDE // PATCH) ** 2


def kernel() -> Array:
    return np.random.default_rng(0).normal(size=(WIDTH, 3, PATCH, PATCH)).astype(np.float32)


def expected(pixels: Array) -> Array:
    """What the model of :func:`write_model` computes."""
    side = SIDE // PATCH
    patches = pixels.reshape(len(pixels), 3, side, PATCH, side, PATCH)
    return np.einsum("tcyixj,ocij->tyxo", patches, kernel()).reshape(len(pixels), PATCHES, WIDTH)


def write_model(path: Path, *, weight: Array | None = None, **changed: Any) -> Path:
    """A patch embedding in place of the tower: same inputs and outputs, weights in a file of their own."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    names = {"source": "pixel_values", "target": "image_features"} | changed
    shape = [names.get("tiles", "tiles"), 3, SIDE, names.get("width", SIDE)]
    float_type = names.get("type", TensorProto.FLOAT)
    nodes = [
        helper.make_node("Conv", [names["source"], "kernel"], ["map"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["map", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], [names["target"]], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(names["source"], float_type, shape)],
        [helper.make_tensor_value_info(names["target"], float_type, [shape[0], None, WIDTH])],
        [
            numpy_helper.from_array(kernel() if weight is None else weight, "kernel"),
            numpy_helper.from_array(np.array([0, WIDTH, -1]), "shape"),
        ],
    )
    if names.get("patches", True):
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = PATCHES
    if float_type == TensorProto.FLOAT16:
        graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel().astype(np.float16), "kernel"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=100)
    return path


def tiles(count: int) -> Array:
    return np.random.default_rng(count).uniform(-1, 1, (count, 3, SIDE, SIDE)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "vision.onnx")


@pytest.fixture
def encoder(path: Path) -> Iterator[VisionEncoder]:
    with closing(VisionEncoder(path, device="cpu")) as encoder:
        yield encoder


def test_sizes_come_from_the_graph(encoder: VisionEncoder) -> None:
    assert (encoder.image_size, encoder.patches, encoder.hidden_size) == (SIDE, PATCHES, WIDTH)
    assert (encoder.device, encoder.notes) == ("cpu", ())


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("batch", [None, 1, 2, 8])
def test_features_are_in_the_order_of_the_tiles(
    encoder: VisionEncoder, count: int, batch: int | None
) -> None:
    features = encoder.encode(tiles(count), batch=batch)
    assert features.dtype == np.float32
    assert features.shape == (count, PATCHES, WIDTH)
    np.testing.assert_allclose(features, expected(tiles(count)), rtol=1e-5, atol=1e-5)


def test_bound_memory_gives_what_a_plain_call_gives(path: Path, encoder: VisionEncoder) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"pixel_values": tiles(3)})
    np.testing.assert_array_equal(encoder.encode(tiles(3), batch=3), features)


def test_a_view_with_gaps_is_read_right(encoder: VisionEncoder) -> None:
    pixels = tiles(4)[::2, :, ::-1]
    np.testing.assert_allclose(encoder.encode(pixels), expected(pixels), rtol=1e-5, atol=1e-5)


def test_each_tile_is_told(encoder: VisionEncoder) -> None:
    told: list[tuple[int, int]] = []
    encoder.encode(tiles(3), lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, SIDE, SIDE), np.float64),
        np.zeros((1, 3, SIDE, SIDE), np.uint8),
        np.zeros((3, SIDE, SIDE), np.float32),
        np.zeros((1, SIDE, SIDE, 3), np.float32),
        np.zeros((1, 3, SIDE, SIDE + 1), np.float32),
        np.zeros((1, 1, 3, SIDE, SIDE), np.float32),
    ],
    ids=lambda pixels: f"{pixels.dtype} {pixels.shape}",
)
def test_other_shapes_and_types_are_refused(encoder: VisionEncoder, pixels: Any) -> None:
    with pytest.raises(InputError, match="pixel values are"):
        encoder.encode(pixels)


def test_features_must_be_finite(tmp_path: Path) -> None:
    weight = kernel()
    weight[2, 1, 0, 3] = np.nan
    with closing(
        VisionEncoder(write_model(tmp_path / "vision.onnx", weight=weight), device="cpu")
    ) as encoder:
        with pytest.raises(GenerationError, match="image features are not finite") as caught:
            encoder.encode(tiles(2))
        assert "fp32" in str(caught.value.hint)


def test_one_thread_and_many_agree(path: Path) -> None:
    features = []
    for threads in (1, 3):
        with closing(VisionEncoder(path, device="cpu", threads=threads)) as encoder:
            features.append(encoder.encode(tiles(2)))
    np.testing.assert_allclose(*features, rtol=1e-6)


def test_closed(encoder: VisionEncoder) -> None:
    encoder.close()
    encoder.close()
    with pytest.raises(GenerationError, match="closed"):
        encoder.encode(tiles(1))


# Devices. The tests run without a GPU; what a GPU adds is the first branch only.


def without_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


needs_no_cuda = pytest.mark.skipif(not without_cuda(), reason="this onnxruntime has a CUDA provider")


@needs_no_cuda
def test_cuda_without_its_provider_names_the_package(path: Path) -> None:
    with pytest.raises(DeviceError, match="no CUDA provider") as caught:
        VisionEncoder(path, device="cuda")
    assert "onnxruntime-gpu" in str(caught.value.hint)


@needs_no_cuda
def test_auto_takes_the_cpu_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "has_nvidia_gpu", lambda: False)
    with closing(VisionEncoder(path)) as encoder:
        assert encoder.notes == (), "nothing is lost where there is no GPU"
    monkeypatch.setattr(ort, "has_nvidia_gpu", lambda: True)
    with closing(VisionEncoder(path)) as encoder:
        assert encoder.device == "cpu"
        assert "no CUDA provider" in encoder.notes[0]
        assert "runs on the CPU" in encoder.notes[0]
        np.testing.assert_allclose(encoder.encode(tiles(1)), expected(tiles(1)), rtol=1e-5, atol=1e-5)


def test_fp16_on_a_cpu_says_what_it_costs_where_it_costs_something(monkeypatch: pytest.MonkeyPatch) -> None:
    path = default_bundle() / "vision.onnx"
    with closing(VisionEncoder(path, device="cpu")) as encoder:
        assert encoder.notes == (), "12 MB are converted at once"
    monkeypatch.setattr(vision, "_COSTLY_FP16", 1_000_000)
    with closing(VisionEncoder(path, device="cpu")) as encoder:
        assert "fp16" in encoder.notes[0]


@pytest.fixture
def cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists its CUDA provider, and passes it over in silence when libraries are missing."""
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(ort, "has_nvidia_gpu", lambda: True)


@needs_no_cuda
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.usefixtures("cuda_that_does_not_start")
def test_a_provider_passed_over_is_noticed(path: Path) -> None:
    with pytest.raises(DeviceError, match="could not start its CUDA provider"):
        VisionEncoder(path, device="cuda")
    with closing(VisionEncoder(path, device="auto")) as encoder:
        assert encoder.device == "cpu"
        assert "could not start" in encoder.notes[0]


@needs_no_cuda
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.usefixtures("cuda_that_does_not_start")
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_damaged_file_is_not_blamed_on_cuda(path: Path, device: Any) -> None:
    path.write_bytes(b"damaged")
    with pytest.raises(BundleError, match="damaged"):
        VisionEncoder(path, device=device)


@pytest.mark.parametrize("device", ["gpu", "CPUExecutionProvider", "CUDA", "", "mps"])
def test_unknown_devices(path: Path, device: Any) -> None:
    with pytest.raises(UsageError, match="unknown device") as caught:
        VisionEncoder(path, device=device)
    assert "cuda" in str(caught.value.hint)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(path: Path, threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        VisionEncoder(path, device="cpu", threads=threads)


# Files.


def _data(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "is damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:200]), "is damaged"),
    "without weights": (lambda path: _data(path).unlink(), "lacks its weights, vision.onnx.data"),
    "with cut weights": (lambda path: _data(path).write_bytes(b"short"), "is damaged"),
    "other input": (lambda path: write_model(path, source="pixels"), "not a vision encoder"),
    "other output": (lambda path: write_model(path, target="features"), "not a vision encoder"),
    "tiles not square": (
        lambda path: write_model(path, width=SIDE + PATCH, patches=False),
        "not a vision encoder",
    ),
    "fixed number of tiles": (lambda path: write_model(path, tiles=1), "not a vision encoder"),
    "halves for input": (lambda path: write_model(path, type=10), "not a vision encoder"),
    "unknown operator": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"Conv", b"Fold")),
        "is damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files(path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    damage, message = DAMAGE[kind]
    damage(path)
    with pytest.raises(BundleError, match=message) as caught:
        VisionEncoder(path, device="cpu")
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_importing_it_loads_no_heavy_library() -> None:
    code = (
        "import sys, onevision.runtime.vision;"
        "print({'onnxruntime', 'torch', 'transformers', 'onnx', 'optimum'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
