"""What stages have to do at least, from the model's shape, and how far a time is from the machine's limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

from onevision.bench.products import Precision
from onevision.bench.result import Work
from onevision.bundle import BACKBONE, PREFILL, PREFILL_DATA, VISION
from onevision.planning.cost import Shape
from onevision.runtime.prefill.graph import CHUNK
from onevision.runtime.prefill.policy import reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onevision.bench.result import Counts
    from onevision.bundle import Manifest

_CHUNK = 512  # tokens of a prompt that read llama.cpp's weights together


def work(manifest: Manifest, counts: Counts, calls: int | None = None, *, place: str) -> dict[str, Work]:
    """Operations and bytes of the stages that take the time, for one answer.

    Bytes are those of the weights, each time that they are read, and of the keys and values of a decoded
    token's past; what stays in caches is not counted.

    Args:
        manifest: Of the bundle.
        counts: Of the answer.
        calls: Of the encoder: on a CPU one for each tile, and equal tiles have one. None: no two are equal.
        place: ``cpu`` or ``cuda``.
    """
    shape, files = Shape.of(manifest), manifest.files
    weights = shape.backbone_weights * manifest.backbone.bits_per_weight / 8
    spoken = _arithmetic(files[BACKBONE].precision, place)
    found: dict[str, Work] = {}
    tiles = counts.tiles if calls is None or place != "cpu" else calls
    if tiles:
        seen = sum(info.bytes for name, info in files.items() if name.startswith(VISION))
        found["encode"] = Work(
            shape.encode_flops(tiles),
            tiles * seen,
            _arithmetic(files[VISION].precision, place),
            "tile",
            tiles,
        )
    prompt, steps = counts.prompt_tokens, counts.completion_tokens - 1
    if reader("auto", prompt, has_graph=PREFILL in files, offloaded=place != "cpu") == "onnx":
        read = files[PREFILL_DATA].bytes * -(-prompt // CHUNK)
        reading = _arithmetic(files[PREFILL].precision, place)
    else:
        read, reading = round(weights * -(-prompt // _CHUNK)), spoken
    found["prefill"] = Work(shape.prefill_flops(prompt), read, reading, "token", prompt)
    if steps > 0:
        last = prompt + steps
        flops = sum(shape.decode_flops(past) for past in range(prompt, last))
        past = sum(range(prompt, last)) * shape.kv_bytes_per_token
        found["decode"] = Work(flops, round(weights * steps) + past, spoken, "token", steps)
    return found


def _arithmetic(stored: str | None, place: str) -> Precision:
    """What matrices of a file are multiplied in: llama.cpp's quantised types all go with int8 activations."""
    if stored in {"f32", "fp32", None}:
        return "fp32"
    if stored == "fp16":  # ONNX Runtime on a CPU computes it in float32
        return "fp32" if place == "cpu" else "fp16"
    if stored == "f16":
        return "fp16"
    return cast("Precision", stored) if stored in get_args(Precision) else "int8"


@dataclass(frozen=True)
class Utilisation:
    """Shares of the machine's limits, 0 to 1; None where there is no rate. ``bound`` is the nearer limit."""

    flops: float | None
    bandwidth: float | None

    @property
    def bound(self) -> str | None:
        """``compute`` or ``memory``, whichever share is larger."""
        if self.flops is None or self.bandwidth is None:
            return None
        return "compute" if self.flops >= self.bandwidth else "memory"


def utilisation(work: Work, ms: float, rates: Mapping[str, Any] | None) -> Utilisation:
    """How near a stage came to the limits of :class:`~onevision.bench.roofline.Rates`, as plain data."""
    if not rates or ms <= 0:
        return Utilisation(None, None)
    known = [engine[work.precision] for engine in rates["engines"].values()]
    limit = max((rate for rate in known if rate), default=None)
    seconds, read = ms / 1e3, rates["read"]
    return Utilisation(
        work.flops / seconds / limit if limit else None, work.bytes / seconds / read if read else None
    )
