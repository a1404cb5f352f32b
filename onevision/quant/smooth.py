"""SmoothQuant (arXiv 2211.10438): smaller ranges of activations for larger ones of weights.

In: ranges of activations on calibration tiles, and the weights they are multiplied by. Out: a smoothing scale
for each channel, which divides the activation and multiplies the weight's row. The scales of an input go into
what produces it: the gain and bias of the layer norm, or the columns of the values. After a GELU and before
the projector nothing can absorb them; there they are a multiplication of their own, which has to be worth it.

The paper takes s = max|x|^α / max|w|^(1-α) with one α. Here each matmul has the α of the smallest error that
is expected from the scales of activation and weight; no smoothing is among the choices.

The rounding of the weights shifts the mean output, the same for all tokens, and adds up from layer to layer:
in 26 layers it is most of the error. The mean input, needed to correct it (arXiv 1906.04721, section 4.2), is
measured together with the ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onevision.graphs.kernels import ACTIVATION_LEVELS, KEY_LEVELS, column_scales
from onevision.graphs.siglip import Array, EncoderPlan, Siglip, matmuls, modules
from onevision.progress import Advance

_STRENGTHS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)  # α
#: Largest share of the error, in energy, that may remain after a separate multiplication: it costs one or two
#: percent of time.
_WORTH_A_MULTIPLICATION = 0.5
_FLOOR = 1e-4  # smallest range by the largest: a channel that is silent on these tiles may not be on others


@dataclass(frozen=True, eq=False)
class Ranges:
    """Statistics of an activation, float32 [channels] each."""

    low: Array
    high: Array
    mean: Array
    square: Array  # mean of the squares
    doubt: Array  # variance of the mean: that of the tiles' means, divided by their number

    @classmethod
    def of_tiles(cls, low: Array, high: Array, total: Array, squares: Array, patches: int) -> Ranges:
        """From statistics of each tile [T, channels]: extremes, and sums over its patches."""
        means = total / np.float32(patches)
        tiles = len(means)
        doubt = (
            means.var(axis=0, ddof=1, dtype=np.float64).astype(np.float32) / tiles
            if tiles > 1
            else np.zeros_like(means[0])
        )
        square = squares.mean(axis=0) / np.float32(patches)
        return cls(low.min(axis=0), high.max(axis=0), means.mean(axis=0), square, doubt)

    @property
    def common_mean(self) -> Array:
        """The mean to expect of other images: the James-Stein estimator, channel by channel."""
        return self.mean * np.maximum(1 - self.doubt / np.maximum(self.mean**2, 1e-30), 0)

    @property
    def largest(self) -> Array:
        """The largest absolute value."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def less(self, shift: Array) -> Ranges:
        """The ranges after ``shift`` [channels] is subtracted."""
        square = np.maximum(self.square - 2 * shift * self.mean + shift**2, 0)
        return Ranges(self.low - shift, self.high - shift, self.mean - shift, square, self.doubt)


def smooth(siglip: Siglip, ranges: dict[str, Ranges], advance: Advance | None = None) -> EncoderPlan:
    """A plan with all matmuls in int8, and their smoothing scales.

    Args:
        siglip: The encoder with its weights.
        ranges: By matmul, of its input; by ``<attention>.q``, ``.k``, ``.v``, of queries, keys and values.
        advance: Receives the fraction that is done.
    """
    scales, keys = {}, {}
    names = matmuls(siglip.shape)
    for done, name in enumerate(names, 1):
        layer, _, part = name.rpartition(".")
        if part == "attention":
            keys[name] = _balance(ranges[f"{name}.q"], ranges[f"{name}.k"])
        else:
            # A mix of values is never farther from zero than they are, and they are rounded as well.
            seen = ranges[f"{layer}.attention.v" if part == "out_proj" else name]
            weights = [siglip.tensor(f"{module}.weight").T for module in modules(name)]
            most = _WORTH_A_MULTIPLICATION if part in {"fc2", "linear_1", "linear_2"} else 1.0
            scale = _least_error(seen, weights, most)
            if scale is not None:
                scales[name] = scale
        if advance:
            advance(done / len(names))
    means = {name: ranges[name].common_mean for name in names if modules(name)}
    return EncoderPlan(dict.fromkeys(names, "int8"), means, scales, keys)


def _least_error(seen: Ranges, weights: Sequence[Array], most: float) -> Array | None:
    """The best scales [in], or None if more than the share ``most`` of the error remains with them."""
    largest = _above_floor(seen.largest)
    strongest = _above_floor(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0))
    lengths = [np.square(weight).sum(axis=1) for weight in weights]

    def error(scale: Array) -> float:
        activation = _width(seen, scale) / ACTIVATION_LEVELS
        square = float((seen.square / scale**2).sum())
        total = 0.0
        for weight, length in zip(weights, lengths, strict=True):
            columns = column_scales(weight * scale[:, None])
            noise = activation**2 * float((scale**2 * length).sum()) + square * float(
                np.square(columns).sum()
            )
            total += noise / max(float((seen.square * length).sum()), 1e-30)
        return total

    choices = [_normal(largest**alpha / strongest ** (1 - alpha)) for alpha in _STRENGTHS]
    errors = [error(choice) for choice in choices]
    best = int(np.argmin(errors))
    return choices[best] if errors[best] < most * error(np.ones_like(largest)) else None


def _balance(queries: Ranges, keys: Ranges) -> Array:
    """What to subtract from keys, then what to divide them and multiply queries by, float32 [2, channels].

    A vector that is subtracted from all keys changes all scores of a row alike, and the softmax not at all
    (SageAttention, arXiv 2410.02367).
    """
    shift, keys = keys.mean, keys.less(keys.mean)
    wide, narrow = _above_floor(keys.largest), _above_floor(queries.largest)

    def error(scale: Array) -> float:
        query_scale = _width(queries, np.reciprocal(scale)) / ACTIVATION_LEVELS
        key_scale = float((keys.largest / scale).max()) / KEY_LEVELS
        of_queries = query_scale**2 * float((keys.square / scale**2).sum())
        of_keys = key_scale**2 * float((queries.square * scale**2).sum())
        return of_queries + of_keys

    choices = [_normal(wide**beta / narrow ** (1 - beta)) for beta in (0.0, *_STRENGTHS)]
    best = min([*choices, np.ones_like(wide)], key=error)
    return np.stack([shift, best])


def _width(seen: Ranges, scale: Array) -> float:
    """From the lowest to the highest value after scaling, zero included as DynamicQuantizeLinear does."""
    return max(float((seen.high / scale).max()), 0.0) - min(float((seen.low / scale).min()), 0.0)


def _above_floor(sizes: Array) -> Array:
    floor = max(float(sizes.max()) * _FLOOR, 1e-30)
    return sizes.clip(floor)


def _normal(scale: Array) -> Array:
    """The scales with a geometric mean of 1, so that nothing becomes very large or small."""
    normal: Array = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return normal
