"""The export, from a checkpoint to a bundle.

``checkpoint -> vision.onnx -> backbone.gguf -> prefill.onnx -> image_newline.npy -> golden.npz -> verify ->
README.md``; the prefill graph on demand, reference vectors and proof with the extra ``proof``.
All files are written to a temporary folder, which becomes the bundle when it is complete and verified.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onevision.bundle import (
    BACKBONE,
    GOLDEN,
    NEWLINE,
    PREFILL,
    PREFILL_DATA,
    SCHEMA_VERSION,
    VISION,
    VISION_DATA,
    Bundle,
    Manifest,
    PromptInfo,
    SourceInfo,
    check_target,
    files_of,
    write_bundle,
)
from onevision.errors import ExportError
from onevision.export.backbone import export_backbone
from onevision.export.card import seal, tool_versions, writer_versions
from onevision.export.checkpoint import Checkpoint
from onevision.export.config import IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.template import choose_template
from onevision.export.tensors import TEXT_PREFIX
from onevision.export.tokenizer import read_tokenizer
from onevision.export.vision import export_vision
from onevision.extras import missing
from onevision.graphs.qwen2 import write_prefill
from onevision.models.shapes import backbone_info, video_info, vision_info
from onevision.proof.verify import Report
from onevision.runtime.options import TemplateChoice
from onevision.runtime.prompt import DEFAULT_SYSTEM

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.export.hub import FetchedCheckpoint
    from onevision.native.quantize import BackboneReport
    from onevision.precisions import BackbonePrecision, Exporter, PrefillPrecision, VisionPrecision
    from onevision.progress import Progress


@dataclass(frozen=True)
class ExportOptions:
    """Precisions and names of a bundle, and whether it is proven."""

    vision: VisionPrecision = "fp32"
    exporter: Exporter = "onevision"  # of the encoder
    backbone: BackbonePrecision = "q8_0"
    prefill: PrefillPrecision | None = None  # None: no prefill graph
    size: str | None = None  # for the manifest
    variant: str | None = None  # for the manifest
    template: TemplateChoice = "auto"  # prompt format
    name: str | None = None  # None: the repository's or folder's
    threads: int | None = None
    force: bool = False  # replace an existing bundle
    prove: bool = True  # compare with the reference, where that can be had


@dataclass(frozen=True)
class Exported:
    """A bundle just written. ``report`` has no cases if it is unproven."""

    bundle: Bundle
    backbone: BackboneReport
    report: Report


def export(source: FetchedCheckpoint, target: Path, options: ExportOptions, progress: Progress) -> Exported:
    """Make a bundle of a checkpoint, and prove it.

    The reference is transformers, with the extra ``proof``, or reference vectors beside the checkpoint
    (``golden.npz``; the tiny model has them). Without either, the bundle is unproven.

    Args:
        source: A checkpoint on this machine.
        target: Folder of the bundle; it must not exist, or be empty, unless ``options.force``.
        options: Precisions and names.
        progress: Receives steps and notes.

    Raises:
        UsageError: ``target`` exists.
        CheckpointError: The checkpoint is damaged, or of another model.
        ExportError: A conversion failed, or the bundle differs from the reference.
    """
    check_target(target, force=options.force)
    with (
        Checkpoint.open(
            source.folder, adapter=source.adapter, vision_tower=source.vision_tower
        ) as checkpoint,
        write_bundle(target, force=options.force) as folder,
    ):
        # Both before minutes of work.
        tokenizer = read_tokenizer(checkpoint.folder, checkpoint.config)
        prompt = choose_template(
            checkpoint.folder,
            checkpoint.config.format,
            options.template,
            repo=source.repo,
            tokens=tokenizer.tokens,
        )
        if prompt.note:
            progress.note(prompt.note)
        name = options.name or (source.repo or source.folder.resolve().name).split("/")[-1]
        backbone = _write_models(checkpoint, folder, options, name, progress)
        versions = writer_versions() | _write_golden(checkpoint, folder / GOLDEN, options, progress)
        has_golden = (folder / GOLDEN).is_file()
        if options.prove and has_golden:
            versions |= tool_versions()
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=name,
            size=options.size,
            variant=options.variant,
            # The name of a local folder, without its path.
            source=SourceInfo(
                source.repo or source.folder.resolve().name,
                source.revision,
                checkpoint.config.format,
                adapter=source.adapter.resolve().name if source.adapter else None,
            ),
            created_by=versions,
            vision=vision_info(checkpoint.config),
            backbone=backbone_info(checkpoint.config, backbone.bits_per_weight),
            prompt=PromptInfo(
                prompt.template,
                DEFAULT_SYSTEM,
                IMAGE_TOKEN,
                VIDEO_TOKEN,
                prompt.chat_template,
                tokenizer.added,
            ),
            video=video_info(checkpoint.config),
            files=files_of(folder.iterdir(), _precisions(options)),
        )
        report = Report(())
        if options.prove and has_golden:
            with progress.step("verifying the bundle"):
                report = _prove(Bundle(folder, manifest), options.threads)
        elif options.prove:
            progress.note(
                "unproven: not compared with transformers, which needs pip install 'onevision[proof]'; "
                f"later: onevision verify -m {target} --reference CHECKPOINT --write"
            )
        bundle = seal(folder, manifest, report)
    return Exported(replace(bundle, folder=target), backbone, report)


def _write_models(
    checkpoint: Checkpoint, folder: Path, options: ExportOptions, name: str, progress: Progress
) -> BackboneReport:
    """Write encoder, backbone, prefill graph and newline."""
    with progress.step(f"vision encoder to ONNX ({options.vision})") as advance:
        export_vision(
            checkpoint, folder / VISION, precision=options.vision, exporter=options.exporter, advance=advance
        )
    with progress.step(f"backbone to GGUF ({options.backbone})") as advance:
        backbone = export_backbone(
            checkpoint,
            folder / BACKBONE,
            options.backbone,
            name=name,
            threads=options.threads,
            advance=advance,
        )
    progress.note(backbone.summary)
    if options.prefill:
        with progress.step(f"prefill graph to ONNX ({options.prefill})") as advance:
            write_prefill(
                folder / PREFILL,
                checkpoint.config.text,
                lambda tensor: checkpoint.tensor(TEXT_PREFIX + tensor),
                precision=options.prefill,
                advance=advance,
            )
    newline = checkpoint.tensor("model.image_newline").astype(np.float32)
    np.save(folder / NEWLINE, newline, allow_pickle=False)
    return backbone


def _precisions(options: ExportOptions) -> dict[str, str]:
    """Precision by file name."""
    graph = dict.fromkeys((PREFILL, PREFILL_DATA), options.prefill) if options.prefill else {}
    return {VISION: options.vision, VISION_DATA: options.vision, BACKBONE: options.backbone, **graph}


def _write_golden(
    checkpoint: Checkpoint, path: Path, options: ExportOptions, progress: Progress
) -> dict[str, str]:
    """Write reference vectors, if they can be had; returns versions of the packages that computed them."""
    if not options.prove or missing("proof"):
        if (shipped := checkpoint.folder / GOLDEN).is_file() and not checkpoint.is_adapted:
            shutil.copyfile(shipped, path)
        return {}
    from onevision.export.reference import load_reference, reference_versions
    from onevision.proof.golden import save_golden
    from onevision.proof.reference import golden_cases

    with progress.step("reference vectors"):
        save_golden(path, golden_cases(load_reference(checkpoint, progress)))
    _release_memory()
    return reference_versions()


def _release_memory() -> None:
    """Give back the reference's memory: a model is cyclic garbage, and glibc keeps freed blocks for later."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _prove(bundle: Bundle, threads: int | None) -> Report:
    """Verify the files just written.

    Raises:
        ExportError: The bundle differs from the reference.
    """
    from onevision.proof.golden import golden_of
    from onevision.proof.verify import verify
    from onevision.runtime.engine import OneVision

    with OneVision(bundle, device="cpu", threads=threads) as model:
        report = verify(model, golden_of(bundle))
    for case, stage in report.failures:
        error = stage.relative_error if stage.relative_error is not None else stage.max_error
        raise ExportError(
            f"the bundle differs from the reference: {stage.stage} of the {case.name} case by {error} "
            f"(tolerance {stage.tolerance})",
            hint="nothing was written; try --vision fp32 --backbone f32",
        )
    return report
