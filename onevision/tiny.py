"""The default bundle: the tiny model that comes with the package, exported once into the user's cache."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from onevision.bundle import sha256_of
from onevision.export.cached import cached_bundle
from onevision.models import SHIPPED

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.progress import Progress

SIZE, VARIANT = "tiny", "ov"


def default_bundle(progress: Progress | None = None) -> Path:
    """Folder of the default bundle, in full precision. It is made if it is not there, or damaged.

    Making it takes some 20 seconds and the extra ``export``. Another process that wants it waits meanwhile.

    Args:
        progress: Told what goes on if it has to be made; None: the log is.

    Raises:
        UsageError: It has to be made, and the extra ``export`` is not installed.
        ExportError: The cache cannot be written.
    """
    return cached_bundle(
        SIZE,
        _digest(SHIPPED[SIZE, VARIANT]),
        _make,
        progress,
        what=f"the {SIZE} model",
        without=("no bundle was given, and making the default one", "name a bundle: -m FOLDER"),
    )


def _digest(checkpoint: Path) -> str:
    """16 hex digits of the checkpoint's names and contents: 14 MB, read in some 10 ms."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    listing = "\n".join(f"{sha256_of(path)} {path.name}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _make(bundle: Path, progress: Progress) -> None:
    from onevision.export import hub
    from onevision.export.build import ExportOptions, export

    source = hub.fetch(hub.resolve(size=SIZE, variant=VARIANT), progress=False, notify=progress.note)
    export(source, bundle, ExportOptions(backbone="f32", size=SIZE, variant=VARIANT), progress)
