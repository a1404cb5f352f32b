"""Files that are there whole or not at all, and disks that are full before the work rather than after."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onevision.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def disk_space(folder: Path, needed: int) -> Iterator[None]:
    """Check that ``folder`` has room for ``needed`` bytes; name the need if the disk says no all the same.

    Raises:
        ExportError: Too little space, or an operating system error while the body writes.
    """
    hint = f"{readable(needed)} are needed in {folder}"
    try:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ExportError(f"not enough disk space in {folder}: {readable(free)} are free", hint=hint)
        yield
    except OSError as error:
        # numpy's tofile gives a message without errno when the disk is full
        raise ExportError(f"cannot write in {folder}: {error.strerror or error}", hint=hint) from error


@contextmanager
def whole_file(target: Path, needed: int) -> Iterator[Path]:
    """A path to write to, which becomes ``target`` when the body ends well and vanishes when it does not.

    Args:
        target: The file to make or replace.
        needed: Bytes that will be written.

    Raises:
        ExportError: See :func:`disk_space`.
    """
    folder = target.absolute().parent
    with disk_space(folder, needed), scratch_folder(target) as scratch:
        part = scratch / target.name
        yield part
        part.replace(target)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target``, so that a rename out of it stays on one disk; always removed."""
    parent = target.absolute().parent
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", dir=parent, ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)


def readable(size: int) -> str:
    """Bytes as a person reads them: ``1.8 GB``."""
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
