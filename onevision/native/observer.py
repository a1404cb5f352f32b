"""What goes into llama.cpp's matrix products, seen while it computes.

In: nodes of a compute graph, as llama.cpp hands them to ``llama_context_params.cb_eval``. Out: the name of a
weight matrix and the activations that it was multiplied with, float32 [rows, columns].

ggml has no accessors for a node's sources, so its ``struct ggml_tensor`` (``ggml.h``) is written down here,
and compared with the library's own before anything is read through it.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.errors import GenerationError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Visit = Callable[[str, npt.NDArray[np.float32]], None]

#: Weight matrices of a transformer in a GGUF file. Products of keys, queries and values have other names.
_WEIGHT = re.compile(r"(?:.*#)?((?:blk\.\d+\.[a-z_]+|output|token_embd)\.weight)(?:#.*)?")
_F32 = 0  # GGML_TYPE_F32


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),  # elements, innermost dimension first
        ("nb", ctypes.c_size_t * 4),  # strides in bytes
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def matmul_callback(visit: Visit) -> Any:  # noqa: ANN401
    """A callback for :meth:`onevision.runtime.backbone.Backbone.observe`.

    Args:
        visit: Called with the matrix's name and its activations, float32 [rows, columns], a copy. It runs
            inside llama.cpp, through which no exception passes: it must not raise.

    Raises:
        GenerationError: This llama.cpp lays out its tensors in another way.
    """
    import llama_cpp

    ggml = _ggml()
    wanted = _matmul_operation(ggml)

    def callback(address: int, asked: bool, _user_data: object) -> bool:
        node = _Tensor.from_address(address)
        if node.op != wanted:
            return False  # when asked: not needed
        match = _WEIGHT.fullmatch(_Tensor.from_address(node.src[0]).name.decode())
        inputs = _Tensor.from_address(node.src[1])
        if match is None or inputs.type != _F32:
            return False
        if not asked:
            visit(match[1], _read(ggml, inputs))
        return True  # when asked: call again when it is computed; else: go on

    return llama_cpp.ggml_backend_sched_eval_callback(callback)


def _read(ggml: Any, tensor: _Tensor) -> npt.NDArray[np.float32]:  # noqa: ANN401
    """Values of a float32 tensor on any device, [rows, columns]."""
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    raw = np.empty(ggml.ggml_nbytes(ctypes.byref(tensor)), dtype=np.uint8)
    if raw.size:
        ggml.ggml_backend_tensor_get(ctypes.byref(tensor), raw.ctypes.data, 0, raw.size)
    values: npt.NDArray[np.float32] = np.ndarray(shape, np.float32, raw.data, strides=strides)
    return values.reshape(-1, shape[-1])


@cache
def _ggml() -> Any:  # noqa: ANN401
    """The library ``ggml-base`` that llama.cpp itself uses."""
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    ggml = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_nbytes", ctypes.c_size_t, [pointer]),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


def _matmul_operation(ggml: Any) -> int:  # noqa: ANN401
    """Number of matrix products among ggml's operations; :class:`_Tensor` is checked on the way."""
    context = ggml.ggml_init(_InitParams(mem_size=1 << 16, mem_buffer=None, no_alloc=True))
    try:
        weight = ggml.ggml_new_tensor_2d(context, _F32, 32, 5)
        inputs = ggml.ggml_new_tensor_2d(context, _F32, 32, 3)
        product = ggml.ggml_mul_mat(context, weight, inputs)
        ggml.ggml_set_name(product, b"product")
        seen = _Tensor.from_address(product)
        found = (seen.name, tuple(seen.ne), tuple(seen.nb[:2]), *seen.src[:3], ggml.ggml_op_name(seen.op))
        if found != (b"product", (5, 3, 1, 1), (4, 20), weight, inputs, None, b"MUL_MAT"):
            raise GenerationError(
                "this llama.cpp lays out its tensors in another way: activations cannot be read",
                hint="pip install llama-cpp-python==0.3.36",
            )
        return int(seen.op)
    finally:
        ggml.ggml_free(context)
