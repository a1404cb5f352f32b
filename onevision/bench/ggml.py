"""ggml's functions by ctypes: numbers and pointers, with signatures that have been the same for years."""

from __future__ import annotations

import ctypes
from functools import cache
from types import SimpleNamespace
from typing import Any


class InitParams(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER, _INT, _INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
#: Result and arguments by name, without the prefix.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "init": (_POINTER, InitParams),
    "free": (None, _POINTER),
    "new_tensor_2d": (_POINTER, _POINTER, _INT, _INT64, _INT64),
    "get_data": (_POINTER, _POINTER),
    "mul_mat": (_POINTER, _POINTER, _POINTER, _POINTER),
    "new_graph": (_POINTER, _POINTER),
    "build_forward_expand": (None, _POINTER, _POINTER),
    "graph_compute_with_ctx": (_INT, _POINTER, _POINTER, _INT),
}


@cache
def functions() -> Any:  # noqa: ANN401
    """The functions by name, or None where llama.cpp's library does not export those of its parts."""
    import onevision.runtime.backbone  # noqa: F401 - sets up the threads of llama.cpp, before it is loaded
    from onevision.native.llama import silence_llama

    silence_llama()
    from llama_cpp import llama_cpp as api

    found = SimpleNamespace()
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(api._lib, f"ggml_{name}", None)
        if function is None:
            return None
        function.restype, function.argtypes = result, arguments
        setattr(found, name, function)
    return found
