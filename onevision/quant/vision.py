"""The vision encoder in int8.

In: a bundle's ``vision.onnx`` in fp32 or fp16, and calibration tiles. Out: another ``vision.onnx`` with the
same input and output, a quarter of the size, and a report of what it lost on those tiles.

``fuse -> watch ranges -> smooth -> quantise -> measure``, and as long as the worst tile fails the gate: keep
finer what hurts most. Neither the checkpoint nor torch is needed.

int4 was measured and left out: ``MatMulNBits`` with blocks of 32 and int8 arithmetic. Three layers of the
published width are 0.15 of the size, and take 1.07 of the time of fp32 with mapped weights, as the runtime
has them (0.78 with packed ones, where int8 takes 0.31); a cosine of 0.977 is left, where int8 leaves 0.9994.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onevision.errors import QuantError, UsageError
from onevision.files import disk_space, scratch_folder
from onevision.graphs.siglip import products, write_encoder
from onevision.graphs.tower import Tower
from onevision.quant.gates import Thresholds, compare_features
from onevision.quant.sensitivity import fewest, upgrades
from onevision.quant.smooth import smooth
from onevision.quant.watch import watch_errors, watch_ranges
from onevision.runtime.vision import VisionEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from onevision.graphs.kernels import Precision
    from onevision.graphs.siglip import Plan
    from onevision.progress import Progress
    from onevision.quant.sensitivity import Upgrade

    Array = npt.NDArray[np.float32]

#: Relative error of the fused graph in fp32 against the exported one, at most.
FUSED_TOLERANCE = 1e-4
#: By which errors stay below the thresholds: other pictures than these will be a little worse.
_MARGIN = 0.1
_WATCHED_TILES = 4  # at which single products are measured: each costs two passes in fp32


@dataclass(frozen=True)
class TileQuality:
    """Image features of a tile against fp32, as :func:`onevision.quant.gates.compare_features` has it."""

    cosine: float
    relative_error: float  # norm of the difference / norm of the features


@dataclass(frozen=True)
class VisionQuant:
    """The files written, and what they lost.

    Attributes:
        path: The graph.
        data_path: Its matrices.
        source_bytes: Of the files it was made from, both together.
        bytes: Of the files written.
        features: The worst tile against fp32.
        tiles: Each tile against fp32, in the order given.
        kept: What int8 was not good enough for, worst first, and what it is in instead.
        forced: What the caller wanted in fp32.
        scaled: Products whose channels were made even.
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


def quantise_vision(
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
        target: The ONNX file to make or replace; its matrices go to ``<name>.data`` beside it.
        tiles: Pixel values to calibrate and measure with, float32 [T, 3, S, S], at least one tile.
        progress: Told what goes on.
        keep: What stays in fp32: names of products, or of what they are parts of (``layers.3``).
        thresholds: What the worst tile has to reach.
        threads: CPU threads; None for all cores.

    Raises:
        UsageError: ``keep`` names something that is not there.
        QuantError: A graph that is not the export's, weights or features that are not finite, features that
            are the same for all tiles, or thresholds that not even fp32 reaches. Nothing is written then.
        ExportError: The disk is full.
    """
    tower = Tower.read(source)
    forced = _chosen(tower, keep)
    needed = 2 * tower.weight_bytes  # a watched graph holds each matrix in fp32 and in int8
    with disk_space(target.absolute().parent, needed), scratch_folder(target) as scratch:
        with progress.step("ranges of activations") as advance:
            ranges, expected = watch_ranges(tower, tiles, scratch, threads, advance)
        _check(source, tiles, expected, threads)
        with progress.step("scales of channels") as advance:
            plan = smooth(tower, ranges, advance)
        plan = _finer(plan, dict.fromkeys(forced, "fp32"))
        trial = _Trial(
            tower, plan, scratch / target.name, tiles, expected, thresholds or Thresholds(), threads
        )
        with progress.step("vision encoder in int8"):
            passed = trial.passes({})
        kept = () if passed else _keep_finer(trial, [p for p in products(tower) if p not in forced], progress)
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
    """Writes plans, and measures each with the runtime."""

    def __init__(
        self,
        tower: Tower,
        plan: Plan,
        path: Path,
        pixels: Array,
        expected: Array,
        thresholds: Thresholds,
        threads: int | None,
    ) -> None:
        self.tower, self.plan, self.path, self.pixels, self.threads = tower, plan, path, pixels, threads
        self.thresholds = thresholds
        self.tiles: tuple[TileQuality, ...] = ()  # of the last trial
        self._expected = expected
        self._last: Mapping[str, Precision] | None = None  # precisions of the last trial, which passed

    @property
    def worst(self) -> TileQuality:
        """The two figures need not be of the same tile."""
        return _worst(self.tiles)

    def passes(self, finer: Mapping[str, Precision]) -> bool:
        """Whether the features pass with some products finer than int8."""
        if finer == self._last:
            return True
        write_encoder(self.tower, _finer(self.plan, finer), self.path)
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


def _keep_finer(trial: _Trial, quantised: Sequence[str], progress: Progress) -> tuple[Upgrade, ...]:
    """Leaves the trial at the plan with the fewest finer products that passes, and says which they are."""
    progress.note(f"int8 falls short at some products: cosine {trial.worst.cosine:.5f} of the worst tile")
    worst = np.argsort([tile.cosine for tile in trial.tiles])[:_WATCHED_TILES]
    with progress.step("errors of single products"):
        errors = watch_errors(trial.tower, trial.plan, trial.pixels[worst], trial.path.parent, trial.threads)
    with progress.step("products to keep finer"):
        kept = fewest(upgrades(errors, quantised), trial.passes)
        if kept is None or not trial.passes({upgrade.product: upgrade.precision for upgrade in kept}):
            raise QuantError(
                "image features do not pass even with all products in fp32: "
                f"cosine {trial.worst.cosine:.7f}, {trial.thresholds.cosine} is asked for"
            )
    return kept


def _finer(plan: Plan, precision: Mapping[str, Precision]) -> Plan:
    return replace(plan, precision={**plan.precision, **precision})


def _chosen(tower: Tower, keep: Sequence[str]) -> tuple[str, ...]:
    """Products that ``keep`` names."""
    names = products(tower)
    chosen: set[str] = set()
    for part in keep:
        found = {name for name in names if name == part or name.startswith(f"{part}.")}
        if not found:
            last = tower.layers - 1
            raise UsageError(
                f"the vision encoder has no product {part!r} to keep",
                hint=f"name a layer (layers.0 to layers.{last}), projector, or a product like {names[0]}",
            )
        chosen |= found
    return tuple(name for name in names if name in chosen)


def _check(source: Path, pixels: Array, features: Array, threads: int | None) -> None:
    """Whether the features are worth to be kept: those of the source, and not always the same."""
    with closing(VisionEncoder(source, device="cpu", threads=threads)) as encoder:
        exported = encoder.encode(pixels[:1])
    error = float(np.linalg.norm(features[:1] - exported) / max(float(np.linalg.norm(exported)), 1e-30))
    if not error <= FUSED_TOLERANCE:
        raise QuantError(
            f"{source} does not compute what its weights say: relative error {error:.1e}",
            hint="quantise a bundle that was exported with --vision fp32 or fp16",
        )
    different = pixels[(pixels != pixels[0]).any(axis=(1, 2, 3))]
    if len(different) and (features == features[0]).all():
        raise QuantError(
            f"image features of {source} are the same for all pictures",
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
