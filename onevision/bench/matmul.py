"""One matrix multiplication, as ONNX Runtime and llama.cpp do it in a model.

In: arithmetic and size. Out: a call to time, or None if the engine has no such kernel here. Operands
are normal random numbers, as activations are: on zeros a processor draws less power and runs faster.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onevision.errors import DeviceError
from onevision.native.ggml import F32, InitParams, library
from onevision.native.ort import ort_errors

Arithmetic = Literal["fp32", "fp16", "bf16", "int8"]
Place = Literal["cpu", "cuda"]

#: Values of ``onnx.TensorProto.DataType``.
FLOAT, UINT8, INT8, INT32, FLOAT16, BFLOAT16 = 1, 2, 3, 6, 10, 16
FACTOR, PRODUCT = "factor", "product"
_OPSET, _IR_VERSION = 13, 8  # the first with a MatMul of bfloat16

#: ONNX Runtime's names of the provider and of its memory.
_NAMES: dict[Place, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
}
#: Operator, and ONNX types of factor, weight and product.
_OPERATORS: dict[Arithmetic, tuple[str, tuple[int, int, int]]] = {
    "fp32": ("MatMul", (FLOAT,) * 3),
    "fp16": ("MatMul", (FLOAT16,) * 3),
    "bf16": ("MatMul", (BFLOAT16,) * 3),
    "int8": ("MatMulInteger", (UINT8, INT8, INT32)),
}
#: CPUs have fast kernels for unsigned factors, CUDA's provider only signed ones.
_SIGNED = (INT8, INT8, INT32)
#: Matmuls queued on a GPU per call: to launch one takes as long as a small one itself.
_IN_FLIGHT: dict[Place, int] = {"cpu": 1, "cuda": 10}

#: ``ggml_type`` of the weight: F32, F16, BF16, Q8_0. The factor is float32; converting it is timed.
_GGML_TYPES: dict[Arithmetic, int] = {"fp32": 0, "fp16": 1, "bf16": 30, "int8": 8}
_BLOCK = 32  # weights of q8_0 that share a scale
_OVERHEAD = 4 << 20  # bytes of headers and graph


@dataclass(frozen=True)
class MatmulSize:
    """``[rows, inner] @ [inner, columns]``; ``inner`` is a multiple of 32, llama.cpp's blocks."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Two operations per multiplication."""
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Probe:
    """A call to time: the operations or bytes of it, and its share of the measuring time."""

    call: Callable[[], object]
    amount: float
    share: int = 1


def onnxruntime_matmul(
    precision: Arithmetic, size: MatmulSize, *, threads: int, place: Place = "cpu"
) -> Probe | None:
    """A matmul in ONNX Runtime with its operands on the device; None without the onnx package.

    Raises:
        DeviceError: ``place`` is cuda, and ONNX Runtime cannot use it.
    """
    import onnxruntime

    operator, kinds = _OPERATORS[precision]
    if precision == "int8" and place == "cuda":
        kinds = _SIGNED
    provider, _ = _NAMES[place]
    if provider not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"onnxruntime {onnxruntime.__version__} has no {provider}", hint="pip install onnxruntime-gpu"
        )
    if find_spec("onnx") is None:
        return None
    model = matmul_model(operator, random_matrix(size.inner, size.columns, kinds[1]), size.rows, kinds)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal; errors arrive as exceptions
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
        if provider not in session.get_providers():  # its libraries are missing
            raise DeviceError(
                f"onnxruntime could not start its {provider}",
                hint="check the NVIDIA driver, and the CUDA and cuDNN versions that onnxruntime-gpu needs",
            )
        multiply = _bind(session, random_matrix(size.rows, size.inner, kinds[0]), kinds[0], place)
        multiply()  # some kernels refuse only now
    except ort_errors():
        return None
    return Probe(multiply, _IN_FLIGHT[place] * size.flops)


def matmul_model(operator: str, weight: npt.NDArray[Any], rows: int, kinds: tuple[int, int, int]) -> bytes:
    """``product [rows, N] = operator(factor [rows, K], weight [K, N])`` as a serialized ModelProto.

    The weight is a constant, so that an engine packs it once, as it packs a model's.

    Args:
        operator: ``MatMul`` or ``MatMulInteger``.
        weight: [K, N] in a type of the right size: uint16 for bfloat16.
        rows: Rows of the factor.
        kinds: ONNX types of factor, weight and product.
    """
    from onnx import helper

    (inner, columns), (factor, constant, product) = weight.shape, kinds
    graph = helper.make_graph(
        [helper.make_node(operator, [FACTOR, "weight"], [PRODUCT])],
        "matmul",
        [helper.make_tensor_value_info(FACTOR, factor, [rows, inner])],
        [helper.make_tensor_value_info(PRODUCT, product, [rows, columns])],
        [helper.make_tensor("weight", constant, weight.shape, weight.tobytes(), raw=True)],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized


def _bind(session: Any, factor: npt.NDArray[Any], kind: int, place: Place) -> Callable[[], object]:  # noqa: ANN401
    """A call that runs the session with its input and output on the device."""
    import onnxruntime

    _, device = _NAMES[place]
    binding = session.io_binding()
    if kind == BFLOAT16:  # NumPy has no such type to copy from: whatever lies in that memory will do
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(factor.shape), kind, device, 0)
    else:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(factor, device, 0)
    binding.bind_ortvalue_input(FACTOR, value)
    binding.bind_output(PRODUCT, device)
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def multiply(_held: object = value) -> None:  # on a CPU, the binding does not own this memory
        for _ in range(_IN_FLIGHT[place]):
            session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    return multiply


@contextmanager
def llama_matmul(precision: Arithmetic, size: MatmulSize, *, threads: int) -> Iterator[Probe | None]:
    """A matmul in llama.cpp on the CPU; None if this build does not export ggml's functions."""
    ggml = library()
    if None in vars(ggml).values():
        yield None
        return
    cells = size.inner * size.columns + size.rows * (size.inner + size.columns)
    context = ggml.ggml_init(InitParams(4 * cells + _OVERHEAD, None, False))
    try:
        weight = ggml.ggml_new_tensor_2d(context, _GGML_TYPES[precision], size.inner, size.columns)
        factor = ggml.ggml_new_tensor_2d(context, F32, size.inner, size.rows)
        weights, factors = ggml_weight(precision, size), random_matrix(size.rows, size.inner, FLOAT)
        ctypes.memmove(ggml.ggml_get_data(weight), weights.ctypes.data, weights.nbytes)
        ctypes.memmove(ggml.ggml_get_data(factor), factors.ctypes.data, factors.nbytes)
        nodes = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(nodes, ggml.ggml_mul_mat(context, weight, factor))
        buffer = np.empty(4 * size.rows * size.inner + _OVERHEAD, np.uint8)

        def multiply() -> None:
            # Each call takes a work buffer from its context, for as long as that one lives.
            scratch = ggml.ggml_init(InitParams(buffer.nbytes, buffer.ctypes.data, False))
            ggml.ggml_graph_compute_with_ctx(scratch, nodes, threads)
            ggml.ggml_free(scratch)

        yield Probe(multiply, size.flops)
    finally:
        ggml.ggml_free(context)


def ggml_weight(precision: Arithmetic, size: MatmulSize) -> npt.NDArray[Any]:
    """Memory of a random weight as ggml stores it, row by row [columns, inner]."""
    if precision != "int8":
        return random_matrix(size.columns, size.inner, _OPERATORS[precision][1][0])
    layout = [("scale", np.float16), ("values", np.int8, _BLOCK)]
    blocks = np.empty((size.columns, size.inner // _BLOCK), layout)
    blocks["scale"] = 1 / 127
    blocks["values"] = random_matrix(size.columns, size.inner, INT8).reshape(*blocks.shape, _BLOCK)
    return blocks


def random_matrix(rows: int, columns: int, kind: int) -> npt.NDArray[Any]:
    """Random numbers [rows, columns] of an ONNX type, the same at every call: uint16 for bfloat16."""
    generator = np.random.default_rng(0)
    if kind == UINT8:
        return generator.integers(0, 256, (rows, columns), np.uint8)
    if kind == INT8:
        return generator.integers(-127, 128, (rows, columns), np.int8)
    values = generator.standard_normal((rows, columns), np.float32)
    if kind == BFLOAT16:  # the upper half of float32
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if kind == FLOAT16 else values
