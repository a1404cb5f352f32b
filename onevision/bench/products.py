"""One product of two matrices in ONNX Runtime, as the vision encoder has them.

In: a precision and a size. Out: a function that multiplies once, or None where the engine cannot. Factors
are normal random numbers, as activations are: on zeros a processor draws less power, and runs faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onevision.bench import graph
from onevision.errors import DeviceError
from onevision.native.ort import ort_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Multiply = Callable[[], object]

#: Arithmetic that matrices are multiplied in.
Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: Where they are.
Place = Literal["cpu", "cuda"]

#: ONNX Runtime's names of the provider and of its memory.
_NAMES: dict[Place, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
}
#: Operator, and ONNX types of factor, weight and product.
_OPERATORS: dict[Precision, tuple[str, tuple[int, int, int]]] = {
    "fp32": ("MatMul", (graph.FLOAT,) * 3),
    "fp16": ("MatMul", (graph.FLOAT16,) * 3),
    "bf16": ("MatMul", (graph.BFLOAT16,) * 3),
    "int8": ("MatMulInteger", (graph.UINT8, graph.INT8, graph.INT32)),
}
#: Unsigned factors have the fast kernels of CPUs; CUDA's provider has none for them.
_SIGNED = (graph.INT8, graph.INT8, graph.INT32)
#: Products that a GPU is given before it is waited for: to launch one takes as long as a small one itself.
_IN_FLIGHT: dict[Place, int] = {"cpu": 1, "cuda": 10}
_SEED = 0


@dataclass(frozen=True)
class Size:
    """``[rows, inner] · [inner, columns]``; ``inner`` is a multiple of 32, llama.cpp's blocks."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Two operations per multiplication."""
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Product:
    """What to time. Each call of ``multiply`` makes ``count`` products, and ends when they are made."""

    multiply: Multiply
    count: int = 1


def onnxruntime_product(
    precision: Precision, size: Size, *, threads: int, place: Place = "cpu"
) -> Product | None:
    """A product in ONNX Runtime; factors and product stay where the device is.

    Raises:
        DeviceError: ONNX Runtime cannot use CUDA, and it was asked for.
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
    weight = random_matrix(size.inner, size.columns, kinds[1])
    model = graph.product_model(operator, weight, size.rows, kinds=kinds)
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
        multiply = _bound(session, random_matrix(size.rows, size.inner, kinds[0]), kinds[0], place)
        multiply()  # some kernels refuse only now
    except ort_errors():
        return None
    return Product(multiply, _IN_FLIGHT[place])


def _bound(session: Any, factor: npt.NDArray[Any], kind: int, place: Place) -> Multiply:  # noqa: ANN401
    """The session with its ends on the device."""
    import onnxruntime

    _, device = _NAMES[place]
    binding = session.io_binding()
    if kind == graph.BFLOAT16:  # NumPy has no such type to copy from: what lies in that memory will do
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(factor.shape), kind, device, 0)
    else:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(factor, device, 0)
    binding.bind_ortvalue_input(graph.FACTOR, value)
    binding.bind_output(graph.PRODUCT, device)
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def multiply(_held: object = value) -> None:  # on a CPU, the binding does not own this memory
        for _ in range(_IN_FLIGHT[place]):
            session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()

    return multiply


def random_matrix(rows: int, columns: int, kind: int) -> npt.NDArray[Any]:
    """Numbers in the memory of an ONNX type, the same at every call: uint16 for bfloat16."""
    generator = np.random.default_rng(_SEED)
    if kind == graph.UINT8:
        return generator.integers(0, 256, (rows, columns), np.uint8)
    if kind == graph.INT8:
        return generator.integers(-127, 128, (rows, columns), np.int8)
    values = generator.standard_normal((rows, columns), np.float32)
    if kind == graph.BFLOAT16:  # the upper half of float32
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if kind == graph.FLOAT16 else values
