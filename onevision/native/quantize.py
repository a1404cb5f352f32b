"""Quantization of a GGUF file by llama.cpp, after a recipe.

In: a GGUF file of floats, a recipe, optionally an importance matrix. Out: a quantized GGUF file, and a report
of its types and bits per weight. llama.cpp holds some rows of one tensor at a time.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onevision.errors import ExportError
from onevision.files import whole_file
from onevision.native.gguf import GgufFile, TensorInfo
from onevision.native.llama import call_apart, last_llama_error, llama_log
from onevision.precisions import BackbonePrecision
from onevision.progress import Advance

#: llama.cpp's mixes of types: their ``llama_ftype``, which is also written to a file's metadata.
FILE_TYPES: dict[str, int] = {
    "f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9, "iq4_nl": 25,
    "q2_k": 10, "q3_k_m": 12, "q4_k_s": 14, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18,
}  # fmt: skip

#: Bytes per weight of the float types, and of q8_0, the widest of the others.
FLOAT_BYTES: dict[str, int] = {"f32": 4, "f16": 2, "bf16": 2}
QUANTIZED_BYTES = 8.5 / 8

#: Tensor names of each field of :class:`Recipe`. llama.cpp reads them as C++ regular expressions.
_TENSORS = {
    "embedding": r"^(token_embd|output)\.weight$",
    "attention": r"\.attn_(q|k|v|output)\.weight$",
    "ffn": r"\.ffn_(gate|up|down)\.weight$",
}
#: With an importance matrix, llama.cpp gives the first eighth of the ffn_down matrices the type with an
#: offset: without one, they "can go crazy" (``llama_tensor_get_type_impl``).
_WITH_OFFSET = {"q4_0": "q4_1", "q5_0": "q5_1"}

#: Rows that llama.cpp holds at a time while it quantizes, in bytes.
_QUANTIZE_BUFFER = 256 << 20
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")  # "[  12/ 291] blk.0.attn_k.weight …" in llama.cpp's log
_RESULT = re.compile(r"quant size .*\((\d+\.\d+) BPW\)")


@dataclass(frozen=True)
class Recipe:
    """Types of a GGUF file's matrices: a mix of llama.cpp's, and overrides.

    Types are GGML's names in lower case. None leaves the choice to the mix. Rows that do not divide into a
    type's blocks get a larger one, see :class:`BackboneReport`.
    """

    name: BackbonePrecision
    mix: str  # of FILE_TYPES
    embedding: str | None = None  # the token table, and the head where it is a matrix of its own
    attention: str | None = None  # q, k, v and output
    ffn: str | None = None  # gate, up and down

    @property
    def is_float(self) -> bool:
        """Whether all types are floats."""
        return self.mix in FLOAT_BYTES

    @property
    def overrides(self) -> dict[str, str]:
        """Types that replace the mix's, by regular expression of tensor names."""
        fields = {name: getattr(self, name) for name in _TENSORS}
        return {_TENSORS[name]: kind for name, kind in fields.items() if kind is not None}

    def chooses(self, kind: str, tensor: str) -> bool:
        """Whether the recipe chose this type for a matrix.

        The mixes add k-quants to their own type: q6_k for the head, more bits for some layers. Any other
        type is llama.cpp's fallback for rows that do not divide into blocks: of 256 for k-quants, of 32
        for the rest.
        """
        for pattern, wanted in self.overrides.items():
            if re.search(pattern, tensor):
                return kind == wanted
        if kind in (self.mix, _WITH_OFFSET.get(self.mix)):
            return True
        return kind.endswith("_k") and not self.is_float and self.mix != "q8_0"


#: The recipes by name, from the largest to the smallest file of a shape whose rows divide into all blocks.
#: The types that a CPU multiplies fast, with weights repacked for AVX2, AVX-512 and NEON, are q8_0, q4_0 and
#: iq4_nl: the mixes made here keep to them. Attention is a tenth of the 0.5b's weights, the token table more
#: than a quarter.
RECIPES: dict[BackbonePrecision, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("f32", "f32"),
        Recipe("f16", "f16"),
        Recipe("bf16", "bf16"),
        Recipe("q8_0", "q8_0"),
        Recipe("q6_k", "q6_k"),
        Recipe("q5_1", "q5_1"),
        Recipe("q5_k_m", "q5_k_m"),
        Recipe("q5_0", "q5_0"),
        Recipe("iq4_nl-attn-q8_0", "iq4_nl", attention="q8_0", ffn="iq4_nl"),
        Recipe("q4_0-attn-q8_0", "q4_0", attention="q8_0", ffn="q4_0"),
        Recipe("q4_1", "q4_1"),
        Recipe("q4_k_m", "q4_k_m"),
        Recipe("q4_k_s", "q4_k_s"),
        Recipe("iq4_nl", "iq4_nl"),
        Recipe("q4_0", "q4_0"),
        Recipe("iq4_nl-pure", "iq4_nl", embedding="iq4_nl", attention="iq4_nl", ffn="iq4_nl"),
        Recipe("q4_0-pure", "q4_0", embedding="q4_0", attention="q4_0", ffn="q4_0"),
        Recipe("q3_k_m", "q3_k_m"),
        Recipe("q2_k", "q2_k"),
    )
}


class Importance(Protocol):
    """An importance matrix: how much each input of a weight matrix matters."""

    def means(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """Mean square of each input, float32 [columns], by name of the matrix."""
        ...

    def check(self, tensors: Iterable[TensorInfo]) -> None:
        """Raise an InputError if it was made for another model."""
        ...


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


def report(path: Path, recipe: Recipe) -> BackboneReport:
    """Types and bits per weight of a written file, and its deviations from a recipe."""
    return report_of(tuple(GgufFile(path).tensors.values()), recipe, path.stat().st_size)


def report_of(tensors: Sequence[TensorInfo], recipe: Recipe, size: int) -> BackboneReport:
    """:func:`report` of a file of ``size`` bytes with these tensors."""
    fallbacks: dict[str, set[str]] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1 and not recipe.chooses(tensor.type, tensor.name):
            fallbacks.setdefault(re.sub(r"\.\d+\.", ".*.", tensor.name), set()).add(tensor.type)
    return BackboneReport(
        precision=recipe.name,
        bits_per_weight=8 * sum(t.bytes for t in tensors) / sum(prod(t.shape) for t in tensors),
        bytes=size,
        tensor_types=dict(Counter(tensor.type for tensor in tensors)),
        fallbacks={name: tuple(sorted(kinds)) for name, kinds in sorted(fallbacks.items())},
    )


def quantize_gguf(
    source: Path,
    path: Path,
    recipe: Recipe,
    *,
    imatrix: Importance | None = None,
    threads: int | None = None,
    advance: Advance | None = None,
) -> BackboneReport:
    """Quantize a GGUF file of floats with llama.cpp.

    Args:
        source: GGUF file in f32, f16 or bf16.
        path: The file to write.
        recipe: Its types.
        imatrix: An importance matrix.
        threads: Threads to use; None: one per core.
        advance: Receiver of the fraction that is done.

    Raises:
        ExportError: No disk space, a source that is quantized already, or an error of llama.cpp.
        BundleError: The source is damaged.
        InputError: An importance matrix of another model.
    """

    def follow(line: str) -> None:
        if advance is not None and (match := _STEP.match(line)):
            advance(int(match[1]) / int(match[2]))

    with whole_file(path, _expected_bytes(source, recipe)) as part, llama_log(follow):
        _quantize(source, part, recipe, _options(source, recipe, imatrix, threads))
    return report(path, recipe)


def predicted_bits(source: Path, recipe: Recipe, *, imatrix: Importance | None = None) -> float:
    """Bits per weight of :func:`quantize_gguf`'s result, fallbacks included, to two decimals.

    A dry run of llama.cpp, which takes a fraction of a second.

    Raises:
        ExportError, InputError: See :func:`quantize_gguf`.
    """
    bits: list[float] = []

    def follow(line: str) -> None:
        if match := _RESULT.search(line):
            bits.append(float(match[1]))

    options = _options(source, recipe, imatrix, threads=1)
    options.dry_run = True
    with llama_log(follow):
        _quantize(source, os.devnull, recipe, options)
    return bits[0]


def _quantize(source: Path, path: Path | str, recipe: Recipe, options: Any) -> None:  # noqa: ANN401
    import llama_cpp

    files = [str(file).encode("utf-8") for file in (source, path)]
    if call_apart(llama_cpp.llama_model_quantize, *files, options) != 0:
        raise ExportError(
            f"llama.cpp could not quantize to {recipe.name}: {last_llama_error() or 'no reason given'}"
        )


def _options(source: Path, recipe: Recipe, imatrix: Importance | None, threads: int | None) -> Any:  # noqa: ANN401
    """``llama_model_quantize_params``, which keeps alive what it points to."""
    import llama_cpp as api

    tensors = GgufFile(source).tensors.values()
    if quantized := {tensor.type for tensor in tensors} - FLOAT_BYTES.keys():
        raise ExportError(
            f"{source.name} is already quantized ({', '.join(sorted(quantized))})",
            hint="quantize from f32, f16 or bf16: rounding twice costs quality",
        )
    options = api.llama_model_quantize_default_params()
    options.ftype = FILE_TYPES[recipe.mix]
    options.nthread = threads or os.cpu_count() or 1
    options.max_buf_size = _QUANTIZE_BUFFER
    # Not output_tensor_type and token_embedding_type: llama.cpp sees to rows that do not divide into blocks
    # only where an override or the mix chose the type, and aborts the process otherwise.
    if recipe.overrides:
        overrides = [
            api.llama_model_tensor_override(pattern.encode(), getattr(api, f"GGML_TYPE_{kind.upper()}"))
            for pattern, kind in recipe.overrides.items()
        ]
        end = api.llama_model_tensor_override()
        options.tt_overrides = (api.llama_model_tensor_override * (len(overrides) + 1))(*overrides, end)
    if imatrix is not None:
        imatrix.check(tensors)
        means = [
            api.llama_model_imatrix_data(
                name.encode(), (ctypes.c_float * len(mean)).from_buffer_copy(mean.tobytes()), len(mean)
            )
            for name, mean in imatrix.means().items()
        ]
        options.imatrix = (api.llama_model_imatrix_data * (len(means) + 1))(
            *means, api.llama_model_imatrix_data()
        )
    return options


def _expected_bytes(source: Path, recipe: Recipe) -> int:
    """Bytes to expect of the file, fallbacks included."""
    tensors = GgufFile(source).tensors.values()
    weights = sum(prod(tensor.shape) for tensor in tensors)
    metadata = source.stat().st_size - sum(tensor.bytes for tensor in tensors)
    return metadata + int(weights * FLOAT_BYTES.get(recipe.mix, QUANTIZED_BYTES))
