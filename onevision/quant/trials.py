"""Candidates of one bundle in floats, made and measured; what they share is made once, when it is needed.

In: a bundle in floats, and what to measure with. Out: drafts, and a
:class:`~onevision.quant.gates.Quality` each.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from onevision.eval.questions import tiny_suite
from onevision.eval.suite import FAMILIES
from onevision.native.quantize import FLOAT_BYTES
from onevision.quant.calibration import calibration_tiles
from onevision.quant.gates import Thresholds
from onevision.quant.imatrix import collect_imatrix
from onevision.quant.measure import measure, record_reference
from onevision.quant.requantise import make_backbone, make_draft, make_encoder
from onevision.runtime.cache import Cache
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from onevision.bundle import Bundle
    from onevision.eval.questions import TinySuite
    from onevision.eval.suite import Sample
    from onevision.native.quantize import BackbonePrecision
    from onevision.progress import Progress
    from onevision.quant.calibration import Calibration
    from onevision.quant.gates import Quality
    from onevision.quant.imatrix import Imatrix
    from onevision.quant.measure import Reference
    from onevision.quant.requantise import Draft, Encoder, EncoderPrecision

#: Questions of each family of the tiny suite that are asked and scored, unless a limit is given: few of a
#: model that takes a minute for each, many of one whose answers cost nothing.
QUESTIONS, QUESTIONS_OF_SMALL = 4, 50
SMALL_BYTES = 200_000_000  # of a bundle in floats, at most
#: With an importance matrix or without, the better one first: see docs/quantization.md for what was measured.
IMATRIX = (True, False)
_FEATURES = "features"


@dataclass(frozen=True)
class Candidate:
    """Precisions to try."""

    vision: EncoderPrecision
    backbone: BackbonePrecision
    imatrix: bool = False

    @property
    def name(self) -> str:
        """``int8 + q4_0 (imatrix)``."""
        return f"{self.vision} + {self.backbone}{' (imatrix)' if self.imatrix else ''}"


def with_and_without(backbone: BackbonePrecision, imatrix: bool | None = None) -> tuple[bool, ...]:
    """Whether to use an importance matrix: as told, or (None) one after the other, the better one first.

    llama.cpp rounds floats and q8_0 without one.
    """
    if backbone in FLOAT_BYTES or backbone == "q8_0":
        return (False,)
    return IMATRIX if imatrix is None else (imatrix,)


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What candidates are made and measured with."""

    #: Asked, and the first half followed token by token; None: as many of the tiny suite as suit the model.
    questions: TinySuite | tuple[Sample, ...] | None = None
    calibration: Path | None = None  # a folder of pictures; None: the built-in ones
    imatrix: Imatrix | None = None  # None: one is collected
    thresholds: Thresholds = field(default_factory=Thresholds)
    threads: int | None = None

    def asked(self, source: Bundle) -> TinySuite | tuple[Sample, ...]:
        """The questions for candidates of a bundle."""
        if self.questions is not None:
            return self.questions
        each = QUESTIONS_OF_SMALL if source.bytes <= SMALL_BYTES else QUESTIONS
        return tiny_suite(limit=each * len(FAMILIES))


class Trials:
    """Makes and measures candidates while its context lasts.

    Args:
        source: A bundle in floats.
        scratch: An empty folder, for encoders and what the reference computed.
        yardstick: What to measure with.
        progress: Told what goes on.

    Raises:
        QuantError: A calibration folder without pictures.
    """

    def __init__(self, source: Bundle, scratch: Path, yardstick: Yardstick, progress: Progress) -> None:
        self.source, self.yardstick, self._scratch, self._steps = source, yardstick, scratch, progress
        self._encoders: dict[EncoderPrecision, Encoder] = {}
        self._kept = ExitStack()
        self.calibration: Calibration = calibration_tiles(source.manifest.vision, yardstick.calibration)
        # Candidates share encoders: each picture is encoded once by each of these.
        self._features = Cache(scratch / _FEATURES)
        for warning in self.calibration.warnings:
            progress.note(f"calibration: {warning}")

    def __enter__(self) -> Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()

    @cached_property
    def imatrix(self) -> Imatrix:
        """The one that was given, or else one of the source.

        Raises:
            GenerationError: llama.cpp refused the work, or computed values that are not finite.
        """
        if self.yardstick.imatrix is not None:
            return self.yardstick.imatrix
        threads = self.yardstick.threads
        with (
            self._steps.step("importance matrix") as advance,
            OneVision(self.source, device="cpu", threads=threads) as model,
        ):
            return collect_imatrix(model, advance=advance)

    @cached_property
    def reference(self) -> Reference:
        """What the source computes and answers.

        Raises:
            OneVisionError: See :func:`~onevision.quant.measure.record_reference`.
        """
        questions = self.yardstick.asked(self.source)
        with self._steps.step("answers of the reference") as advance:
            return self._kept.enter_context(
                record_reference(
                    self.source,
                    islice(questions, (len(questions) + 1) // 2),
                    questions=questions,
                    device="cpu",
                    threads=self.yardstick.threads,
                    folder=self._scratch,
                    features=self._features,
                    advance=advance,
                )
            )

    def make(self, candidate: Candidate, folder: Path) -> Draft:
        """Write the files of a candidate to an empty folder.

        Raises:
            OneVisionError: See :mod:`onevision.quant.requantise`.
        """
        encoder = self._encoder(candidate.vision)
        backbone = make_backbone(
            self.source,
            candidate.backbone,
            folder,
            self._steps,
            imatrix=self.imatrix if candidate.imatrix else None,
            threads=self.yardstick.threads,
        )
        return make_draft(self.source, folder, encoder, backbone)

    def measure(self, draft: Draft, *, to_the_end: bool = True) -> Quality:
        """Hold a draft against the source; see :func:`~onevision.quant.measure.measure`.

        Raises:
            OneVisionError: See :func:`~onevision.quant.measure.record_reference`.
        """
        reference = self.reference
        with self._steps.step("quality") as advance:
            return measure(
                draft.bundle,
                reference,
                self.yardstick.thresholds,
                to_the_end=to_the_end,
                device="cpu",
                threads=self.yardstick.threads,
                features=self._features,
                advance=advance,
            )

    def _encoder(self, precision: EncoderPrecision) -> Encoder:
        if precision not in self._encoders:
            folder = self._scratch / precision
            folder.mkdir(exist_ok=True)
            self._encoders[precision] = make_encoder(
                self.source,
                precision,
                folder,
                self._steps,
                calibration=self.calibration,
                thresholds=self.yardstick.thresholds,
                threads=self.yardstick.threads,
            )
        return self._encoders[precision]
