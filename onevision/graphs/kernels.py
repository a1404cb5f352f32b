"""The two kinds of product of a tower, in each precision: with a weight, and attention.

In: values of float32. Out: values of float32; what is in bytes, and of which step, stays inside.

Weights have a step per output channel. Activations have one that is found when they are there: one per
tensor (``int8``), or one per token (``int8-token``), which takes a twentieth longer and is not spoilt for
all tokens by one that is large.

Activations are unsigned bytes, weights signed: the one pair for which ONNX Runtime has a fast kernel (411
GOP/s a core with VNNI; unsigned by unsigned: 165). Without VNNI that kernel adds two neighbouring products in
16 bits, with saturation (``vpmaddubsw``), and weights of 8 bits can overflow there. The usual ways out are 7
bits for all weights, which doubles their error, or ``session.x64quantprecision``, which gives up the fast
kernel even where it is exact. Here a column's step is such that no two neighbours can overflow: exact on any
CPU, for 1.35 times the error of weights with 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onevision.graphs.nodes import CONTRIB, Nodes

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

Precision = Literal["fp32", "int8", "int8-token"]

ACTIVATION_LEVELS = 255
#: Of two neighbours in a column together, which rounding makes 128: 255 · 128 < 2 ** 15.
WEIGHT_LEVELS = 127
#: Of keys and values, which come as they come: 255 · 2 · 63 < 2 ** 15.
KEY_LEVELS = 63

_UINT8, _INT8 = 2, 3  # of onnx.TensorProto
_SMALLEST = 1e-30  # a range of zero is no step
#: Zero among the levels of activations with a step per token, of which the kernel takes one for all. What
#: comes out of a GELU is hardly negative.
_TOKEN_ZERO, _GELU_ZERO = 128, 24
#: Scores of a few heads at a time stay in the cache until they are weighed: 15 ms a layer, all heads 18 ms.
_SCORES_BYTES = 9 << 20


@dataclass(frozen=True, eq=False)
class Linear:
    """``x · weight + bias``."""

    name: str
    weight: Array  # [in, out]
    bias: Array | None = None  # [out]
    mean: Array | None = None  # of x, float32 [in]
    after_gelu: bool = False  # so is x


@dataclass(frozen=True)
class Attention:
    """``softmax(q · kᵀ) · v`` of [T, P, hidden] each, head by head; the queries are scaled already."""

    heads: int
    hidden: int
    patches: int


class Kernels(Nodes):
    """Adds the nodes of products."""

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments)
        self._levels: dict[tuple[str, Precision], tuple[str, str, str]] = {}  # of inputs seen already

    def linear(self, x: str, linear: Linear, precision: Precision, output: str | None = None) -> str:
        """A product with a weight, of x float32 [T, P, in]."""
        if precision == "fp32":
            weight = self.constant(f"{linear.name}.weight", linear.weight)
            if linear.bias is None:
                return self.add("MatMul", x, weight, output=output)
            bias = self.constant(f"{linear.name}.bias", linear.bias)
            return self.add("Add", self.add("MatMul", x, weight), bias, output=output)
        weight, steps, bias = self._int8_weight(linear)
        if precision == "int8":
            levels, step, zero = self._tensor_levels(x)
            return self.add(
                "MatMulIntegerToFloat", levels, weight, step, steps, zero, "", bias,
                domain=CONTRIB, output=output,
            )  # fmt: skip
        levels, step, zero = self._token_levels(x, linear)
        product = self.add(
            "MatMulIntegerToFloat", levels, weight, self.number(1), steps, zero, domain=CONTRIB
        )
        if not bias:
            return self.add("Mul", product, step, output=output)
        return self.add("Add", self.add("Mul", product, step), bias, output=output)

    def attention(self, query: str, key: str, value: str, shape: Attention, precision: Precision) -> str:
        """Attention; there is no ``int8-token`` of it."""
        if precision == "fp32":
            return self.add(
                "MultiHeadAttention", query, key, value, domain=CONTRIB, num_heads=shape.heads, scale=1.0
            )
        queries, query_step, zero = self._tensor_levels(query)
        keys, key_step = self._signed_levels(key)
        values, value_step = self._signed_levels(value)
        sides = [
            self._by_head(queries, shape, [0, 2, 1, 3]),  # [T, heads, P, head size]
            self._by_head(keys, shape, [0, 2, 3, 1]),  # [T, heads, head size, P]
            self._by_head(values, shape, [0, 2, 1, 3]),
        ]
        groups = _groups(shape)
        mixed = []
        for q, k, v in zip(*(self._split(side, groups) for side in sides), strict=True):
            scores = self.add("MatMulIntegerToFloat", q, k, query_step, key_step, zero, domain=CONTRIB)
            levels, step = self._shares(scores, shape)
            sums = self.add("MatMulIntegerToFloat", levels, v, self.number(1), value_step, domain=CONTRIB)
            mixed.append(self.add("Mul", sums, step))
        whole = self.add("Concat", *mixed, axis=1) if groups > 1 else mixed[0]
        turned = self.add("Transpose", whole, perm=[0, 2, 1, 3])
        return self.add("Reshape", turned, self.integers(0, 0, shape.hidden))

    def _shares(self, scores: str, shape: Attention) -> tuple[str, str]:
        """Bytes of the softmax [T, heads, P, P], and a step per row: rows differ in their largest share."""
        shares = self.add("Softmax", scores, axis=-1)
        largest = self.add("ReduceMax", shares, self.integers(-1), keepdims=1)
        step = self.add("Mul", largest, self.number(1 / ACTIVATION_LEVELS))
        levels = self.add(
            "QuantizeLinear", shares, step, axis=3, block_size=shape.patches, output_dtype=_UINT8
        )
        return levels, step

    # From floats to bytes.

    def _tensor_levels(self, x: str) -> tuple[str, str, str]:
        """Unsigned bytes, their step, and the byte that is zero."""
        if (x, "int8") not in self._levels:
            levels, step, zero = self.add_many("DynamicQuantizeLinear", x, outputs=3)
            self._levels[x, "int8"] = levels, step, zero
        return self._levels[x, "int8"]

    def _token_levels(self, x: str, linear: Linear) -> tuple[str, str, str]:
        """Unsigned bytes, their steps [T, P, 1], and the byte that is zero."""
        if (x, "int8-token") not in self._levels:
            zero = _GELU_ZERO if linear.after_gelu else _TOKEN_ZERO
            highest, lowest = (
                self.add(op, x, self.integers(-1), keepdims=1) for op in ("ReduceMax", "ReduceMin")
            )
            above = self.add("Mul", highest, self.number(1 / (ACTIVATION_LEVELS - zero)))
            below = self.add("Mul", lowest, self.number(-1 / zero))
            step = self.add("Max", above, below, self.number(_SMALLEST))
            zeros = self.add("Expand", self.byte(zero), self.add("Shape", step))
            levels = self.add("QuantizeLinear", x, step, zeros, axis=2, block_size=len(linear.weight))
            self._levels[x, "int8-token"] = levels, step, self.byte(zero)
        return self._levels[x, "int8-token"]

    def _signed_levels(self, x: str) -> tuple[str, str]:
        """Signed bytes and their step: DynamicQuantizeLinear makes unsigned ones only."""
        highest, lowest = (self.add(op, x, keepdims=0) for op in ("ReduceMax", "ReduceMin"))
        largest = self.add("Max", highest, self.add("Neg", lowest), self.number(_SMALLEST))
        step = self.add("Mul", largest, self.number(1 / KEY_LEVELS))
        return self.add("QuantizeLinear", x, step, output_dtype=_INT8), step

    def _int8_weight(self, linear: Linear) -> tuple[str, str, str]:
        """Bytes, their steps, and the bias with what rounding takes from the mean output; "" for none."""
        weight, steps, bias = (
            f"{linear.name}.{part}" for part in ("weight.int8", "weight.step", "bias.int8")
        )
        if not self.has(weight):
            levels, step = quantise_columns(linear.weight)
            self.constant(weight, levels)
            self.constant(steps, step)
            if linear.bias is not None:
                lost = 0 if linear.mean is None else linear.mean @ (linear.weight - levels * step)
                self.constant(bias, linear.bias + lost)
        return weight, steps, bias if linear.bias is not None else ""

    # Heads.

    def _by_head(self, x: str, shape: Attention, order: list[int]) -> str:
        split = self.add("Reshape", x, self.integers(0, 0, shape.heads, shape.hidden // shape.heads))
        return self.add("Transpose", split, perm=order)

    def _split(self, x: str, groups: int) -> tuple[str, ...]:
        return self.add_many("Split", x, outputs=groups, axis=1, num_outputs=groups) if groups > 1 else (x,)


def quantise_columns(weight: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """A matrix [in, out] as int8 and a step per column: weight ≈ int8 · step."""
    steps = column_steps(weight)
    steps[steps == 0] = 1
    return np.rint(weight / steps).astype(np.int8), steps


def column_steps(weight: Array) -> Array:
    """The step of each column of a matrix [in, out], 0 for one of zeros.

    The two rows of a pair add up only where they have the same sign.
    """
    rows, columns = weight.shape
    even = weight if rows % 2 == 0 else np.concatenate([weight, np.zeros((1, columns), np.float32)])
    pairs = even.reshape(-1, 2, columns)
    above = np.maximum(pairs, 0).sum(axis=1).max(axis=0)
    below = np.minimum(pairs, 0).sum(axis=1).min(axis=0)
    steps: Array = np.maximum(above, -below) / np.float32(WEIGHT_LEVELS)
    return steps


def _groups(shape: Attention) -> int:
    """Into how many equal groups the heads are split, so that the scores of each fit."""
    most = max(1, _SCORES_BYTES // (4 * shape.patches**2))
    return next(n for n in range(1, shape.heads + 1) if not shape.heads % n and shape.heads // n <= most)
