"""Tensors of safetensors files: known by the headers, and read one at a time. No file stays open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs"
_EXPONENTS = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}  # bits of the exponent
_AT_A_TIME = 1 << 20  # values: temporaries stay in the cache


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, as the header of its file tells."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> npt.NDArray[Any]:
        """The values in their stored type: float32, float16 or ml_dtypes' bfloat16.

        Raises:
            CheckpointError: The file has changed since its header was read, or values are not finite.
        """
        import ml_dtypes  # noqa: F401 (gives NumPy bfloat16)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, framework="np") as file:
                values: npt.NDArray[Any] = file.get_tensor(self.name)
        except (OSError, SafetensorError) as error:
            raise damaged(self.file, error) from error
        if not _is_finite(values):
            raise CheckpointError(
                f"{self.file}: {self.name} has values that are not finite",
                hint="training diverged, or the file is damaged: take an earlier checkpoint",
            )
        return values


def read_header(path: Path) -> list[StoredTensor]:
    """All tensors of a file.

    Raises:
        CheckpointError: The file is damaged, or a Git LFS pointer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as start:
            is_pointer = start.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            hint = "run `git lfs pull` in the folder, or fetch the file again"
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights", hint=hint)
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return [
                StoredTensor(path, name, tuple(part.get_shape()), part.get_dtype())
                for name, part in parts.items()
            ]
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read."""
    if isinstance(error, OSError):
        return CheckpointError(f"cannot read {path}: {error.strerror or error}")
    reason = str(error).removeprefix("Error while deserializing header: ")
    return CheckpointError(f"{path} is truncated or corrupt: {reason}", hint=f"fetch {path.name} again")


def _is_finite(values: npt.NDArray[Any]) -> bool:
    """Whether no exponent has all bits set; on the bits, which is faster than on bfloat16."""
    if values.dtype.name not in _EXPONENTS:
        return bool(np.isfinite(values.astype(np.float32)).all())
    bits: type[np.unsignedinteger[Any]] = np.uint32 if values.itemsize == 4 else np.uint16
    mask = bits(_EXPONENTS[values.dtype.name])
    flat = values.reshape(-1).view(bits)
    return not any(
        ((flat[start : start + _AT_A_TIME] & mask) == mask).any() for start in range(0, len(flat), _AT_A_TIME)
    )
