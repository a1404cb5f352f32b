"""The export, from a checkpoint to a proven bundle.

``checkpoint -> vision.onnx -> backbone.gguf -> prefill.onnx -> image_newline.npy -> golden.npz -> verify ->
README.md``; the prefill graph only on demand.
Everything is made in a temporary folder that becomes the bundle only after its own verification passed.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
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
from onevision.export.checkpoint import Checkpoint
from onevision.export.config import IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.seal import seal, tool_versions
from onevision.export.shape import qwen_shape
from onevision.export.tensors import TEXT_PREFIX
from onevision.export.tokenizer import read_tokenizer
from onevision.export.vision import export_vision
from onevision.graphs.qwen2 import write_prefill
from onevision.models.shapes import backbone_info, video_info, vision_info
from onevision.proof.golden import save_golden
from onevision.proof.reference import Reference, fits_in_memory, golden_cases
from onevision.proof.verify import Report, verify
from onevision.runtime.engine import OneVision
from onevision.runtime.prompt import DEFAULT_SYSTEM

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.export.hub import FetchedCheckpoint
    from onevision.export.vision import VisionPrecision
    from onevision.graphs.qwen2 import PrefillPrecision
    from onevision.native.quantize import BackboneReport
    from onevision.precisions import BackbonePrecision
    from onevision.progress import Progress


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a checkpoint."""

    vision: VisionPrecision = "fp32"
    backbone: BackbonePrecision = "q8_0"
    prefill: PrefillPrecision | None = None  # None: no prefill graph
    size: str | None = None  # for the manifest
    variant: str | None = None  # for the manifest
    name: str | None = None  # None: the repository's or folder's
    threads: int | None = None
    force: bool = False  # replace a bundle that is there
    prove: bool = True  # compare it with the reference; else it has no reference vectors either


@dataclass(frozen=True)
class Exported:
    """A bundle just written. ``report`` has no cases if it was not to be proven."""

    bundle: Bundle
    backbone: BackboneReport
    report: Report


def export(source: FetchedCheckpoint, target: Path, options: ExportOptions, progress: Progress) -> Exported:
    """Make a bundle of a checkpoint, and prove it, unless the options say otherwise.

    Args:
        source: A checkpoint on this machine.
        target: Folder of the bundle; it must not exist, or be empty, unless ``options.force``.
        options: Precisions and names.
        progress: Told what goes on.

    Raises:
        UsageError: Something stands at ``target``.
        CheckpointError: The checkpoint is damaged, or of something else.
        ExportError: A conversion failed, or its result is not what the reference computes.
    """
    check_target(target, force=options.force)
    with Checkpoint.open(source.folder) as checkpoint, write_bundle(target, force=options.force) as folder:
        banned = read_tokenizer(checkpoint.folder, checkpoint.config).never_sampled
        name = options.name or (source.repo or source.folder.resolve().name).split("/")[-1]
        with progress.step(f"vision encoder to ONNX ({options.vision})"):
            export_vision(checkpoint, folder / VISION, precision=options.vision)
        _release_memory()
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
        precisions: dict[str, str] = {
            VISION: options.vision,
            VISION_DATA: options.vision,
            BACKBONE: options.backbone,
        }
        if options.prefill:
            precisions.update({PREFILL: options.prefill, PREFILL_DATA: options.prefill})
            with progress.step(f"prefill graph to ONNX ({options.prefill})") as advance:
                write_prefill(
                    folder / PREFILL,
                    qwen_shape(checkpoint.config.text),
                    lambda tensor: checkpoint.tensor(TEXT_PREFIX + tensor),
                    precision=options.prefill,
                    advance=advance,
                )
        newline = checkpoint.tensor("model.image_newline").astype(np.float32)
        np.save(folder / NEWLINE, newline, allow_pickle=False)
        if options.prove:
            _write_golden(checkpoint, folder / GOLDEN, banned, progress)
        manifest = _manifest(checkpoint, source, options, name, backbone)
        manifest = replace(manifest, files=files_of(folder.iterdir(), precisions))
        report = Report(())
        if options.prove:
            with progress.step("verifying the bundle"):
                report = _prove(Bundle(folder, manifest), options.threads)
        bundle = seal(folder, manifest, backbone, report)
    return Exported(replace(bundle, folder=target), backbone, report)


def _write_golden(checkpoint: Checkpoint, path: Path, banned: tuple[int, ...], progress: Progress) -> None:
    whole = fits_in_memory(checkpoint)
    if not whole:
        progress.note(
            "the language model is too large for this memory: its reference ends at the visual tokens"
        )
    with progress.step("reference vectors"):
        save_golden(path, golden_cases(Reference(checkpoint, backbone=whole), banned))
    _release_memory()


def _release_memory() -> None:
    """Give back what freed weights took: a model is cyclic garbage, and glibc keeps freed blocks for later.

    Without it the encoder's 1.6 GB are still held when the reference needs 3.6 GB.
    """
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _prove(bundle: Bundle, threads: int | None) -> Report:
    """Verify the files just written.

    Raises:
        ExportError: The bundle does not compute what the reference does.
    """
    from onevision.proof.golden import load_golden

    with OneVision(bundle, device="cpu", threads=threads) as model:
        report = verify(model, load_golden(bundle.path(GOLDEN)))
    for case in report.cases:
        for stage in case.stages:
            if stage.passed is False:
                error = stage.relative_error if stage.relative_error is not None else stage.max_error
                raise ExportError(
                    f"the bundle is not what the reference computes: {stage.stage} of the {case.name} case "
                    f"differ by {error} (tolerance {stage.tolerance})",
                    hint="nothing was written; see if --vision fp32 --backbone f32 does better",
                )
    return report


def _manifest(
    checkpoint: Checkpoint,
    source: FetchedCheckpoint,
    options: ExportOptions,
    name: str,
    backbone: BackboneReport,
) -> Manifest:
    config = checkpoint.config
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        size=options.size,
        variant=options.variant,
        # Of a local folder only the name is kept: paths of this machine are nobody's business.
        source=SourceInfo(source.repo or source.folder.resolve().name, source.revision, config.format),
        created_by={"torch": version("torch"), **tool_versions()},
        vision=vision_info(config),
        backbone=backbone_info(config, backbone.bits_per_weight),
        prompt=PromptInfo("training", DEFAULT_SYSTEM, IMAGE_TOKEN, VIDEO_TOKEN),
        video=video_info(config),
    )
