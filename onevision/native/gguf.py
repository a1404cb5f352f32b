"""The one reader of GGUF files: names, shapes, types and numbers, and tensors as float32.

The file is parsed and dequantized by ggml, the library under llama.cpp, and mapped: only the rows that are
asked for are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onevision.errors import BundleError
from onevision.native.ggml import GgufInitParams, dequantizer, library

_HINT = "copy or export the bundle again"
_UINT32, _FLOAT32 = 4, 6  # gguf_type


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a GGUF file.

    Attributes:
        name: As in the file.
        type: GGML's name in lower case: ``f16``, ``q8_0``.
        shape: Outermost dimension first, as in torch: a matrix is [out, in].
        bytes: Size in the file.
        offset: From the start of the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    offset: int


class GgufFile:
    """An open GGUF file.

    Attributes:
        tensors: By name, in the order of the file.

    Args:
        path: The file.

    Raises:
        BundleError: It cannot be read, or is not a GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ggml = library()
        # Opened here first: ggml would say only in its log why it cannot.
        try:
            self._data = np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror or error}", hint=_HINT) from error
        except ValueError as error:  # an empty file
            raise BundleError(f"{path} is damaged, or not a GGUF file", hint=_HINT) from error
        handle = ggml.gguf_init_from_file(os.fsencode(path), GgufInitParams(no_alloc=True, context=None))
        if not handle:
            raise BundleError(f"{path} is damaged, or not a GGUF file", hint=_HINT)
        try:
            self.tensors = {tensor.name: tensor for tensor in _tensors(handle)}
            self._numbers = dict(_numbers(handle))
        finally:
            ggml.gguf_free(handle)
        end = max((tensor.offset + tensor.bytes for tensor in self.tensors.values()), default=0)
        if end > len(self._data):
            raise BundleError(f"{path} is cut off", hint=_HINT)

    def number(self, key: str) -> float:
        """A number of the file's metadata (uint32 or float32).

        Raises:
            BundleError: It is missing.
        """
        if key not in self._numbers:
            raise BundleError(f"{self.path} has no {key}", hint=_HINT)
        return self._numbers[key]

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A whole tensor, float32.

        Raises:
            BundleError: It is missing, or of a type that ggml cannot dequantize.
        """
        tensor = self._find(name)
        return self._floats(tensor, tensor.offset, tensor.shape)

    def rows(self, name: str, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Some rows of a matrix, float32 [len(ids), columns].

        Raises:
            BundleError: See :meth:`tensor`.
            IndexError: No such row.
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

    def _find(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise BundleError(f"{self.path} has no tensor {name}", hint=_HINT)
        return self.tensors[name]

    def _floats(self, tensor: TensorInfo, offset: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        count = int(np.prod(shape))
        if tensor.type == "f32":
            return np.frombuffer(self._data, np.float32, count, offset).reshape(shape).copy()
        dequantize = dequantizer(tensor.type)
        if dequantize is None:
            raise BundleError(
                f"{self.path} has weights of type {tensor.type}, which cannot be read", hint=_HINT
            )
        out = np.empty(shape, np.float32)
        dequantize(self._data.ctypes.data + offset, out.ctypes.data, count)
        return out


def _tensors(handle: int) -> Iterator[TensorInfo]:
    ggml = library()
    start = ggml.gguf_get_data_offset(handle)
    for index in range(ggml.gguf_get_n_tensors(handle)):
        # ggml has the innermost dimension first, and 1 for those that a tensor lacks.
        sizes = ggml.gguf_get_tensor_ne(handle, index)[:4]
        yield TensorInfo(
            name=ggml.gguf_get_tensor_name(handle, index).decode(),
            type=ggml.ggml_type_name(ggml.gguf_get_tensor_type(handle, index)).decode().lower(),
            shape=tuple(sizes[: max(at + 1 for at, size in enumerate(sizes) if size > 1 or at == 0)][::-1]),
            bytes=ggml.gguf_get_tensor_size(handle, index),
            offset=start + ggml.gguf_get_tensor_offset(handle, index),
        )


def _numbers(handle: int) -> Iterator[tuple[str, float]]:
    ggml = library()
    readers = {_UINT32: ggml.gguf_get_val_u32, _FLOAT32: ggml.gguf_get_val_f32}
    for index in range(ggml.gguf_get_n_kv(handle)):
        if reader := readers.get(ggml.gguf_get_kv_type(handle, index)):
            yield ggml.gguf_get_key(handle, index).decode(), reader(handle, index)
