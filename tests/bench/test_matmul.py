"""One matmul in each engine: what is timed is what a model multiplies."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onevision.bench import matmul
from onevision.bench.matmul import (
    MatmulSize,
    ggml_weight,
    llama_matmul,
    matmul_model,
    onnxruntime_matmul,
    random_matrix,
)
from onevision.errors import DeviceError
from onevision.native.ggml import library

if TYPE_CHECKING:
    import numpy.typing as npt

SIZE = MatmulSize(rows=3, inner=64, columns=5)
#: Operator, and the kinds of factor, weight and product.
KINDS = {
    "fp32": ("MatMul", (matmul.FLOAT,) * 3),
    "bf16": ("MatMul", (matmul.BFLOAT16,) * 3),
    "int8": ("MatMulInteger", (matmul.UINT8, matmul.INT8, matmul.INT32)),
}


@pytest.mark.parametrize("precision", KINDS)
def test_the_graph_is_a_valid_model(precision: str):
    import onnx

    operator, kinds = KINDS[precision]
    weight = random_matrix(300, 200, kinds[1])  # dims and lengths of more than one byte
    model = onnx.load_from_string(matmul_model(operator, weight, 129, kinds))
    onnx.checker.check_model(model, full_check=True)
    (node,), (initializer,) = model.graph.node, model.graph.initializer
    assert (node.op_type, list(node.input), list(node.output)) == (
        operator, [matmul.FACTOR, initializer.name], [matmul.PRODUCT]
    )  # fmt: skip
    assert initializer.raw_data == weight.tobytes()
    ends = (*model.graph.input, *model.graph.output)
    shapes = [[dim.dim_value for dim in end.type.tensor_type.shape.dim] for end in ends]
    assert shapes == [[129, 300], [129, 200]]
    assert [end.type.tensor_type.elem_type for end in ends] == [kinds[0], kinds[2]]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_graph_multiplies(precision: str):
    import onnxruntime

    operator, kinds = KINDS[precision]
    factor, weight = random_matrix(3, 64, kinds[0]), random_matrix(64, 5, kinds[1])
    model = matmul_model(operator, weight, 3, kinds)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (product,) = session.run([matmul.PRODUCT], {matmul.FACTOR: factor})
    exact = factor.astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_allclose(product, exact, rtol=1e-4, atol=1e-4)


def test_numbers_repeat_and_fill_their_types():
    for kind in (matmul.FLOAT, matmul.FLOAT16, matmul.BFLOAT16, matmul.UINT8, matmul.INT8):
        matrix = random_matrix(40, 50, kind)
        np.testing.assert_array_equal(matrix, random_matrix(40, 50, kind))
        assert matrix.shape == (40, 50)
        assert len(np.unique(matrix)) > 100
    whole = random_matrix(4, 5, matmul.FLOAT)
    halves = random_matrix(4, 5, matmul.BFLOAT16).astype(np.uint32) << 16
    np.testing.assert_allclose(halves.view(np.float32), whole, rtol=2**-7)


def test_onnxruntime_multiplies_what_it_can():
    for precision in ("fp32", "fp16", "int8"):
        probe = onnxruntime_matmul(precision, SIZE, threads=1)
        assert probe is not None
        assert probe.amount == SIZE.flops
        for _ in range(3):
            probe.call()
    # Of bfloat16, a CPU has no kernel everywhere: None then, and no exception.
    probe = onnxruntime_matmul("bf16", SIZE, threads=1)
    assert probe is None or probe.call


def test_a_gpu_is_given_several_products_at_once(monkeypatch: pytest.MonkeyPatch):
    """With the CPU's provider in the place of CUDA's."""
    monkeypatch.setitem(matmul._NAMES, "cuda", matmul._NAMES["cpu"])
    for precision in ("fp32", "fp16", "int8"):
        probe = onnxruntime_matmul(precision, SIZE, threads=1, place="cuda")
        assert probe is not None
        assert probe.amount > SIZE.flops
        probe.call()


def test_without_cuda_the_device_is_missing():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    with pytest.raises(DeviceError, match="CUDAExecutionProvider") as caught:
        onnxruntime_matmul("fp32", SIZE, threads=1, place="cuda")
    assert caught.value.hint


# llama.cpp


def values(precision: str) -> npt.NDArray[np.float64]:
    """The weight [columns, inner] that llama.cpp multiplies with."""
    weight = ggml_weight(precision, SIZE)
    if precision == "int8":
        return (weight["scale"][..., None].astype(np.float64) * weight["values"]).reshape(5, 64)
    if precision == "bf16":
        return (weight.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return weight.astype(np.float64)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_llama_multiplies(precision: str, monkeypatch: pytest.MonkeyPatch):
    ggml = library()
    if ggml.ggml_mul_mat is None:
        pytest.skip("this build of llama.cpp does not export ggml's functions")
    nodes = []
    monkeypatch.setattr(ggml, "ggml_mul_mat", spy(ggml.ggml_mul_mat, nodes))
    with llama_matmul(precision, SIZE, threads=1) as probe:
        assert probe is not None
        for _ in range(50):  # more than a context would have room for, if calls left anything in it
            probe.call()
        address = ggml.ggml_get_data(nodes[0])
        result = np.frombuffer(ctypes.string_at(address, 4 * 15), np.float32).reshape(3, 5)
    factor = random_matrix(3, 64, matmul.FLOAT).astype(np.float64)
    np.testing.assert_allclose(result, factor @ values(precision).T, rtol=0.02, atol=0.3)


def spy(function: Any, results: list[Any]) -> Any:
    def call(*arguments: Any) -> Any:
        results.append(function(*arguments))
        return results[-1]

    return call


def test_a_library_that_cannot_be_called_is_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matmul, "library", lambda: SimpleNamespace(ggml_init=None))
    with llama_matmul("fp32", SIZE, threads=1) as probe:
        assert probe is None
