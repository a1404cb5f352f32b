"""Tensors of a GGUF file as floats, read and dequantised by the library that llama.cpp itself uses (ggml).

In: a GGUF file of any type of weights. Out: whole tensors or single rows, float32. The file is mapped: only
the rows that are asked for are read.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

_HINT = "copy or export the bundle again"

#: ggml's functions that turn rows into floats; those of quantised types are ``dequantize_row_<type>``.
_FLOAT_READERS = {"f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row"}


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies. ``type`` is ggml's number, ``shape`` has the rows first."""

    type: int
    shape: tuple[int, ...]
    offset: int
    bytes: int


class GgufFile:
    """The tensors and numbers of a GGUF file.

    Args:
        path: The file.

    Raises:
        BundleError: It cannot be read, or is no GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ggml = _ggml()
        # Opened here first: ggml would say only on stderr why it cannot.
        try:
            self._data = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read {path}: {error}", hint=_HINT) from error
        handle = ggml.gguf_init_from_file(os.fsencode(path), _InitParameters(no_alloc=True, context=None))
        if not handle:
            raise BundleError(f"{path} is damaged, or no GGUF file", hint=_HINT)
        try:
            self._tensors = dict(_tensors(ggml, handle))
            self._numbers = _numbers(ggml, handle)
        finally:
            ggml.gguf_free(handle)
        end = max((tensor.offset + tensor.bytes for tensor in self._tensors.values()), default=0)
        if end > len(self._data):
            raise BundleError(f"{path} is cut off", hint=_HINT)

    def number(self, key: str) -> float:
        """A number of the file's metadata.

        Raises:
            BundleError: It is not there.
        """
        if key not in self._numbers:
            raise BundleError(f"{self.path} has no {key}", hint=_HINT)
        return self._numbers[key]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, rows first.

        Raises:
            BundleError: It is not there.
        """
        return self._find(name).shape

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A whole tensor, as torch has it: a matrix is [out, in].

        Raises:
            BundleError: It is not there, or of a type that the library cannot read.
        """
        tensor = self._find(name)
        return self._floats(tensor, tensor.offset, tensor.shape)

    def rows(self, name: str, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Some rows of a matrix, float32 [len(ids), row].

        Raises:
            BundleError: See :meth:`tensor`.
        """
        tensor = self._find(name)
        count, width = tensor.shape
        size = tensor.bytes // count
        out = np.empty((len(ids), width), np.float32)
        for place, row in enumerate(ids):
            if not 0 <= row < count:
                raise IndexError(f"row {row} of {count}")
            out[place] = self._floats(tensor, tensor.offset + row * size, (width,))
        return out

    def _find(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise BundleError(f"{self.path} has no tensor {name}", hint=_HINT)
        return self._tensors[name]

    def _floats(self, tensor: _Tensor, offset: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        ggml, count = _ggml(), int(np.prod(shape))
        kind = ggml.ggml_type_name(tensor.type).decode()
        if kind == "f32":
            return np.frombuffer(self._data, np.float32, count, offset).reshape(shape).copy()
        convert = getattr(ggml, _FLOAT_READERS.get(kind, f"dequantize_row_{kind}"), None)
        if convert is None:
            raise BundleError(f"{self.path} has weights of type {kind}, which cannot be read", hint=_HINT)
        convert.argtypes, convert.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None
        out = np.empty(shape, np.float32)
        convert(self._data.ctypes.data + offset, out.ctypes.data, count)
        return out


class _InitParameters(ctypes.Structure):
    """``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def _tensors(ggml: Any, handle: int) -> list[tuple[str, _Tensor]]:  # noqa: ANN401
    start = ggml.gguf_get_data_offset(handle)
    found = []
    for index in range(ggml.gguf_get_n_tensors(handle)):
        # ggml has the innermost dimension first, and 1 for those that a tensor lacks.
        sizes = ggml.gguf_get_tensor_ne(handle, index)[:4]
        shape = tuple(sizes[: max(at + 1 for at, size in enumerate(sizes) if size > 1 or at == 0)][::-1])
        tensor = _Tensor(
            ggml.gguf_get_tensor_type(handle, index),
            shape,
            start + ggml.gguf_get_tensor_offset(handle, index),
            ggml.gguf_get_tensor_size(handle, index),
        )
        found.append((ggml.gguf_get_tensor_name(handle, index).decode(), tensor))
    return found


def _numbers(ggml: Any, handle: int) -> dict[str, float]:  # noqa: ANN401
    readers = {4: ggml.gguf_get_val_u32, 6: ggml.gguf_get_val_f32}  # gguf_type: UINT32, FLOAT32
    found = {}
    for index in range(ggml.gguf_get_n_kv(handle)):
        if reader := readers.get(ggml.gguf_get_kv_type(handle, index)):
            found[ggml.gguf_get_key(handle, index).decode()] = reader(handle, index)
    return found


@cache
def _ggml() -> Any:  # noqa: ANN401
    """The library, its functions declared as in ``gguf.h`` and ``ggml.h``."""
    from llama_cpp._ggml import libggml as ggml

    from onevision.native.llama import silence_llama

    silence_llama()
    handle, index = ctypes.c_void_p, ctypes.c_int64
    declared: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "gguf_init_from_file": (handle, (ctypes.c_char_p, _InitParameters)),
        "gguf_free": (None, (handle,)),
        "gguf_get_data_offset": (ctypes.c_size_t, (handle,)),
        "gguf_get_n_tensors": (index, (handle,)),
        "gguf_get_tensor_name": (ctypes.c_char_p, (handle, index)),
        "gguf_get_tensor_type": (ctypes.c_int, (handle, index)),
        "gguf_get_tensor_ne": (ctypes.POINTER(ctypes.c_int64), (handle, index)),
        "gguf_get_tensor_offset": (ctypes.c_size_t, (handle, index)),
        "gguf_get_tensor_size": (ctypes.c_size_t, (handle, index)),
        "gguf_get_n_kv": (index, (handle,)),
        "gguf_get_key": (ctypes.c_char_p, (handle, index)),
        "gguf_get_kv_type": (ctypes.c_int, (handle, index)),
        "gguf_get_val_u32": (ctypes.c_uint32, (handle, index)),
        "gguf_get_val_f32": (ctypes.c_float, (handle, index)),
        "ggml_type_name": (ctypes.c_char_p, (ctypes.c_int,)),
    }
    for name, (result, arguments) in declared.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml
