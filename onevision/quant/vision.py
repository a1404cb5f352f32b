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

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onevision.errors import QuantError
from onevision.files import disk_space, scratch_folder
from onevision.graphs.kernels import MatmulPrecision
from onevision.graphs.siglip import EncoderPlan, Siglip, matmuls, write_siglip
from onevision.graphs.stored import read_siglip
from onevision.progress import Progress
from onevision.quant.gates import FeatureQuality, Thresholds, compare_features, worst_features
from onevision.quant.sensitivity import Upgrade, fewest, upgrades, watch_errors, watch_ranges
from onevision.quant.smooth import smooth
from onevision.runtime.vision import VisionEncoder

Array = npt.NDArray[np.float32]

#: Errors stay below the thresholds by this share: other images will be a little worse.
_MARGIN = 0.1
_WATCHED_TILES = 4  # tiles for errors of single matmuls: each costs two passes in fp32


@dataclass(frozen=True)
class VisionQuant:
    """The graph written, and its errors.

    Attributes:
        path: The graph; its matrices are in ``<name>.data`` beside it.
        tiles: Each tile's image features against fp32, in the order given.
        kept: Matmuls in a finer precision than int8, worst first.
        scaled: Matmuls with smoothing scales.
    """

    path: Path
    tiles: tuple[FeatureQuality, ...]
    kept: tuple[Upgrade, ...]
    scaled: tuple[str, ...]

    @property
    def features(self) -> FeatureQuality:
        """The worst cosine and the worst error, which may be of different tiles."""
        return worst_features(self.tiles)


def quantize_vision(
    source: Path,
    target: Path,
    tiles: Array,
    progress: Progress,
    *,
    thresholds: Thresholds | None = None,
    threads: int | None = None,
) -> VisionQuant:
    """Write an int8 encoder, and measure it with the runtime that will use it.

    Args:
        source: ``vision.onnx`` of an fp32 or fp16 bundle.
        target: The ONNX file to create or replace; its matrices go to ``<name>.data`` beside it.
        tiles: Pixel values to calibrate and measure with, float32 [T, 3, S, S], at least one tile.
        progress: Receives steps and notes.
        thresholds: Limits for the worst tile.
        threads: CPU threads; None for all cores.

    Raises:
        QuantError: Another graph than the export's, weights or features that are not finite, features that
            are the same for all tiles, or thresholds that not even fp32 reaches. Nothing is written then.
        ExportError: The disk is full.
    """
    siglip = read_siglip(source)
    needed = 8 * siglip.weights  # a graph with each matrix in fp32 and in int8, and the result
    with disk_space(target.absolute().parent, needed), scratch_folder(target) as scratch:
        with progress.step("ranges of activations") as advance:
            ranges, expected = watch_ranges(siglip, tiles, scratch, threads, advance)
        different = (tiles != tiles[0]).any(axis=(1, 2, 3))
        if different.any() and (expected == expected[0]).all():
            raise QuantError(
                f"image features of {source} are the same for all images",
                hint="fetch the checkpoint and export again",
            )
        with progress.step("smoothing scales") as advance:
            plan = smooth(siglip, ranges, advance)
        path = scratch / target.name
        trial = _Trial(siglip, plan, path, tiles, expected, thresholds or Thresholds(), threads)
        with progress.step("vision encoder in int8"):
            passed = trial.passes({})
        kept = () if passed else _keep_finer(trial, progress)
        data = f"{target.name}.data"
        path.with_name(data).replace(target.with_name(data))
        path.replace(target)
    return VisionQuant(target, trial.tiles, kept, tuple(plan.scales))


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
        self.tiles: tuple[FeatureQuality, ...] = ()  # of the last trial
        self.cosine = 0.0  # of the worst of them
        self._expected = expected
        self._last: Mapping[str, MatmulPrecision] | None = None  # precisions of the last trial, which passed

    def passes(self, finer: Mapping[str, MatmulPrecision]) -> bool:
        """Whether the features pass with some matmuls finer than int8."""
        if finer == self._last:
            return True
        plan = replace(self.plan, precision={**self.plan.precision, **finer})
        write_siglip(self.path, self.siglip, plan=plan)
        with closing(VisionEncoder(self.path, device="cpu", threads=self.threads)) as encoder:
            features = encoder.encode(self.pixels)
        pairs = zip(features, self._expected, strict=True)
        self.tiles = tuple(compare_features(ours[None], theirs[None]) for ours, theirs in pairs)
        worst, spared = worst_features(self.tiles), 1 - _MARGIN
        if worst.cosine is None or worst.relative_error is None:
            raise QuantError("image features are not finite")
        self.cosine = worst.cosine
        passed = (
            1 - worst.cosine <= spared**2 * (1 - self.thresholds.cosine)
            and worst.relative_error <= spared * self.thresholds.relative_error
        )
        self._last = finer if passed else None
        return passed


def _keep_finer(trial: _Trial, progress: Progress) -> tuple[Upgrade, ...]:
    """Write the encoder with the fewest finer matmuls that passes; returns these."""
    progress.note(f"some matmuls need more than int8: the cosine of the worst tile is {trial.cosine:.5f}")
    order = sorted(range(len(trial.tiles)), key=lambda at: trial.tiles[at].cosine or 0.0)
    worst = order[:_WATCHED_TILES]
    with progress.step("errors of single matmuls"):
        errors = watch_errors(trial.siglip, trial.plan, trial.pixels[worst], trial.path.parent, trial.threads)
    with progress.step("matmuls to keep finer"):
        kept = fewest(upgrades(errors, matmuls(trial.siglip.shape)), trial.passes)
        if kept is None or not trial.passes({upgrade.matmul: upgrade.precision for upgrade in kept}):
            raise QuantError(
                "image features do not pass even with all matmuls in fp32: "
                f"cosine {trial.cosine:.7f}, required {trial.thresholds.cosine}"
            )
    return kept
