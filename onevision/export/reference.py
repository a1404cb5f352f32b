"""The reference of a checkpoint, and the proof of a bundle that was written without it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from onevision.bundle import CARD, GOLDEN, MANIFEST, Bundle, files_of, write_bundle
from onevision.export.seal import seal, tool_versions
from onevision.export.tokenizer import read_tokenizer
from onevision.proof.golden import save_golden
from onevision.proof.reference import Reference, fits_in_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.export.checkpoint import Checkpoint
    from onevision.progress import Progress
    from onevision.proof.golden import ReferenceCase
    from onevision.proof.verify import Report


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
    with write_bundle(bundle.folder, force=True) as folder:
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
