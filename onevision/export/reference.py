"""The reference of a checkpoint, and the proof of a bundle that was written without it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from onevision.bundle import CARD, GOLDEN, MANIFEST, Bundle, Manifest, files_of, write_bundle
from onevision.errors import CheckpointError
from onevision.export.card import seal, tool_versions
from onevision.export.checkpoint import Checkpoint
from onevision.export.tokenizer import read_tokenizer
from onevision.extras import require
from onevision.models.shapes import ModelConfig
from onevision.progress import Progress
from onevision.proof.golden import ReferenceCase, save_golden
from onevision.proof.reference import Reference, fits_in_memory, golden_cases
from onevision.proof.verify import Report
from onevision.runtime.images import ImageSource, read_image

#: Question of ``verify --reference --image``.
PROMPT = "What is in this picture?"


def load_reference(checkpoint: Checkpoint, progress: Progress) -> Reference:
    """Build the reference of a checkpoint, without its language model where the memory is too small.

    Needs the extra ``proof``.

    Raises:
        CheckpointError: The tokenizer cannot be read.
        ExportError: Tensors are missing.
    """
    whole = fits_in_memory(checkpoint)
    if not whole:
        progress.note(
            "the language model is too large for this memory: the reference ends at the visual tokens"
        )
    never_sampled = read_tokenizer(checkpoint.folder, checkpoint.config).never_sampled
    return Reference(checkpoint, backbone=whole, never_sampled=never_sampled)


def reference_versions() -> dict[str, str]:
    """Versions of the packages that compute reference vectors, for ``created_by``."""
    return {name: version(name) for name in ("torch", "transformers")}


def reference_cases(
    folder: Path, manifest: Manifest, images: Sequence[ImageSource], prompt: str | None, progress: Progress
) -> list[ReferenceCase]:
    """Run the reference on the user's images, or on the standard cases. Needs the extra ``proof``.

    Args:
        folder: Folder of the checkpoint.
        manifest: Manifest of its bundle.
        images: Images of the user; with neither images nor a prompt, the standard cases are run.
        prompt: Question about the images; None for :data:`PROMPT`.
        progress: Receives steps and notes.

    Raises:
        UsageError: The extra ``proof`` is not installed.
        CheckpointError: The checkpoint is damaged, or not the source of the bundle.
        ImageError: An image cannot be used.
    """
    require("proof", "verify --reference")
    pixels = [np.asarray(read_image(image)) for image in images]
    with Checkpoint.open(folder) as checkpoint, progress.step("running the reference"):
        _check_same_shape(checkpoint.config, manifest)
        live = load_reference(checkpoint, progress)
        if not images and prompt is None:
            return golden_cases(live)
        return [live.case("live", prompt or PROMPT, images=pixels)]


def _check_same_shape(config: ModelConfig, manifest: Manifest) -> None:
    """Check that the bundle may come from a checkpoint, before the reference runs in vain."""
    vision, backbone = manifest.vision, manifest.backbone
    shapes = {
        "tiles of": (config.vision.image_size, vision.image_size),
        "patches of": (config.vision.patch_size, vision.patch_size),
        "an encoder of hidden size": (config.vision.hidden_size, vision.hidden),
        "a backbone of hidden size": (config.text.hidden_size, backbone.hidden),
        "backbone layers:": (config.text.layers, backbone.layers),
        "a vocabulary of": (config.text.vocab_size, backbone.vocab_size),
    }
    for name, (theirs, ours) in shapes.items():
        if theirs != ours:
            raise CheckpointError(
                f"the checkpoint has {name} {theirs:,}, the bundle {ours:,}",
                hint=f"give the checkpoint that the bundle was made from, {manifest.source.repo}",
            )


def record_proof(bundle: Bundle, cases: Sequence[ReferenceCase], report: Report) -> Bundle:
    """Add reference vectors, and the result of the comparison with them, to a bundle.

    Args:
        bundle: The bundle, not loaded any more.
        cases: Reference cases, which go into ``golden.npz``.
        report: Result of :func:`onevision.proof.verify.verify` with these cases.

    Raises:
        UsageError: The folder cannot be written.
        BundleError: An error of the disk.
    """
    measured = {name: value for name, value in bundle.manifest.quality.items() if name != "verify"}
    with write_bundle(bundle.folder, update=True) as folder:
        replaced = shutil.ignore_patterns(GOLDEN, CARD, MANIFEST)
        shutil.copytree(bundle.folder, folder, copy_function=_link, ignore=replaced, dirs_exist_ok=True)
        save_golden(folder / GOLDEN, cases)
        manifest = replace(
            bundle.manifest,
            files=bundle.manifest.files | files_of([folder / GOLDEN], {}),
            created_by=bundle.manifest.created_by | reference_versions() | tool_versions(),
        )
        sealed = seal(folder, manifest, report, **measured)
    return replace(sealed, folder=bundle.folder)


def _link(source: str, target: str) -> None:
    """Make a hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
