"""The two kinds of matmul in a transformer, in each precision: with a weight, and attention.

In: float values. Out: float values; quantized values and their scales stay inside.

Weights have a scale per output channel. Activations have scales that are computed at run time: one per tensor
(``int8``), or one per token (``int8-token``), which takes a twentieth longer, and is better where some tokens
are much larger than others.

Activations are uint8, weights int8: the one pair for which ONNX Runtime has a fast kernel (411 GOP/s a core
with VNNI; uint8 by uint8: 165). Without VNNI that kernel adds two neighboring products in 16 bits, with
saturation (``vpmaddubsw``), and weights of 8 bits can overflow there. The usual ways out are 7 bits for all
weights, which doubles their error, or ``session.x64quantprecision``, which gives up the fast kernel even
where it is exact. Here a column's scale is such that no two neighbors can overflow: exact on any CPU, for
1.35 times the error of weights with 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onevision.graphs.nodes import CONTRIB, Nodes

Array = npt.NDArray[np.float32]

MatmulPrecision = Literal["fp32", "int8", "int8-token"]  # fp32: not quantized, in the graph's float type

ACTIVATION_LEVELS = 255
#: Largest sum of two neighbors in a column, which rounding makes 128: 255 · 128 < 2 ** 15.
WEIGHT_LEVELS = 127
#: Largest key or value; these are not paired: 255 · 2 · 63 < 2 ** 15.
KEY_LEVELS = 63

_UINT8, _INT8 = 2, 3  # of onnx.TensorProto
_SMALLEST = 1e-30  # a scale must not be zero
#: Zero points of activations with a scale per token; the kernel takes one for all tokens. The output of a
#: GELU is hardly negative.
_TOKEN_ZERO, _GELU_ZERO = 128, 24
#: Scores of a few heads at a time stay in the cache until they are used: 15 ms a layer, all heads 18 ms.
_SCORES_BYTES = 9 << 20


@dataclass(frozen=True, eq=False)
class Linear:
    """``x · weight + bias``."""

    name: str
    weight: npt.NDArray[Any]  # [in, out], float32 or float16
    bias: npt.NDArray[Any] | None = None  # [out]
    mean: Array | None = None  # of x, float32 [in]
    after_gelu: bool = False  # x is the output of a GELU


@dataclass(frozen=True)
class Attention:
    """``softmax(scale · q · kᵀ) · v`` of [T, P, hidden] each, head by head."""

    heads: int
    hidden: int
    patches: int

    @property
    def scale(self) -> float:
        """Factor of the scores: head size to the power of -1/2."""
        return float((self.hidden // self.heads) ** -0.5)


class Kernels(Nodes):
    """Adds the nodes of matmuls."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments)
        self._quantized: dict[tuple[str, MatmulPrecision], tuple[str, str, str]] = {}  # by input

    def linear(self, x: str, linear: Linear, precision: MatmulPrecision, output: str | None = None) -> str:
        """A matmul with a weight, of x float [T, P, in]."""
        if precision == "fp32":
            weight = self.constant(f"{linear.name}.weight", linear.weight)
            if linear.bias is None:
                return self.add("MatMul", x, weight, output=output)
            bias = self.constant(f"{linear.name}.bias", linear.bias)
            return self.add("Add", self.add("MatMul", x, weight), bias, output=output)
        weight, scales, bias = self._int8_weight(linear)
        if precision == "int8":
            levels, scale, zero = self._quantize_tensor(x)
            return self.add(
                "MatMulIntegerToFloat", levels, weight, scale, scales, zero, "", bias,
                domain=CONTRIB, output=output,
            )  # fmt: skip
        levels, scale, zero = self._quantize_tokens(x, linear)
        product = self.add(
            "MatMulIntegerToFloat", levels, weight, self.number(1), scales, zero, domain=CONTRIB
        )
        if not bias:
            return self.add("Mul", product, scale, output=output)
        return self.add("Add", self.add("Mul", product, scale), bias, output=output)

    def attention(
        self, query: str, key: str, value: str, shape: Attention, precision: MatmulPrecision
    ) -> str:
        """Attention; there is no ``int8-token`` of it."""
        if precision == "fp32":
            return self.add(
                "MultiHeadAttention", query, key, value,
                domain=CONTRIB, num_heads=shape.heads, scale=shape.scale,
            )  # fmt: skip
        queries, query_scale, zero = self._quantize_tensor(query)
        query_scale = self.add("Mul", query_scale, self.number(shape.scale))
        keys, key_scale = self._quantize_signed(key)
        values, value_scale = self._quantize_signed(value)
        sides = [
            self._by_head(queries, shape, [0, 2, 1, 3]),  # [T, heads, P, head size]
            self._by_head(keys, shape, [0, 2, 3, 1]),  # [T, heads, head size, P]
            self._by_head(values, shape, [0, 2, 1, 3]),
        ]
        groups = _groups(shape)
        mixed = []
        for q, k, v in zip(*(self._split(side, groups) for side in sides), strict=True):
            scores = self.add("MatMulIntegerToFloat", q, k, query_scale, key_scale, zero, domain=CONTRIB)
            levels, scale = self._quantize_shares(scores, shape)
            sums = self.add("MatMulIntegerToFloat", levels, v, self.number(1), value_scale, domain=CONTRIB)
            mixed.append(self.add("Mul", sums, scale))
        whole = self.add("Concat", *mixed, axis=1) if groups > 1 else mixed[0]
        turned = self.add("Transpose", whole, perm=[0, 2, 1, 3])
        return self.add("Reshape", turned, self.integers(0, 0, shape.hidden))

    def _quantize_shares(self, scores: str, shape: Attention) -> tuple[str, str]:
        """The softmax as uint8 [T, heads, P, P], with a scale per row: rows differ in their largest share."""
        shares = self.add("Softmax", scores, axis=-1)
        largest = self.add("ReduceMax", shares, self.integers(-1), keepdims=1)
        scale = self.add("Mul", largest, self.number(1 / ACTIVATION_LEVELS))
        levels = self.add(
            "QuantizeLinear", shares, scale, axis=3, block_size=shape.patches, output_dtype=_UINT8
        )
        return levels, scale

    def _quantize_tensor(self, x: str) -> tuple[str, str, str]:
        """uint8 values, their scale, and their zero point."""
        if (x, "int8") not in self._quantized:
            levels, scale, zero = self.add_many("DynamicQuantizeLinear", x, outputs=3)
            self._quantized[x, "int8"] = levels, scale, zero
        return self._quantized[x, "int8"]

    def _quantize_tokens(self, x: str, linear: Linear) -> tuple[str, str, str]:
        """uint8 values, their scales [T, P, 1], and their zero point."""
        if (x, "int8-token") not in self._quantized:
            zero = _GELU_ZERO if linear.after_gelu else _TOKEN_ZERO
            highest, lowest = (
                self.add(op, x, self.integers(-1), keepdims=1) for op in ("ReduceMax", "ReduceMin")
            )
            above = self.add("Mul", highest, self.number(1 / (ACTIVATION_LEVELS - zero)))
            below = self.add("Mul", lowest, self.number(-1 / zero))
            scale = self.add("Max", above, below, self.number(_SMALLEST))
            zeros = self.add("Expand", self.byte(zero), self.add("Shape", scale))
            levels = self.add("QuantizeLinear", x, scale, zeros, axis=2, block_size=len(linear.weight))
            self._quantized[x, "int8-token"] = levels, scale, self.byte(zero)
        return self._quantized[x, "int8-token"]

    def _quantize_signed(self, x: str) -> tuple[str, str]:
        """int8 values and their scale; DynamicQuantizeLinear makes uint8 only."""
        highest, lowest = (self.add(op, x, keepdims=0) for op in ("ReduceMax", "ReduceMin"))
        largest = self.add("Max", highest, self.add("Neg", lowest), self.number(_SMALLEST))
        scale = self.add("Mul", largest, self.number(1 / KEY_LEVELS))
        return self.add("QuantizeLinear", x, scale, output_dtype=_INT8), scale

    def _int8_weight(self, linear: Linear) -> tuple[str, str, str]:
        """int8 weight, its scales, and a bias that corrects the rounding at the mean input; "" for none."""
        weight, scales, bias = (
            f"{linear.name}.{part}" for part in ("weight.int8", "weight.scale", "bias.int8")
        )
        if not self.has(weight):
            levels, scale = quantize_columns(linear.weight)
            self.constant(weight, levels)
            self.constant(scales, scale)
            if linear.bias is not None:
                lost = 0 if linear.mean is None else linear.mean @ (linear.weight - levels * scale)
                self.constant(bias, linear.bias + lost)
        return weight, scales, bias if linear.bias is not None else ""

    def _by_head(self, x: str, shape: Attention, order: list[int]) -> str:
        split = self.add("Reshape", x, self.integers(0, 0, shape.heads, shape.hidden // shape.heads))
        return self.add("Transpose", split, perm=order)

    def _split(self, x: str, groups: int) -> tuple[str, ...]:
        return self.add_many("Split", x, outputs=groups, axis=1, num_outputs=groups) if groups > 1 else (x,)


def quantize_columns(weight: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Quantize a matrix [in, out] to int8 with a scale per column: weight ≈ int8 · scale."""
    scales = column_scales(weight)
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales


def column_scales(weight: Array) -> Array:
    """The scale of each column of a matrix [in, out], 0 for a column of zeros.

    The two rows of a pair add up only where they have the same sign.
    """
    rows, columns = weight.shape
    even = weight if rows % 2 == 0 else np.concatenate([weight, np.zeros((1, columns), np.float32)])
    pairs = even.reshape(-1, 2, columns)
    above = np.maximum(pairs, 0).sum(axis=1).max(axis=0)
    below = np.minimum(pairs, 0).sum(axis=1).min(axis=0)
    scales: Array = np.maximum(above, -below) / np.float32(WEIGHT_LEVELS)
    return scales


def _groups(shape: Attention) -> int:
    """Number of equal groups of heads, such that the scores of a group fit in the cache."""
    most = max(1, _SCORES_BYTES // (4 * shape.patches**2))
    return next(n for n in range(1, shape.heads + 1) if not shape.heads % n and shape.heads // n <= most)
