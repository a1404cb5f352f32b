"""The one ctypes binding of ggml, the library under llama.cpp, and the activations of its matmuls.

llama-cpp-python binds llama.cpp's own API. Below it, this package needs ggml's reader of GGUF files, its
dequantization, its matmul for measuring, and the nodes of a compute graph while llama.cpp runs it.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import GenerationError
from onevision.native.llama import silence_llama

#: Version of llama-cpp-python whose memory layouts were checked.
CHECKED = "0.3.36"
F32 = 0  # GGML_TYPE_F32

#: Weight matrices of a transformer in a GGUF file. Matmuls of keys, queries and values have other names.
_WEIGHT = re.compile(r"(?:.*#)?((?:blk\.\d+\.[a-z_]+|output|token_embd)\.weight)(?:#.*)?")


class InitParams(ctypes.Structure):
    """``struct ggml_init_params`` (``ggml.h``)."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class GgufInitParams(ctypes.Structure):
    """``struct gguf_init_params`` (``gguf.h``)."""

    _fields_ = (("no_alloc", c_bool), ("context", c_void_p))


class GgmlTensor(ctypes.Structure):
    """``struct ggml_tensor`` (``ggml.h``): ggml has no accessors for a node's sources."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),  # elements, innermost dimension first
        ("nb", c_size_t * 4),  # strides in bytes
        ("op", c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", c_void_p),
        ("padding", ctypes.c_char * 8),
    )


#: Result and arguments of the functions that are used, as ``gguf.h`` and ``ggml.h`` declare them.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "gguf_init_from_file": (c_void_p, c_char_p, GgufInitParams),
    "gguf_free": (None, c_void_p),
    "gguf_get_data_offset": (c_size_t, c_void_p),
    "gguf_get_n_tensors": (c_int64, c_void_p),
    "gguf_get_tensor_name": (c_char_p, c_void_p, c_int64),
    "gguf_get_tensor_type": (c_int, c_void_p, c_int64),
    "gguf_get_tensor_ne": (POINTER(c_int64), c_void_p, c_int64),
    "gguf_get_tensor_offset": (c_size_t, c_void_p, c_int64),
    "gguf_get_tensor_size": (c_size_t, c_void_p, c_int64),
    "gguf_get_n_kv": (c_int64, c_void_p),
    "gguf_get_key": (c_char_p, c_void_p, c_int64),
    "gguf_get_kv_type": (c_int, c_void_p, c_int64),
    "gguf_get_val_u32": (c_uint32, c_void_p, c_int64),
    "gguf_get_val_f32": (c_float, c_void_p, c_int64),
    "ggml_type_name": (c_char_p, c_int),
    "ggml_init": (c_void_p, InitParams),
    "ggml_free": (None, c_void_p),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_get_data": (c_void_p, c_void_p),
    "ggml_set_name": (c_void_p, c_void_p, c_char_p),
    "ggml_nbytes": (c_size_t, c_void_p),
    "ggml_op_name": (c_char_p, c_int),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_new_graph": (c_void_p, c_void_p),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_graph_compute_with_ctx": (c_int, c_void_p, c_void_p, c_int),
}
_DEQUANTIZE = (None, c_void_p, c_void_p, c_int64)  # dequantize_row_<type>: blocks, floats, number of floats


@cache
def library() -> Any:  # noqa: ANN401
    """The functions by name. One that this build does not export is None: kernels may be a plug-in."""
    callback = silence_llama()
    # The base may be loaded twice, by two of its names: each copy has a log.
    _function("ggml_log_set", None, type(callback), ctypes.c_void_p)(callback, None)
    found = SimpleNamespace()
    for name, signature in _SIGNATURES.items():
        setattr(found, name, _function(name, *signature))
    return found


@cache
def dequantizer(kind: str) -> Any:  # noqa: ANN401
    """The function that turns rows of a type (``q8_0``) into float32, or None if there is none."""
    floats = {"f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row"}
    return _function(floats.get(kind, f"dequantize_row_{kind.replace('_k', '_K')}"), *_DEQUANTIZE)


def _function(name: str, result: Any, *arguments: Any) -> Any:  # noqa: ANN401
    for loaded in _libraries():
        if function := getattr(loaded, name, None):
            function.restype, function.argtypes = result, arguments
            return function
    return None


@cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """Ggml's base and kernels; on Windows each library is asked by itself."""
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library
    from llama_cpp._ggml import libggml

    def parts() -> Iterator[ctypes.CDLL]:
        folder = Path(llama_cpp.__file__).parent / "lib"
        yield load_shared_library("ggml-base", folder)
        yield libggml
        if any(folder.glob("*ggml-cpu.*")):  # a plug-in build has one for each kind of processor instead
            yield load_shared_library("ggml-cpu", folder)

    return tuple(parts())


def matmul_callback(visit: Callable[[str, npt.NDArray[np.float32]], None]) -> Any:  # noqa: ANN401
    """A callback for :meth:`onevision.runtime.backbone.Backbone.observe`.

    Args:
        visit: Called with the name of a weight matrix and its activations, float32 [rows, columns], a copy.
            It runs inside llama.cpp, which no exception may cross: it must not raise.

    Raises:
        GenerationError: This llama.cpp lays out its tensors in another way.
    """
    import llama_cpp

    matmul = _matmul_operation()

    def callback(address: int, asked: bool, _user_data: object) -> bool:
        node = GgmlTensor.from_address(address)
        if node.op != matmul:
            return False  # when asked: not needed
        match = _WEIGHT.fullmatch(GgmlTensor.from_address(node.src[0]).name.decode())
        inputs = GgmlTensor.from_address(node.src[1])
        if match is None or inputs.type != F32:
            return False
        if not asked:
            visit(match[1], _values(inputs))
        return True  # when asked: call again when it is computed; else: continue

    return llama_cpp.ggml_backend_sched_eval_callback(callback)


def _values(tensor: GgmlTensor) -> npt.NDArray[np.float32]:
    """Values of a float32 tensor on any device, [rows, columns]."""
    ggml = library()
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    raw = np.empty(ggml.ggml_nbytes(ctypes.byref(tensor)), dtype=np.uint8)
    if raw.size:
        ggml.ggml_backend_tensor_get(ctypes.byref(tensor), raw.ctypes.data, 0, raw.size)
    values: npt.NDArray[np.float32] = np.ndarray(shape, np.float32, raw.data, strides=strides)
    return values.reshape(-1, shape[-1])


def _matmul_operation() -> int:
    """Ggml's number of the matmul operation; checks :class:`GgmlTensor` against the library on the way."""
    ggml = library()
    context = ggml.ggml_init(InitParams(mem_size=1 << 16, mem_buffer=None, no_alloc=True))
    try:
        weight = ggml.ggml_new_tensor_2d(context, F32, 32, 5)
        inputs = ggml.ggml_new_tensor_2d(context, F32, 32, 3)
        result = ggml.ggml_mul_mat(context, weight, inputs)
        ggml.ggml_set_name(result, b"matmul")
        seen = GgmlTensor.from_address(result)
        found = (seen.name, tuple(seen.ne), tuple(seen.nb[:2]), *seen.src[:3], ggml.ggml_op_name(seen.op))
        if found != (b"matmul", (5, 3, 1, 1), (4, 20), weight, inputs, None, b"MUL_MAT"):
            raise GenerationError(
                "this llama.cpp lays out its tensors in another way: activations cannot be read",
                hint=f"pip install llama-cpp-python=={CHECKED}",
            )
        return int(seen.op)
    finally:
        ggml.ggml_free(context)
