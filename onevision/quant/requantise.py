"""From a bundle in floats to one in fewer bits, without the checkpoint: piece by piece.

``encoder, backbone -> draft -> (the gates measure it) -> finished bundle``

In: a bundle whose encoder is fp32 or fp16 and whose backbone is f32, f16 or bf16. Out: a folder with all the
files of a bundle. An encoder or an importance matrix that several candidates share is made once, and handed
to each.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from onevision.bundle import (
    BACKBONE,
    GOLDEN,
    NEWLINE,
    PREFILL,
    PREFILL_DATA,
    VISION,
    VISION_DATA,
    Bundle,
    files_of,
)
from onevision.errors import QuantError, UsageError
from onevision.export.seal import seal, tool_versions
from onevision.export.vision import VisionPrecision
from onevision.files import disk_space
from onevision.native.quantize import FLOAT_BYTES, RECIPES, quantize_gguf, report
from onevision.proof.golden import load_golden
from onevision.proof.verify import Report, verify
from onevision.quant.calibration import calibration_tiles
from onevision.quant.half import halve_encoder
from onevision.quant.vision import quantise_vision
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onevision.native.quantize import BackbonePrecision, BackboneReport
    from onevision.progress import Progress
    from onevision.quant.calibration import Calibration
    from onevision.quant.gates import Thresholds
    from onevision.quant.imatrix import Imatrix
    from onevision.quant.vision import VisionQuant

EncoderPrecision = Literal["fp32", "fp16", "int8"]

_FLOAT_HINT = "start from a bundle in floats: onevision export --vision fp32 --backbone f16"


@dataclass(frozen=True, eq=False)
class Encoder:
    """A vision encoder on disk. Of an int8 one: what was kept finer, what it lost, and on which tiles."""

    path: Path  # its data file beside it
    precision: EncoderPrecision
    quant: VisionQuant | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, eq=False)
class Draft:
    """A bundle that can be loaded and measured, and has no card and no manifest on disk yet."""

    bundle: Bundle
    encoder: Encoder
    backbone: BackboneReport


def precisions_of(bundle: Bundle) -> tuple[Any, Any]:
    """Of vision encoder and backbone, as the manifest has them: names of the two Literals, as a rule."""
    vision, backbone = (bundle.manifest.files[name].precision for name in (VISION, BACKBONE))
    return vision, backbone


def check_floats(source: Bundle) -> None:
    """Refuse a bundle that has been quantised already.

    Raises:
        QuantError: It has.
    """
    vision, backbone = precisions_of(source)
    if vision not in get_args(VisionPrecision) or backbone not in FLOAT_BYTES:
        raise QuantError(
            f"{source.folder} is quantised already ({vision} + {backbone}): rounding twice costs quality",
            hint=_FLOAT_HINT,
        )


def check_precisions(
    source: Bundle, vision: EncoderPrecision | None = None, backbone: BackbonePrecision | None = None
) -> None:
    """Refuse what would be larger than the source and no better.

    Raises:
        UsageError: A precision is finer than the source's.
    """
    has_vision, has_backbone = precisions_of(source)
    for wanted, has, finer in (
        (vision, has_vision, vision == "fp32" and has_vision == "fp16"),
        (backbone, has_backbone, FLOAT_BYTES.get(backbone or "", 0) > FLOAT_BYTES.get(has_backbone, 4)),
    ):
        if finer:
            raise UsageError(
                f"{source.folder} has {has}: {wanted} would be larger and no better",
                hint="export the checkpoint in that precision",
            )


def make_encoder(
    source: Bundle,
    precision: EncoderPrecision,
    folder: Path,
    progress: Progress,
    *,
    calibration: Calibration | None = None,
    thresholds: Thresholds | None = None,
    threads: int | None = None,
) -> Encoder:
    """The source's encoder in another precision; if it has that already, the source's own files.

    Args:
        source: A bundle in floats.
        precision: What to make.
        folder: Where the files go, which may be the folder of a draft.
        progress: Told what goes on.
        calibration: Tiles for int8; None: the built-in ones.
        thresholds: What int8 has to keep of the features of these tiles.
        threads: CPU threads; None for all cores.

    Raises:
        QuantError: An encoder that cannot be quantised: weights or features that are not finite, features
            that are the same for all pictures, or thresholds that not even fp32 reaches.
        ExportError: The disk is full, or a weight does not fit in fp16.
    """
    path = source.path(VISION)
    if precision == precisions_of(source)[0]:
        return Encoder(path, precision)
    if precision != "int8":
        with progress.step(f"vision encoder in {precision}") as advance:
            halve_encoder(path, folder / VISION, advance)
        return Encoder(folder / VISION, precision)
    calibration = calibration or calibration_tiles(source.manifest.vision)
    quant = quantise_vision(
        path, folder / VISION, calibration.pixel_values, progress, thresholds=thresholds, threads=threads
    )
    for upgrade in quant.kept:
        progress.note(f"kept finer: {upgrade.product} in {upgrade.precision}")
    return Encoder(quant.path, precision, quant, calibration)


def make_backbone(
    source: Bundle,
    precision: BackbonePrecision,
    folder: Path,
    progress: Progress,
    *,
    imatrix: Imatrix | None = None,
    threads: int | None = None,
) -> BackboneReport:
    """Write the source's backbone in another precision, or the source's own, to ``folder``.

    Raises:
        ExportError: No disk space, or llama.cpp refused.
        InputError: An importance matrix of another model.
    """
    path, recipe = folder / BACKBONE, RECIPES[precision]
    if precision == precisions_of(source)[1]:
        _copy(source.path(BACKBONE), path)
        return report(path, recipe)
    with progress.step(f"backbone in {precision}") as advance:
        return quantize_gguf(
            source.path(BACKBONE), path, recipe, imatrix=imatrix, threads=threads, advance=advance
        )


def make_draft(source: Bundle, folder: Path, encoder: Encoder, backbone: BackboneReport) -> Draft:
    """Put the pieces together in ``folder``, where the backbone already is; the rest is copied there.

    Raises:
        ExportError: No disk space.
    """
    has = source.manifest.files
    graph = {name: has[name].precision or "" for name in (PREFILL, PREFILL_DATA) if name in has}
    # A bundle that was not proven has no reference vectors.
    others = [name for name in (*graph, NEWLINE, GOLDEN) if name in has]
    for file, name in (
        (encoder.path, VISION),
        (encoder.path.with_name(f"{encoder.path.name}.data"), VISION_DATA),
        *((source.path(name), name) for name in others),
    ):
        if file != folder / name:
            _copy(file, folder / name)
    precisions = {
        VISION: encoder.precision,
        VISION_DATA: encoder.precision,
        BACKBONE: backbone.precision,
        **graph,
    }
    files = [folder / name for name in dict.fromkeys((*precisions, *others))]
    manifest = replace(
        source.manifest,
        created_by=source.manifest.created_by | tool_versions(),
        backbone=replace(source.manifest.backbone, bits_per_weight=backbone.bits_per_weight),
        files=files_of(files, precisions),
        quality={},
    )
    return Draft(Bundle(folder, manifest), encoder, backbone)


def verify_draft(draft: Draft, threads: int | None = None) -> Report:
    """Compare it with the reference vectors that it takes over from the source; no cases if it has none.

    Raises:
        BundleError: They are damaged.
    """
    if GOLDEN not in draft.bundle.manifest.files:
        return Report(())
    with OneVision(draft.bundle, device="cpu", threads=threads) as model:
        return verify(model, load_golden(draft.bundle.path(GOLDEN)))


def finish(draft: Draft, proof: Report, **measured: Mapping[str, Any]) -> Bundle:
    """Write card and manifest. ``measured``: what goes into the manifest's ``quality`` besides the proof."""
    quant, calibration = draft.encoder.quant, draft.encoder.calibration
    if quant and calibration:
        measured["encoder"] = {
            "tiles": len(quant.tiles),
            "pictures": calibration.pictures,
            "calibration": calibration.source,
            "cosine": quant.features.cosine,
            "relative_error": quant.features.relative_error,
            "kept": {upgrade.product: upgrade.precision for upgrade in quant.kept},
        }
    return seal(draft.bundle.folder, draft.bundle.manifest, proof, **measured)


def _copy(source: Path, target: Path) -> None:
    try:
        size = source.stat().st_size
    except OSError as error:
        raise QuantError(f"cannot read {source}: {error.strerror or error}") from error
    with disk_space(target.parent, size):
        shutil.copyfile(source, target)
