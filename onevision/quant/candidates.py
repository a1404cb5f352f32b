"""Candidates of one bundle in floats, made and measured; what they share is made once, when first needed.

In: a bundle whose encoder is fp32 or fp16 and whose backbone is f32, f16 or bf16, and a :class:`GateConfig`.
Out: bundles that can be loaded, and a :class:`~onevision.quant.gates.GateResult` each.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from onevision.bundle import BACKBONE, CARD, GOLDEN, VISION, VISION_DATA, Bundle, files_of
from onevision.errors import QuantError, UsageError, suggest
from onevision.eval.questions import Questions, read_questions, tiny_suite
from onevision.eval.suite import FAMILIES
from onevision.export.card import tool_versions
from onevision.files import disk_space, os_errors
from onevision.graphs.siglip import write_siglip
from onevision.graphs.stored import read_siglip
from onevision.native.quantize import FLOAT_BYTES, RECIPES, BackboneReport, quantize_gguf, report
from onevision.precisions import BackbonePrecision, EncoderPrecision, VisionPrecision
from onevision.progress import Progress
from onevision.proof.golden import golden_of
from onevision.proof.verify import Report, verify
from onevision.quant.calibration import CalibrationTiles, calibration_tiles, files_in
from onevision.quant.gates import FeatureQuality, GateResult, Thresholds, judge
from onevision.quant.imatrix import Imatrix, collect_imatrix, read_imatrix
from onevision.quant.measure import GateReference, measure, record_reference
from onevision.quant.vision import quantize_vision
from onevision.runtime.cache import Cache
from onevision.runtime.engine import OneVision

#: With an importance matrix and without, the better one first, see docs/quantization.md.
IMATRIX_ORDER = (True, False)
#: Default number of questions per family: few for a model that takes a minute for each, many for a small one.
QUESTIONS, QUESTIONS_OF_SMALL = 4, 50
SMALL_BYTES = 200_000_000  # maximum size of a small bundle in floats


@dataclass(frozen=True)
class Candidate:
    """Precisions to try.

    Raises:
        UsageError: An unknown precision.
    """

    vision: EncoderPrecision
    backbone: BackbonePrecision
    imatrix: bool = False

    def __post_init__(self) -> None:
        for name, known in ((self.vision, get_args(EncoderPrecision)), (self.backbone, RECIPES)):
            if name not in known:
                raise UsageError(f"unknown precision {name!r}", hint=suggest(name, known))

    @property
    def name(self) -> str:
        """``int8 + q4_0 (imatrix)``."""
        return f"{self.vision} + {self.backbone}{' (imatrix)' if self.imatrix else ''}"


@dataclass(frozen=True, eq=False)
class GateConfig:
    """What candidates are made and measured with."""

    #: Questions, or their file or folder. All are scored, and the reference's answers to the first half are
    #: followed token by token. None: of the tiny suite, as many as suit the model's size. Empty: none; only
    #: an int8 encoder's features of the calibration tiles are judged.
    questions: Path | Questions | None = None
    limit: int | None = None  # maximum number of questions
    calibration: Path | None = None  # folder of images for int8; None for the built-in set
    tiles: int | None = None  # maximum number of calibration tiles
    #: File of an importance matrix; True: collect one; False: use none; None: try both.
    imatrix: Path | bool | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    threads: int | None = None  # None for all cores

    def check(self) -> None:
        """Read the files once, so that a bad one is found before any work is done.

        Raises:
            InputError: Unusable questions or importance matrix.
            QuantError: No calibration folder, or an empty one.
        """
        if isinstance(self.questions, Path):
            read_questions(self.questions, limit=self.limit)
        if self.calibration is not None:
            files_in(self.calibration)
        if isinstance(self.imatrix, Path):
            read_imatrix(self.imatrix)

    def questions_for(self, source: Bundle) -> Questions:
        """Questions for candidates of a bundle."""
        if isinstance(self.questions, Path):
            return read_questions(self.questions, limit=self.limit)
        if self.questions is not None:
            return self.questions
        per_family = QUESTIONS_OF_SMALL if source.bytes <= SMALL_BYTES else QUESTIONS
        return tiny_suite(limit=self.limit or per_family * len(FAMILIES))

    def imatrix_choices(self, backbone: BackbonePrecision) -> tuple[bool, ...]:
        """With an importance matrix, without, or both; llama.cpp rounds floats and q8_0 without one."""
        if backbone in FLOAT_BYTES or backbone == "q8_0":
            return (False,)
        return IMATRIX_ORDER if self.imatrix is None else (self.imatrix is not False,)


def precisions_of(bundle: Bundle) -> tuple[Any, Any]:
    """Precisions of vision encoder and backbone in the manifest."""
    vision, backbone = (bundle.manifest.files[name].precision for name in (VISION, BACKBONE))
    return vision, backbone


def check_source(source: Bundle, vision: str = "auto", backbone: str = "auto") -> None:
    """Refuse to quantize a bundle twice, or to make it larger.

    Raises:
        QuantError: The bundle is quantized already.
        UsageError: A wanted precision is finer than the bundle's.
    """
    own_vision, own_backbone = precisions_of(source)
    if own_vision not in get_args(VisionPrecision) or own_backbone not in FLOAT_BYTES:
        raise QuantError(
            f"{source.folder} is quantized already ({own_vision} + {own_backbone}): "
            "rounding twice costs quality",
            hint="start from a bundle in floats: onevision export --vision fp32 --backbone f16",
        )
    for wanted, own, finer in (
        (vision, own_vision, (vision, own_vision) == ("fp32", "fp16")),
        (backbone, own_backbone, FLOAT_BYTES.get(backbone, 0) > FLOAT_BYTES[own_backbone]),
    ):
        if finer:
            raise UsageError(
                f"{source.folder} has {own}: {wanted} would be larger and no better",
                hint="export the checkpoint in that precision",
            )


class Quantizer:
    """Makes and measures candidates of a bundle.

    Args:
        source: A bundle in floats.
        scratch: Folder for encoders and for what the reference computes.
        config: What to make and measure with.
        progress: Progress reporter.
    """

    def __init__(self, source: Bundle, scratch: Path, config: GateConfig, progress: Progress) -> None:
        self.source, self.config, self.progress, self._scratch = source, config, progress, scratch
        self._encoders: dict[EncoderPrecision, tuple[Path, dict[str, Any]]] = {}
        self._features = Cache(scratch / "features")  # each encoder sees each image once

    @cached_property
    def calibration(self) -> CalibrationTiles:
        """Tiles for int8."""
        vision, config = self.source.manifest.vision, self.config
        tiles = calibration_tiles(vision, config.calibration, limit=config.tiles)
        for warning in tiles.warnings:
            self.progress.note(f"calibration: {warning}")
        return tiles

    @cached_property
    def imatrix(self) -> Imatrix:
        """The given importance matrix, or one collected from the source."""
        if isinstance(self.config.imatrix, Path):
            return read_imatrix(self.config.imatrix)
        with self.progress.step("importance matrix") as advance, self.load(self.source) as model:
            return collect_imatrix(model, advance=advance)

    @cached_property
    def reference(self) -> GateReference:
        """What the source computes and answers."""
        questions = self.config.questions_for(self.source)
        followed = islice(questions, (len(questions) + 1) // 2)
        with self.progress.step("answers of the reference") as advance, self.load(self.source) as model:
            return record_reference(model, followed, self._scratch, questions=questions, advance=advance)

    def load(self, bundle: Bundle) -> OneVision:
        """Load a bundle on the CPU."""
        return OneVision(bundle, device="cpu", threads=self.config.threads, features=self._features)

    def make(self, candidate: Candidate, folder: Path) -> Bundle:
        """Write the files of a candidate to an empty folder: a bundle without card and manifest on disk.

        Raises:
            ExportError: No disk space, a weight beyond fp16, or llama.cpp refused.
            QuantError: An encoder that cannot be quantized, or a calibration folder without images.
            InputError: An importance matrix of another model.
        """
        source = self.source.manifest
        encoder, quality = self._encoder(candidate.vision)
        backbone = self._backbone(candidate, folder / BACKBONE)
        made = {VISION: candidate.vision, VISION_DATA: candidate.vision, BACKBONE: candidate.backbone}
        names = [name for name in source.files if name != CARD]
        for name in names:
            if name != BACKBONE:
                _copy((encoder if name in made else self.source.folder) / name, folder / name)
        own = {name: info.precision for name, info in source.files.items() if info.precision}
        manifest = replace(
            source,
            created_by=source.created_by | tool_versions(),
            backbone=replace(source.backbone, bits_per_weight=backbone.bits_per_weight),
            files=files_of([folder / name for name in names], {**own, **made}),
            quality={"encoder": quality} if quality else {},
        )
        return Bundle(folder, manifest)

    def measure(self, bundle: Bundle, *, to_the_end: bool = True) -> GateResult:
        """Compare a candidate with the source, see :func:`~onevision.quant.measure.measure`."""
        if self.config.questions == ():
            return self._judge_features(bundle.manifest.quality.get("encoder"))
        reference = self.reference  # before the candidate is loaded: one model at a time
        with self.progress.step("quality") as advance, self.load(bundle) as model:
            return measure(model, reference, self.config.thresholds, to_the_end=to_the_end, advance=advance)

    def _judge_features(self, encoder: Mapping[str, Any] | None) -> GateResult:
        """Judge the manifest's ``quality.encoder``, without a question asked."""
        features = encoder and FeatureQuality(
            encoder["tiles"], encoder["cosine"], encoder["relative_error"], constant=False
        )
        reference = " + ".join(precisions_of(self.source))
        return judge(self.config.thresholds, reference, features=features or None)

    def verify(self, bundle: Bundle) -> Report:
        """Compare a candidate with the source's reference vectors; no cases if it has none.

        Raises:
            BundleError: Damaged reference vectors.
        """
        if GOLDEN not in bundle.manifest.files:
            return Report(())
        with self.load(bundle) as model:
            return verify(model, golden_of(bundle))

    def _encoder(self, precision: EncoderPrecision) -> tuple[Path, dict[str, Any]]:
        """Folder of the encoder's files, and the manifest's ``quality.encoder`` if it is int8."""
        if precision == precisions_of(self.source)[0]:
            return self.source.folder, {}
        if precision not in self._encoders:
            folder = self._scratch / precision
            folder.mkdir(exist_ok=True)
            quality = {}
            if precision == "int8":
                quality = self._quantize_encoder(folder / VISION)
            else:
                with self.progress.step(f"vision encoder in {precision}") as advance:
                    source = read_siglip(self.source.path(VISION))
                    write_siglip(folder / VISION, source, precision=precision, advance=advance)
            self._encoders[precision] = folder, quality
        return self._encoders[precision]

    def _quantize_encoder(self, target: Path) -> dict[str, Any]:
        tiles, config = self.calibration, self.config
        quant = quantize_vision(
            self.source.path(VISION),
            target,
            tiles.pixel_values,
            self.progress,
            thresholds=config.thresholds,
            threads=config.threads,
        )
        kept = {upgrade.matmul: upgrade.precision for upgrade in quant.kept}
        for name, precision in kept.items():
            self.progress.note(f"kept finer: {name} in {precision}")
        return {
            "tiles": len(quant.tiles),
            "images": tiles.images,
            "calibration": tiles.source,
            "cosine": quant.features.cosine,
            "relative_error": quant.features.relative_error,
            "kept": kept,
        }

    def _backbone(self, candidate: Candidate, path: Path) -> BackboneReport:
        """Write the backbone in a candidate's precision, or copy it if it has that already."""
        source, recipe = self.source.path(BACKBONE), RECIPES[candidate.backbone]
        if candidate.backbone == precisions_of(self.source)[1]:
            _copy(source, path)
            return report(path, recipe)
        imatrix = self.imatrix if candidate.imatrix else None
        with self.progress.step(f"backbone in {candidate.backbone}") as advance:
            return quantize_gguf(
                source, path, recipe, imatrix=imatrix, threads=self.config.threads, advance=advance
            )


def _copy(source: Path, target: Path) -> None:
    with os_errors(f"read {source}", QuantError):
        size = source.stat().st_size
    with disk_space(target.parent, size):
        shutil.copyfile(source, target)
