"""Quantization by search: make each candidate, measure it, stop at the first that passes the gate.

``candidates -> make -> measure -> passed? -> verify -> card and manifest``. A candidate's files replace
the last one's in a temporary folder: what fails never gets the bundle's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import Any

from onevision.bundle import BACKBONE, VISION, VISION_DATA, Bundle, open_bundle, write_bundle
from onevision.errors import ExportError, QuantError, UsageError
from onevision.eval.questions import Questions
from onevision.export.backbone import own_type
from onevision.export.build import ExportOptions, export
from onevision.export.card import seal
from onevision.export.checkpoint import Checkpoint
from onevision.export.hub import FetchedCheckpoint
from onevision.export.tensors import TEXT_PREFIX
from onevision.files import disk_space, readable, scratch_folder
from onevision.native.quantize import (
    FLOAT_BYTES,
    QUANTIZED_BYTES,
    RECIPES,
    BackboneReport,
    predicted_bits,
    report,
)
from onevision.precisions import (
    BackboneChoice,
    BackbonePrecision,
    EncoderChoice,
    EncoderPrecision,
    Exporter,
)
from onevision.progress import LogProgress, Progress
from onevision.proof.verify import LOGITS_TOLERANCE, Report
from onevision.quant.candidates import Candidate, GateConfig, Quantizer, check_source, precisions_of
from onevision.quant.gates import GateResult, Thresholds

#: Candidates of ``auto``: types that a CPU multiplies fast, and q4_k_m, which is as small where rows divide
#: into its blocks. Of two equally large ones the faster comes first.
AUTO: tuple[BackbonePrecision, ...] = (
    "q4_0-pure", "iq4_nl-pure", "q4_0", "iq4_nl", "q4_k_m", "q4_0-attn-q8_0", "iq4_nl-attn-q8_0", "q8_0",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rejected:
    """A candidate that failed the gate or could not be made. ``bytes``: size of its bundle, if it was."""

    candidate: Candidate
    reasons: tuple[str, ...]
    bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized bundle, its figures, and the candidates rejected before it, in order."""

    bundle: Bundle
    candidate: Candidate
    backbone: BackboneReport
    quality: GateResult
    report: Report  # of verify; without cases if the source was not proven
    rejected: tuple[Rejected, ...]

    def to_dict(self) -> dict[str, Any]:
        """Chosen precisions, gate figures, and rejected candidates with their reasons."""
        return {
            **asdict(self.candidate),
            "quality": self.quality.to_dict(),
            "rejected": [
                {**asdict(each.candidate), "bytes": each.bytes, "reasons": list(each.reasons)}
                for each in self.rejected
            ],
        }


def needs_gate(vision: str, backbone: str) -> bool:
    """Whether an export with these precisions goes through the gate; ``verify`` alone proves the rest."""
    return vision in ("int8", "auto") or backbone not in LOGITS_TOLERANCE


def choose_gate(
    vision: EncoderChoice | None, backbone: BackboneChoice, exporter: Exporter, config: GateConfig
) -> tuple[EncoderChoice, GateConfig | None]:
    """Encoder precision of an export, and what its bundle is measured with; None if it needs no gate.

    Args:
        vision: None: the smallest whose features of the calibration tiles pass; no question is asked, unless
            a coarser backbone, questions or a limit call for it.
        backbone: Precision of the language model.
        exporter: Writer of the encoder's graph.
        config: What the user asked for.

    Raises:
        UsageError: Options that exclude each other.
    """
    quick = vision is None and exporter == "onevision" and not needs_gate("fp32", backbone)
    if vision is None:
        vision = "auto" if quick else "fp32" if exporter == "optimum" else "int8"
    gated = needs_gate(vision, backbone)
    if exporter == "optimum" and (gated or vision != "fp32"):
        raise UsageError(
            "--exporter optimum writes fp32, which cannot be quantized afterwards",
            hint="leave out --exporter, or --vision and a --backbone coarser than q8_0",
        )
    if gated:
        asked = config.questions is not None or config.limit is not None
        return vision, config if asked or not quick else replace(config, questions=())
    if (config.questions, config.limit, config.calibration, config.imatrix) != (None,) * 4:
        raise UsageError(
            "--calibration, --imatrix, --no-imatrix, --questions and --limit are for the quality gate",
            hint="with --vision int8 or auto, or a --backbone coarser than q8_0",
        )
    return vision, None


def quantize(
    source: Bundle | Path,
    target: Path,
    *,
    vision: EncoderChoice = "auto",
    backbone: BackboneChoice = "auto",
    calibration: Path | None = None,
    imatrix: Path | bool | None = None,
    questions: Path | Questions | None = None,
    limit: int | None = None,
    thresholds: Thresholds | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a bundle in floats, if its answers stay the same.

    Args:
        source: The bundle: fp32 or fp16, and f32, f16 or bf16.
        target: Folder of the new bundle; it must not exist, or be empty, unless ``force``.
        vision: Precision of the vision encoder; auto: the smallest that passes the gate.
        backbone: The same of the language model.
        calibration: This and the next five as in :class:`~onevision.quant.candidates.GateConfig`.
        imatrix: Importance matrix.
        questions: Questions to measure with.
        limit: Maximum number of questions.
        thresholds: Limits of the gate; None for the defaults.
        threads: CPU threads.
        force: Replace a bundle at ``target``, and write one that fails the gate.
        progress: Progress reporter; None for the log.

    Raises:
        UsageError: Something stands at ``target``, or a precision is finer than the source's.
        QuantError: The source is quantized already or cannot be, or the result fails the gate.
        OneVisionError: Unusable input, no disk space, or a native library refused the work.
    """
    bundle = open_bundle(source) if isinstance(source, Path) else source
    check_source(bundle, vision, backbone)
    config = GateConfig(questions, limit, calibration, None, imatrix, thresholds or Thresholds(), threads)
    config.check()
    with write_bundle(target, force=force) as folder, scratch_folder(folder) as scratch:
        quantizer = Quantizer(bundle, scratch, config, progress or LogProgress())
        done = _Search(quantizer, folder).run(vision, backbone, force=force)
    return replace(done, bundle=replace(done.bundle, folder=target))


def export_quantized(
    checkpoint: FetchedCheckpoint,
    target: Path,
    options: ExportOptions,
    config: GateConfig,
    progress: Progress,
    *,
    vision: EncoderChoice,
    backbone: BackboneChoice,
) -> Quantized:
    """Export a checkpoint to a quantized bundle, by way of a temporary bundle in floats.

    Args:
        checkpoint: On this machine.
        target: As in :func:`quantize`.
        options: Names, prefill graph, threads and force; the precisions are those below.
        config: What to measure with.
        progress: Progress reporter.
        vision: As in :func:`quantize`.
        backbone: As in :func:`quantize`.

    Raises:
        OneVisionError: See :func:`quantize` and :func:`onevision.export.build.export`.
    """
    tower = checkpoint.vision_tower
    with Checkpoint.open(checkpoint.folder, adapter=checkpoint.adapter, vision_tower=tower) as opened:
        own, needed = own_type(opened), _needed_bytes(opened, prefill=options.prefill is not None)
    floats = replace(
        options,
        vision=vision if vision in ("fp32", "fp16") else "fp32",
        backbone=own if backbone == "auto" or backbone not in FLOAT_BYTES else backbone,
        force=False,
    )
    with (
        write_bundle(target, force=options.force) as folder,
        disk_space(folder, needed),
        scratch_folder(folder) as scratch,
    ):
        source = export(checkpoint, scratch / "floats", floats, progress).bundle
        quantizer = Quantizer(source, scratch, config, progress)
        done = _Search(quantizer, folder).run(vision, backbone, force=options.force)
    return replace(done, bundle=replace(done.bundle, folder=target))


def _needed_bytes(checkpoint: Checkpoint, *, prefill: bool) -> int:
    """Disk space for the bundle in floats, and for what is made of it on the way: an upper bound."""
    weights = {name: prod(checkpoint.shape(name)) for name in checkpoint.names}
    backbone = sum(count for name, count in weights.items() if name.startswith(TEXT_PREFIX))
    tower, graph = sum(weights.values()) - backbone, backbone if prefill else 0
    floats = 4 * tower + checkpoint.bytes_of(TEXT_PREFIX) + graph
    quantizing, copying = 8 * tower, 4 * tower + int(QUANTIZED_BYTES * backbone) + graph
    return floats + max(quantizing, copying)


class _Search:
    """Tries candidates in one folder, which holds the files of the last one."""

    def __init__(self, quantizer: Quantizer, folder: Path) -> None:
        self._quantizer, self._folder, self._note = quantizer, folder, quantizer.progress.note
        self._rejected: list[Rejected] = []
        self._results: dict[Candidate, GateResult] = {}
        self._int8_limit = inf  # bytes from which on an int8 encoder is no gain

    def run(self, vision: EncoderChoice, backbone: BackboneChoice, *, force: bool) -> Quantized:
        """Find a candidate, verify it, and write card and manifest.

        Raises:
            QuantError: It fails the gate, and ``force`` is not set.
        """
        candidate, bundle, result = self._find(vision, backbone)
        proof = self._quantizer.verify(bundle)
        reasons = (*result.reasons, *_failed_stages(proof))
        if reasons and not force:
            raise QuantError(
                f"{candidate.name} fails the quality gate: {'; '.join(reasons)}",
                hint="nothing was written; --vision auto --backbone auto finds precisions that pass, "
                "--force writes the bundle anyway",
            )
        config = {"thresholds": asdict(self._quantizer.config.thresholds), "imatrix": candidate.imatrix}
        written = report(bundle.path(BACKBONE), RECIPES[candidate.backbone])
        quality = bundle.manifest.quality
        if result.reasons or result.features or result.tokens:
            quality = quality | {"gate": result.to_dict() | config}
        bundle = seal(self._folder, bundle.manifest, proof, **quality)
        rejected = tuple(each for each in self._rejected if each.candidate != candidate)
        return Quantized(bundle, candidate, written, result, proof, rejected)

    def _find(self, vision: EncoderChoice, backbone: BackboneChoice) -> tuple[Candidate, Bundle, GateResult]:
        """The first candidate that passes, or the last.

        If both precisions are auto, the encoder is found first, with the source's own backbone: backbones
        are then tried once, not with every encoder.
        """
        source, config = self._quantizer.source, self._quantizer.config
        own_vision, own_backbone = precisions_of(source)
        visions: Sequence[EncoderPrecision]
        if vision != "auto":
            visions = (vision,)
        else:
            visions = ("int8", "fp16", "fp32") if own_vision == "fp32" else ("int8", "fp16")
            self._int8_limit = _encoder_bytes(source) / (2 if own_vision == "fp32" else 1)
        backbones: Sequence[BackbonePrecision]
        if backbone != "auto":
            backbones = (backbone,)
        else:
            backbones = _smallest_first(source, own_backbone)
            if visions != (own_vision,):
                found = self._first_to_pass([Candidate(each, own_backbone) for each in visions])
                if not found[-1].passed:
                    return found
                visions = (found[0].vision,)
        return self._first_to_pass(
            [
                Candidate(encoder, name, weighted)
                for name in backbones
                for encoder in visions
                for weighted in config.imatrix_choices(name)
            ]
        )

    def _first_to_pass(self, candidates: Sequence[Candidate]) -> tuple[Candidate, Bundle, GateResult]:
        *others, last = candidates
        for candidate in others:
            try:
                bundle, result = self._try(candidate)
            except ExportError as error:  # a weight beyond fp16, say: the next may do better
                self._reject(candidate, (error.message,))
                continue
            if result.passed:
                return candidate, bundle, result
        return last, *self._try(last)

    def _try(self, candidate: Candidate) -> tuple[Bundle, GateResult]:
        for path in self._folder.iterdir():
            path.unlink()
        bundle = self._quantizer.make(candidate, self._folder)
        size = _encoder_bytes(bundle)
        if candidate.vision == "int8" and size >= self._int8_limit:
            raise ExportError(
                f"with the matmuls that have to stay in fp32, its encoder takes {readable(size)}, "
                f"and {readable(int(self._int8_limit))} in fp16"
            )
        if candidate not in self._results:
            self._results[candidate] = self._quantizer.measure(bundle, to_the_end=False)
        result = self._results[candidate]
        if result.passed:
            self._note(f"{candidate.name} passes, {readable(bundle.bytes)}")
        else:
            self._reject(candidate, result.reasons, bundle.bytes)
        return bundle, result

    def _reject(self, candidate: Candidate, reasons: tuple[str, ...], size: int | None = None) -> None:
        self._rejected.append(Rejected(candidate, reasons, size))
        self._note(f"{candidate.name} is rejected: {'; '.join(reasons)}")


def _smallest_first(source: Bundle, own: BackbonePrecision) -> list[BackbonePrecision]:
    """Backbones of auto by their true size, llama.cpp's fallback types included."""
    floats = (own,) if own == "f16" else ("f16", own)
    path = source.path(BACKBONE)
    return sorted((*AUTO, *floats), key=lambda name: predicted_bits(path, RECIPES[name]))


def _encoder_bytes(bundle: Bundle) -> int:
    return sum(bundle.manifest.files[name].bytes for name in (VISION, VISION_DATA))


def _failed_stages(proof: Report) -> Iterator[str]:
    """Stages that differ from the reference by more than any precision explains."""
    for case in proof.cases:
        for stage in case.stages:
            if stage.passed is False:
                yield f"verify: {stage.stage} of the {case.name} case"
