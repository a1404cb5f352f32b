"""One product of two matrices in llama.cpp on the CPU, as the backbone has them.

In: a precision and a size. Out: a function that multiplies once, or None where this build cannot be asked.

The product is that of ggml, the library under llama.cpp, called through eight functions of its C API. They
take plain numbers and pointers, and their signatures have been the same for years.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.bench import graph
from onevision.bench.products import Product, random_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from onevision.bench.products import Precision, Size

#: ``ggml_type`` of the weight (F32, F16, BF16, Q8_0). The factor is float32, and rounding it to what the
#: kernel takes is a part of the work.
_TYPES: dict[Precision, int] = {"fp32": 0, "fp16": 1, "bf16": 30, "int8": 8}
_FLOATS: dict[Precision, int] = {"fp32": graph.FLOAT, "fp16": graph.FLOAT16, "bf16": graph.BFLOAT16}
_BLOCK = 32  # weights of q8_0 that share a step
_OVERHEAD = 4 << 20  # headers and graph


@contextmanager
def llama_product(precision: Precision, size: Size, *, threads: int) -> Iterator[Product | None]:
    """A product in llama.cpp. Its memory is freed with the context."""
    ggml = _functions()
    context = ggml and ggml.init(_InitParams(_room(size), None, False))
    if not context:
        yield None
        return
    try:
        weight = ggml.new_tensor_2d(context, _TYPES[precision], size.inner, size.columns)
        factor = ggml.new_tensor_2d(context, _TYPES["fp32"], size.inner, size.rows)
        _fill(ggml.get_data(weight), _weight(precision, size))
        _fill(ggml.get_data(factor), random_matrix(size.rows, size.inner, graph.FLOAT))
        nodes = ggml.new_graph(context)
        ggml.build_forward_expand(nodes, ggml.mul_mat(context, weight, factor))
        buffer = np.empty(4 * size.rows * size.inner + _OVERHEAD, np.uint8)

        def multiply() -> None:
            # Each call takes a work buffer from the context it is given, for as long as that one lives.
            scratch = ggml.init(_InitParams(buffer.nbytes, buffer.ctypes.data, False))
            ggml.graph_compute_with_ctx(scratch, nodes, threads)
            ggml.free(scratch)

        yield Product(multiply)
    finally:
        ggml.free(context)


def _room(size: Size) -> int:
    """Bytes of weight, factor and product, float32 at most."""
    cells = size.inner * size.columns + size.rows * (size.inner + size.columns)
    return 4 * cells + _OVERHEAD


def _weight(precision: Precision, size: Size) -> npt.NDArray[Any]:
    """Memory of a weight, row by row [columns, inner]."""
    if precision != "int8":
        return random_matrix(size.columns, size.inner, _FLOATS[precision])
    blocks = np.empty(
        (size.columns, size.inner // _BLOCK), [("step", np.float16), ("levels", np.int8, _BLOCK)]
    )
    blocks["step"] = 1 / 127
    blocks["levels"] = random_matrix(size.columns, size.inner, graph.INT8).reshape(*blocks.shape, _BLOCK)
    return blocks


def _fill(address: int, values: npt.NDArray[Any]) -> None:
    ctypes.memmove(address, values.ctypes.data, values.nbytes)


class _InitParams(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER, _INT, _INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
#: Result and arguments by name, without the prefix.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "init": (_POINTER, _InitParams),
    "free": (None, _POINTER),
    "new_tensor_2d": (_POINTER, _POINTER, _INT, _INT64, _INT64),
    "get_data": (_POINTER, _POINTER),
    "mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "new_graph": (_POINTER, _POINTER),
    "build_forward_expand": (None, _POINTER, _POINTER),
    "graph_compute_with_ctx": (_INT, _POINTER, _POINTER, _INT),
}


@cache
def _functions() -> Any:  # noqa: ANN401
    """The functions by name, or None where llama.cpp's library does not hand out those of its parts.

    Windows looks into one library only, and a build may load its kernels as a plug-in.
    """
    import onevision.runtime.backbone  # noqa: F401 - sets up the threads of llama.cpp, before it is loaded
    from onevision.native.llama import silence_llama

    silence_llama()
    from llama_cpp import llama_cpp as api

    functions = SimpleNamespace()
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(api._lib, f"ggml_{name}", None)
        if function is None:
            return None
        function.restype, function.argtypes = result, arguments
        setattr(functions, name, function)
    return functions
