"""What a GGUF file really holds: types, bits per weight, and where a precision could not be kept.

In: a GGUF file and the recipe it was written by. Out: a :class:`BackboneReport`.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, BinaryIO, Literal

from onevision.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.native.quantize import Recipe

#: Names of :data:`onevision.native.quantize.RECIPES`.
BackbonePrecision = Literal[
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl",
    "q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k",
    "q4_0-pure", "iq4_nl-pure", "q4_0-attn-q8_0", "iq4_nl-attn-q8_0",
]  # fmt: skip

_STRING, _ARRAY = 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


@dataclass(frozen=True)
class BackboneReport:
    """A written GGUF file. Types are GGML's names in lower case."""

    precision: BackbonePrecision
    bits_per_weight: float  # all tensors, norms and biases included
    bytes: int  # of the file
    tensor_types: dict[str, int]  # tensors by type
    fallbacks: dict[str, tuple[str, ...]]  # tensor name, layers as *, to the types it got instead

    @property
    def summary(self) -> str:
        """One line for the screen."""
        line = f"{self.precision}: {self.bits_per_weight:.2f} bits per weight, {self.bytes / 1e6:,.0f} MB"
        if not self.fallbacks:
            return line
        names = [name.removeprefix("blk.*.").removesuffix(".weight") for name in self.fallbacks]
        types = sorted({kind for kinds in self.fallbacks.values() for kind in kinds})
        line += f"; {', '.join(types)} instead for {', '.join(names)}: rows do not divide into its blocks"
        if "_k" in self.precision and len(names) > 1:
            line += "; q4_0 is faster here"
        return line


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a GGUF header describes it; ``shape`` is outermost first, as torch has it."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int


def report(path: Path, recipe: Recipe) -> BackboneReport:
    """Read back what was written to ``path`` by a recipe."""
    tensors = read_tensors(path)
    fallbacks: dict[str, set[str]] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1 and not recipe.chooses(tensor.type, tensor.name):
            fallbacks.setdefault(re.sub(r"\.\d+\.", ".*.", tensor.name), set()).add(tensor.type)
    return BackboneReport(
        precision=recipe.name,
        bits_per_weight=8 * sum(t.bytes for t in tensors) / sum(prod(t.shape) for t in tensors),
        bytes=path.stat().st_size,
        tensor_types=dict(Counter(tensor.type for tensor in tensors)),
        fallbacks={name: tuple(sorted(kinds)) for name, kinds in sorted(fallbacks.items())},
    )


def read_tensors(path: Path) -> list[TensorInfo]:
    """The tensors of a GGUF file, from its header.

    The gguf package's reader makes an array of every string: 8 s and 0.5 GB for Qwen2's vocabulary.
    Format: ggml, ``docs/gguf.md``.

    Raises:
        ExportError: No GGUF file, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ExportError(f"{path} is not a GGUF file")
            return _read_header(file)
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ExportError(f"{path} is damaged: its header cannot be read") from error
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error


def _read_header(file: BinaryIO) -> list[TensorInfo]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    _number(file, "I")  # version
    tensors, values = _number(file, "Q"), _number(file, "Q")
    for _ in range(values):
        _text(file)
        _skip_value(file, _number(file, "I"))
    infos = []
    for _ in range(tensors):
        name = _text(file)
        shape = tuple(_number(file, "Q") for _ in range(_number(file, "I")))[::-1]
        kind = GGMLQuantizationType(_number(file, "I"))
        _number(file, "Q")  # offset
        block, size = GGML_QUANT_SIZES[kind]
        infos.append(TensorInfo(name, kind.name.lower(), shape, prod(shape) // block * size))
    return infos


def _number(file: BinaryIO, kind: str) -> int:
    """One little-endian number; ``kind`` is a letter of :mod:`struct`."""
    value: int = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]
    return value


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode("utf-8")


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        file.read(_number(file, "Q"))
    elif kind == _ARRAY:
        item, count = _number(file, "I"), _number(file, "Q")
        if item in _SCALAR_BYTES:
            file.seek(count * _SCALAR_BYTES[item], 1)
        else:
            for _ in range(count):
                _skip_value(file, item)
    else:
        file.seek(_SCALAR_BYTES[kind], 1)
