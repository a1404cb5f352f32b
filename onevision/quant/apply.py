"""From a model in floats to the bundle that its quality gate lets through.

``candidates -> draft -> measure -> pass? -> verify -> card and manifest``. The folder is that of the bundle
all along: each draft takes the place of the last, and what fails never gets the bundle's name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from onevision.bundle import BACKBONE, VISION, VISION_DATA, write_bundle
from onevision.errors import ExportError, QuantError
from onevision.export.backbone import own_type
from onevision.export.build import export
from onevision.export.checkpoint import Checkpoint
from onevision.files import readable, scratch_folder
from onevision.native.quantize import FLOAT_BYTES, RECIPES, predicted_bits
from onevision.proof.verify import LOGITS_TOLERANCE
from onevision.quant.requantise import check_floats, check_precisions, finish, precisions_of, verify_draft
from onevision.quant.trials import Candidate, Trials, with_and_without

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from onevision.bundle import Bundle
    from onevision.export.build import ExportOptions
    from onevision.export.hub import FetchedCheckpoint
    from onevision.native.quantize import BackbonePrecision, BackboneReport
    from onevision.progress import Progress
    from onevision.proof.verify import Report
    from onevision.quant.gates import Quality
    from onevision.quant.requantise import Draft, EncoderPrecision
    from onevision.quant.trials import Yardstick

    Tried = tuple[Candidate, Draft, Quality]

Auto = Literal["auto"]

#: What ``auto`` tries: types that a CPU multiplies fast, and q4_k_m, which is as small where rows divide into
#: its blocks. The faster of two that are equally large comes first.
AUTO: tuple[BackbonePrecision, ...] = (
    "q4_0-pure", "iq4_nl-pure", "q4_0", "iq4_nl", "q4_k_m", "q4_0-attn-q8_0", "iq4_nl-attn-q8_0", "q8_0",
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What to make of a model in floats."""

    vision: EncoderPrecision | Auto = "auto"
    backbone: BackbonePrecision | Auto = "auto"
    imatrix: bool | None = None  # where it changes anything; None: both are tried
    force: bool = False  # replace a bundle that is there, and write one that fails its gate


@dataclass(frozen=True, eq=False)
class Rejected:
    """A candidate that failed the gate, or could not be made. ``bytes``: of the whole bundle, if it was."""

    candidate: Candidate
    reasons: tuple[str, ...]
    bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Applied:
    """A bundle just written, and how it came to be."""

    bundle: Bundle
    candidate: Candidate
    backbone: BackboneReport
    quality: Quality
    report: Report
    rejected: tuple[Rejected, ...]  # in the order in which they were tried

    def to_dict(self) -> dict[str, Any]:
        """What was chosen, why, and what was not."""
        return {
            **asdict(self.candidate),
            "quality": self.quality.to_dict(),
            "rejected": [
                {**asdict(each.candidate), "bytes": each.bytes, "reasons": list(each.reasons)}
                for each in self.rejected
            ],
        }


def has_gate(vision: str, backbone: str) -> bool:
    """Whether an export with these precisions is measured. The rest is proven by ``verify``."""
    return vision in ("int8", "auto") or backbone not in LOGITS_TOLERANCE


def apply(source: Bundle, target: Path, wanted: Wanted, yardstick: Yardstick, progress: Progress) -> Applied:
    """Make a bundle in fewer bits of a bundle in floats.

    Args:
        source: A bundle in floats.
        target: Folder of the new one; it must not exist, or be empty, unless ``wanted.force``.
        wanted: Precisions.
        yardstick: What to measure with.
        progress: Told what goes on, and what was rejected.

    Raises:
        UsageError: Something stands at ``target``, or a precision is finer than the source's.
        QuantError: The source is quantised already, or cannot be; or what was made fails its gate.
        OneVisionError: Something that was read or written is bad, see :mod:`onevision.quant.requantise`.
    """
    check_floats(source)
    check_precisions(
        source,
        None if wanted.vision == "auto" else wanted.vision,
        None if wanted.backbone == "auto" else wanted.backbone,
    )
    with write_bundle(target, force=wanted.force) as folder, scratch_folder(folder) as scratch:
        done = _apply(source, folder, scratch, wanted, yardstick, progress)
    return _at(target, done)


def export_quantised(
    checkpoint: FetchedCheckpoint,
    target: Path,
    options: ExportOptions,
    wanted: Wanted,
    yardstick: Yardstick,
    progress: Progress,
) -> Applied:
    """Make a bundle in fewer bits of a checkpoint, by way of a bundle in floats that does not stay.

    Args:
        checkpoint: On this machine.
        target: See :func:`apply`.
        options: Names and threads; the precisions are those of ``wanted``.
        wanted: Precisions.
        yardstick: What to measure with.
        progress: Told what goes on, and what was rejected.

    Raises:
        OneVisionError: See :func:`apply` and :func:`onevision.export.build.export`.
    """
    with Checkpoint.open(checkpoint.folder) as opened:
        own = own_type(opened)
    floats = replace(
        options,
        vision=wanted.vision if wanted.vision in ("fp32", "fp16") else "fp32",
        backbone=own if wanted.backbone == "auto" or wanted.backbone not in FLOAT_BYTES else wanted.backbone,
        force=False,
    )
    with write_bundle(target, force=wanted.force) as folder, scratch_folder(folder) as scratch:
        source = export(checkpoint, scratch / "floats", floats, progress).bundle
        done = _apply(source, folder, scratch, wanted, yardstick, progress)
    return _at(target, done)


def _at(target: Path, done: Applied) -> Applied:
    return replace(done, bundle=replace(done.bundle, folder=target))


def _apply(
    source: Bundle, folder: Path, scratch: Path, wanted: Wanted, yardstick: Yardstick, progress: Progress
) -> Applied:
    with Trials(source, scratch, yardstick, progress) as trials:
        walk = _Walk(trials, folder, progress, _most_for_int8(source) if wanted.vision == "auto" else inf)
        candidate, draft, quality = _search(walk, source, wanted)
    report = verify_draft(draft, yardstick.threads)
    reasons = (*quality.reasons, *_disproof(report))
    if reasons and not wanted.force:
        raise QuantError(
            f"{candidate.name} fails the quality gate: {'; '.join(reasons)}",
            hint="nothing was written; --vision auto --backbone auto finds what passes, "
            "--force writes it all the same",
        )
    gate = quality.to_dict() | {"thresholds": asdict(yardstick.thresholds), "imatrix": candidate.imatrix}
    bundle = finish(draft, report, gate=gate)
    rejected = tuple(each for each in walk.rejected if each.candidate != candidate)
    return Applied(bundle, candidate, draft.backbone, quality, report, rejected)


def _search(walk: _Walk, source: Bundle, wanted: Wanted) -> Tried:
    """The first candidate that passes, or the last.

    Where both are to be found, the encoder is, with the source's own backbone: what passes then leaves the
    backbone's precisions to be tried once, not with every encoder.
    """
    own_vision, own_backbone = precisions_of(source)
    visions = _encoders(own_vision) if wanted.vision == "auto" else (wanted.vision,)
    if wanted.backbone != "auto":
        backbones: Sequence[BackbonePrecision] = (wanted.backbone,)
    else:
        backbones = _backbones(source, own_backbone)
        if visions != (own_vision,):
            found = walk.first_to_pass([Candidate(vision, own_backbone) for vision in visions])
            if not found[-1].passed:
                return found
            visions = (found[0].vision,)
    return walk.first_to_pass(
        [
            Candidate(vision, backbone, weighed)
            for backbone in backbones
            for vision in visions
            for weighed in with_and_without(backbone, wanted.imatrix)
        ]
    )


def _encoders(own: EncoderPrecision) -> tuple[EncoderPrecision, ...]:
    """What ``auto`` tries of encoders, the smallest first; the source's own passes always."""
    return ("int8", "fp16", "fp32") if own == "fp32" else ("int8", "fp16")


def _most_for_int8(source: Bundle) -> float:
    """Bytes of the encoder in fp16: an int8 that has to keep so much in fp32 is no gain."""
    own_vision, _ = precisions_of(source)
    return _encoder_bytes(source) / (2 if own_vision == "fp32" else 1)


def _encoder_bytes(bundle: Bundle) -> int:
    return sum(bundle.manifest.files[name].bytes for name in (VISION, VISION_DATA))


def _backbones(source: Bundle, own: BackbonePrecision) -> list[BackbonePrecision]:
    """The same of backbones; sizes are the true ones, with rows that do not divide into a type's blocks."""
    floats = (own,) if own == "f16" else ("f16", own)
    path = source.path(BACKBONE)
    return sorted((*AUTO, *floats), key=lambda name: predicted_bits(path, RECIPES[name]))


class _Walk:
    """Tries candidates in one folder, where the draft of the last one lies.

    Args:
        trials: Make and measure them.
        folder: Where drafts lie.
        progress: Told what was rejected.
        most_for_int8: Bytes from which on an encoder in int8 is not worth it.

    Attributes:
        rejected: Those that did not pass.
    """

    def __init__(self, trials: Trials, folder: Path, progress: Progress, most_for_int8: float) -> None:
        self.rejected: list[Rejected] = []
        self._most_for_int8 = most_for_int8
        self._trials, self._folder, self._steps = trials, folder, progress
        self._known: dict[Candidate, Quality] = {}

    def first_to_pass(self, candidates: Sequence[Candidate]) -> Tried:
        """The first that passes, or else the last."""
        for candidate in candidates[:-1]:
            try:
                tried = self._try(candidate)
            except ExportError as error:  # a weight beyond fp16, say; what is left may do better
                self._reject(candidate, (error.message,))
                continue
            if tried[-1].passed:
                return tried
        return self._try(candidates[-1])

    def _try(self, candidate: Candidate) -> Tried:
        for path in self._folder.iterdir():
            path.unlink()
        draft = self._trials.make(candidate, self._folder)
        size = _encoder_bytes(draft.bundle)
        if candidate.vision == "int8" and size >= self._most_for_int8:
            raise ExportError(
                f"with what has to stay in fp32, its encoder takes {readable(size)}, "
                f"and {readable(int(self._most_for_int8))} in fp16"
            )
        if candidate not in self._known:
            self._known[candidate] = self._trials.measure(draft, to_the_end=False)
        quality = self._known[candidate]
        if quality.passed:
            self._steps.note(f"{candidate.name} passes, {readable(draft.bundle.bytes)}")
        else:
            self._reject(candidate, quality.reasons, draft.bundle.bytes)
        return candidate, draft, quality

    def _reject(self, candidate: Candidate, reasons: tuple[str, ...], size: int | None = None) -> None:
        self.rejected.append(Rejected(candidate, reasons, size))
        self._steps.note(f"{candidate.name} is rejected: {'; '.join(reasons)}")


def _disproof(report: Report) -> Iterator[str]:
    """Where the bundle does not compute what the reference does, whatever its precision."""
    for case in report.cases:
        for stage in case.stages:
            if stage.passed is False:
                yield f"verify: {stage.stage} of the {case.name} case"
