"""The vision encoder in int8.

In: a bundle's ``vision.onnx`` in fp32 or fp16, and calibration tiles. Out: another ``vision.onnx`` with the
same input and output, a quarter of the size, and a report of the errors on those tiles.

``read -> ranges -> smooth -> quantize -> measure``, and while the worst tile fails the gate: keep the most
harmful matmuls in a finer precision. Neither the checkpoint nor torch is needed.

int4 was measured and left out: ``MatMulNBits`` with blocks of 32 and int8 arithmetic. Three layers of the
published width take 0.15 of the size, and 1.07 of the time of fp32 with mapped weights, as in the runtime
(0.78 with packed ones, where int8 takes 0.31); the cosine is 0.977, of int8 0.9994.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onevision.errors import QuantError, UsageError
from onevision.files import disk_space, scratch_folder
from onevision.graphs.kernels import MatmulPrecision
from onevision.graphs.siglip import EncoderPlan, Siglip, matmuls, write_siglip
from onevision.graphs.stored import read_siglip
from onevision.progress import Progress
from onevision.quant.gates import Thresholds, compare_features
from onevision.quant.sensitivity import Upgrade, fewest, upgrades
from onevision.quant.smooth import smooth
from onevision.quant.watch import watch_errors, watch_ranges
from onevision.runtime.vision import VisionEncoder

Array = npt.NDArray[np.float32]

#: Errors stay below the thresholds by this share: other images will be a little worse.
_MARGIN = 0.1
_WATCHED_TILES = 4  # tiles for errors of single matmuls: each costs two passes in fp32


@dataclass(frozen=True)
class TileQuality:
    """Image features of a tile against fp32, see :func:`onevision.quant.gates.compare_features`."""

    cosine: float
    relative_error: float  # norm of the difference / norm of the features


@dataclass(frozen=True)
class VisionQuant:
    """The files written, and their errors.

    Attributes:
        path: The graph.
        data_path: Its matrices.
        source_bytes: Size of the source, graph and matrices.
        bytes: Size of the files written.
        features: The worst tile against fp32.
        tiles: Each tile against fp32, in the order given.
        kept: Matmuls in a finer precision than int8, worst first.
        forced: Matmuls that the caller wanted in fp32.
        scaled: Matmuls with smoothing scales.
    """

    path: Path
    data_path: Path
    source_bytes: int
    bytes: int
    features: TileQuality
    tiles: tuple[TileQuality, ...]
    kept: tuple[Upgrade, ...]
    forced: tuple[str, ...]
    scaled: tuple[str, ...]


def quantize_vision(
    source: Path,
    target: Path,
    tiles: Array,
    progress: Progress,
    *,
    keep: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    threads: int | None = None,
) -> VisionQuant:
    """Write an int8 encoder, and measure it with the runtime that will use it.

    Args:
        source: ``vision.onnx`` of an fp32 or fp16 bundle.
        target: The ONNX file to create or replace; its matrices go to ``<name>.data`` beside it.
        tiles: Pixel values to calibrate and measure with, float32 [T, 3, S, S], at least one tile.
        progress: Receives steps and notes.
        keep: Names of matmuls that stay in fp32, or of their layers (``layers.3``).
        thresholds: Limits for the worst tile.
        threads: CPU threads; None for all cores.

    Raises:
        UsageError: ``keep`` has a name that does not exist.
        QuantError: Another graph than the export's, weights or features that are not finite, features that
            are the same for all tiles, or thresholds that not even fp32 reaches. Nothing is written then.
        ExportError: The disk is full.
    """
    siglip = read_siglip(source)
    forced = _chosen(siglip, keep)
    needed = 8 * siglip.weights  # a graph with each matrix in fp32 and in int8, and the result
    with disk_space(target.absolute().parent, needed), scratch_folder(target) as scratch:
        with progress.step("ranges of activations") as advance:
            ranges, expected = watch_ranges(siglip, tiles, scratch, threads, advance)
        _check_different(source, tiles, expected)
        with progress.step("smoothing scales") as advance:
            plan = smooth(siglip, ranges, advance)
        plan = _finer(plan, dict.fromkeys(forced, "fp32"))
        trial = _Trial(
            siglip, plan, scratch / target.name, tiles, expected, thresholds or Thresholds(), threads
        )
        with progress.step("vision encoder in int8"):
            passed = trial.passes({})
        quantized = [name for name in matmuls(siglip.shape) if name not in forced]
        kept = () if passed else _keep_finer(trial, quantized, progress)
        data_path = target.with_name(f"{target.name}.data")
        trial.path.with_name(data_path.name).replace(data_path)
        trial.path.replace(target)
    return VisionQuant(
        path=target,
        data_path=data_path,
        source_bytes=_bytes(source),
        bytes=_bytes(target),
        features=trial.worst,
        tiles=trial.tiles,
        kept=kept,
        forced=forced,
        scaled=tuple(plan.scales),
    )


class _Trial:
    """Writes an encoder by a plan, and measures it with the runtime."""

    def __init__(
        self,
        siglip: Siglip,
        plan: EncoderPlan,
        path: Path,
        pixels: Array,
        expected: Array,
        thresholds: Thresholds,
        threads: int | None,
    ) -> None:
        self.siglip, self.plan, self.path, self.pixels, self.threads = siglip, plan, path, pixels, threads
        self.thresholds = thresholds
        self.tiles: tuple[TileQuality, ...] = ()  # of the last trial
        self._expected = expected
        self._last: Mapping[str, MatmulPrecision] | None = None  # precisions of the last trial, which passed

    @property
    def worst(self) -> TileQuality:
        """The worst cosine and the worst error, which may be of different tiles."""
        return _worst(self.tiles)

    def passes(self, finer: Mapping[str, MatmulPrecision]) -> bool:
        """Whether the features pass with some matmuls finer than int8."""
        if finer == self._last:
            return True
        write_siglip(self.path, self.siglip, plan=_finer(self.plan, finer))
        with closing(VisionEncoder(self.path, device="cpu", threads=self.threads)) as encoder:
            features = encoder.encode(self.pixels)
        self.tiles = tuple(map(_compare, features, self._expected))
        spared = 1 - _MARGIN
        passed = (
            1 - self.worst.cosine <= spared**2 * (1 - self.thresholds.cosine)
            and self.worst.relative_error <= spared * self.thresholds.relative_error
        )
        self._last = finer if passed else None
        return passed


def _keep_finer(trial: _Trial, quantized: Sequence[str], progress: Progress) -> tuple[Upgrade, ...]:
    """Write the encoder with the fewest finer matmuls that passes; returns these."""
    progress.note(
        f"some matmuls need more than int8: the cosine of the worst tile is {trial.worst.cosine:.5f}"
    )
    worst = np.argsort([tile.cosine for tile in trial.tiles])[:_WATCHED_TILES]
    with progress.step("errors of single matmuls"):
        errors = watch_errors(trial.siglip, trial.plan, trial.pixels[worst], trial.path.parent, trial.threads)
    with progress.step("matmuls to keep finer"):
        kept = fewest(upgrades(errors, quantized), trial.passes)
        if kept is None or not trial.passes({upgrade.matmul: upgrade.precision for upgrade in kept}):
            raise QuantError(
                "image features do not pass even with all matmuls in fp32: "
                f"cosine {trial.worst.cosine:.7f}, required {trial.thresholds.cosine}"
            )
    return kept


def _finer(plan: EncoderPlan, precision: Mapping[str, MatmulPrecision]) -> EncoderPlan:
    return replace(plan, precision={**plan.precision, **precision})


def _chosen(siglip: Siglip, keep: Sequence[str]) -> tuple[str, ...]:
    """Names of the matmuls in ``keep``."""
    names = matmuls(siglip.shape)
    chosen: set[str] = set()
    for part in keep:
        found = {name for name in names if name == part or name.startswith(f"{part}.")}
        if not found:
            last = siglip.shape.layers - 1
            raise UsageError(
                f"the vision encoder has no matmul {part!r} to keep",
                hint=f"name a layer (layers.0 to layers.{last}), projector, or a matmul like {names[0]}",
            )
        chosen |= found
    return tuple(name for name in names if name in chosen)


def _check_different(source: Path, pixels: Array, features: Array) -> None:
    """Refuse an encoder whose features do not depend on the image.

    Raises:
        QuantError: They are the same for different tiles.
    """
    different = (pixels != pixels[0]).any(axis=(1, 2, 3))
    if different.any() and (features == features[0]).all():
        raise QuantError(
            f"image features of {source} are the same for all images",
            hint="fetch the checkpoint and export again",
        )


def _compare(features: Array, expected: Array) -> TileQuality:
    quality = compare_features(features[None], expected[None])
    if quality.cosine is None or quality.relative_error is None:
        raise QuantError("image features are not finite")
    return TileQuality(quality.cosine, quality.relative_error)


def _worst(tiles: Sequence[TileQuality]) -> TileQuality:
    return TileQuality(min(t.cosine for t in tiles), max(t.relative_error for t in tiles))


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")))
