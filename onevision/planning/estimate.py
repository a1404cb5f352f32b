"""Estimate of a speed profile where none was measured: precisions of a bundle, and this machine's speed.

In: a model's shape, the precisions of its parts, and threads. Out: a
:class:`~onevision.planning.speed.SpeedProfile`, right to about a factor of 2 on an idle machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from onevision.bundle import BACKBONE, PREFILL, VISION, Manifest
from onevision.native.device import cpu_flags, default_threads
from onevision.planning.cost import Shape
from onevision.planning.speed import PrefillSpeed, SpeedProfile

#: Speed of each kind of work as a multiple of the fp32 matmuls of :func:`core_rate`, measured on Zen 4 at the
#: 0.5b's shape: docs/benchmarks.md has the times.
_ENCODER = {"fp32": 0.8, "fp16": 0.8, "int8": 2.4}
_ONNX = {"fp32": 0.8, "int8": 2.3}
_LLAMA, _LLAMA_FLOATS = 1.3, 0.6
_ONNX_ATTENTION, _LLAMA_ATTENTION = 0.7, 0.22
#: Instructions that multiply int8; without them int8 is about half as fast.
_DOT_PRODUCTS = {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"}
#: Seconds for a question's tokens and the first sample, to tile a million pixels, and to decode them.
_FIXED, _IMAGE, _VIDEO = 0.001, 0.1, 0.001


@dataclass(frozen=True)
class Precisions:
    """Precisions of encoder, backbone and prefill graph; by default those that ``export`` chooses."""

    vision: str = "int8"
    backbone: str = "q8_0"
    prefill: str | None = "int8"

    @classmethod
    def of(cls, manifest: Manifest) -> Precisions:
        """Precisions of a bundle."""
        known = {name: info.precision for name, info in manifest.files.items()}
        return cls(known.get(VISION) or "fp32", known.get(BACKBONE) or "f16", known.get(PREFILL))


def estimate_profile(shape: Shape, precisions: Precisions, threads: int | None) -> SpeedProfile:
    """Speed profile of a model on the CPU, without running it.

    Args:
        shape: Of the model.
        precisions: Of its parts.
        threads: CPU threads; None for all cores.
    """
    rate = core_rate() * min(threads or default_threads(), default_threads())
    int8 = 1.0 if _DOT_PRODUCTS & set(cpu_flags()) else 0.5
    llama = _LLAMA_FLOATS if precisions.backbone in ("f32", "f16", "bf16") else _LLAMA * int8
    prefill = {"llama": _prefill(shape, rate * llama, rate * _LLAMA_ATTENTION)}
    if precisions.prefill is not None:
        graph = _ONNX[precisions.prefill] * (int8 if precisions.prefill == "int8" else 1.0)
        prefill["onnx"] = _prefill(shape, rate * graph, rate * _ONNX_ATTENTION)
    encoder = _ENCODER[precisions.vision] * (int8 if precisions.vision == "int8" else 1.0)
    return SpeedProfile(_FIXED, _IMAGE, _VIDEO, shape.encode_flops(1) / (rate * encoder), prefill)


def _prefill(shape: Shape, matmuls: float, attention: float) -> PrefillSpeed:
    """Speed of a prefill with these rates, operations a second; the curve of :meth:`Shape.prefill_flops`."""
    backbone = shape.backbone
    square = 2 * backbone.layers * backbone.hidden / attention
    linear = 2 * backbone.layers * shape.layer_weights / matmuls
    return PrefillSpeed(2 * backbone.hidden * backbone.vocab_size / matmuls, linear + square, square)


def core_rate() -> float:
    """Operations a second of fp32 matmuls on one core, in 0.1 s.

    The matmuls are too small for NumPy to use more threads, and the fastest of many is taken: other programs
    that keep the cores busy hardly change it.
    """
    side, count = 48, 200
    matrices, matrix = np.ones((count, side, side), np.float32), np.ones((side, side), np.float32)
    best, begin = np.inf, time.perf_counter()
    while (started := time.perf_counter()) < begin + 0.1:
        np.matmul(matrices, matrix)
        best = min(best, time.perf_counter() - started)
    return float(2 * count * side**3 / best)
