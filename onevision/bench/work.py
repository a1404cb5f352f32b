"""Least work of each stage, from the model's shape, and its share of the machine's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from onevision.bench.matmul import Arithmetic
from onevision.bench.result import Counts, Rates, Work
from onevision.bundle import BACKBONE, PREFILL, PREFILL_DATA, VISION, Manifest
from onevision.planning.cost import Shape
from onevision.runtime.prefill.graph import CHUNK
from onevision.runtime.prefill.policy import choose_backend

_LLAMA_CHUNK = 512  # tokens of a prompt that llama.cpp multiplies with each weight it reads


def work(manifest: Manifest, counts: Counts, calls: int | None = None, *, place: str) -> dict[str, Work]:
    """Operations and bytes of the stages that take the time, for one answer.

    Bytes are the weights, each time they are read, and the keys and values before a decoded token; what stays
    in caches is not counted.

    Args:
        manifest: Of the bundle.
        counts: Of the answer.
        calls: Of the encoder: on a CPU one per tile, and equal tiles share one. None: no two are equal.
        place: ``cpu`` or ``cuda``.
    """
    shape, files = Shape.of(manifest), manifest.files
    weights = shape.backbone_weights * manifest.backbone.bits_per_weight / 8
    backbone = _arithmetic(files[BACKBONE].precision, place)
    found: dict[str, Work] = {}
    if tiles := counts.tiles if calls is None or place != "cpu" else calls:
        read = tiles * sum(info.bytes for name, info in files.items() if name.startswith(VISION))
        vision = _arithmetic(files[VISION].precision, place)
        found["encode"] = Work(shape.encode_flops(tiles), read, vision, "tile", tiles)
    prompt, decoded = counts.prompt_tokens, counts.completion_tokens - 1
    if choose_backend("auto", prompt, has_graph=PREFILL in files, offloaded=place != "cpu") == "onnx":
        read = files[PREFILL_DATA].bytes * -(-prompt // CHUNK)
        prefill = _arithmetic(files[PREFILL].precision, place)
    else:
        read, prefill = round(weights * -(-prompt // _LLAMA_CHUNK)), backbone
    found["prefill"] = Work(shape.prefill_flops(prompt), read, prefill, "token", prompt)
    if decoded > 0:
        pasts = range(prompt, prompt + decoded)
        read = round(weights * decoded) + sum(pasts) * shape.kv_bytes_per_token
        found["decode"] = Work(sum(map(shape.decode_flops, pasts)), read, backbone, "token", decoded)
    return found


def _arithmetic(stored: str | None, place: str) -> str:
    """Arithmetic of matmuls with a file's weights; llama.cpp's quantized types multiply int8 activations."""
    if stored in {"f32", "fp32", None} or (stored == "fp16" and place == "cpu"):  # computed in float32 there
        return "fp32"
    if stored == "f16":
        return "fp16"
    return stored if stored in get_args(Arithmetic) else "int8"


@dataclass(frozen=True)
class Utilization:
    """Shares of the machine's limits, 0 to 1; None without a rate. Caches can exceed the bandwidth."""

    flops: float | None
    bandwidth: float | None


def utilization(work: Work, ms: float, rates: Rates | None) -> Utilization:
    """How close a stage of so many milliseconds gets to the machine's limits."""
    if not rates or ms <= 0:
        return Utilization(None, None)
    limit, seconds = rates.flops(work.precision), ms / 1e3
    return Utilization(
        work.flops / seconds / limit if limit else None,
        work.bytes / seconds / rates.read if rates.read else None,
    )
