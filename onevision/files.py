"""Files and folders that appear whole or not at all, disk space, and the cache folder.

Everything is written under a temporary name beside its target, flushed to the disk and renamed: an
interrupted program or a power cut leaves the old file or the new one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onevision.errors import ExportError, OneVisionError, UsageError


def cache_folder() -> Path:
    """Folder for bundles and measurements: ``ONEVISION_CACHE``, or the system's; it may not exist yet."""
    if folder := os.environ.get("ONEVISION_CACHE"):
        return Path(folder).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("onevision", appauthor=False)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's contents, which are not held in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable(size: int) -> str:
    """Bytes in words: ``1.8 GB``."""
    if size < 1e6:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


@contextmanager
def disk_space(folder: Path, needed: int) -> Iterator[None]:
    """Check that ``folder`` has room for ``needed`` bytes; an error of the disk in the body names that need.

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
def os_errors(what: str, kind: type[OneVisionError], hint: str | None = None) -> Iterator[None]:
    """Report what the operating system refuses: ``cannot <what>: <reason>``, of class ``kind``."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot {what}: {error.strerror or error}", hint=hint) from error


@contextmanager
def whole_file(target: Path, needed: int) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``target`` if the body succeeds and is removed otherwise.

    Args:
        target: File to make or replace.
        needed: Bytes that will be written.

    Raises:
        ExportError: See :func:`disk_space`.
    """
    folder = target.absolute().parent
    with disk_space(folder, needed), scratch_folder(target) as scratch:
        part = scratch / target.name
        yield part
        _flush(part)
        part.replace(target)
        _flush(folder)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target``, so that a rename out of it stays on one disk; always removed."""
    parent = target.absolute().parent
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", dir=parent, ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)


def is_vacant(target: Path) -> bool:
    """Whether ``target`` does not exist or is an empty folder.

    Raises:
        UsageError: It is a file or a broken link.
    """
    if target.is_dir():
        return not any(target.iterdir())
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists and is not a folder")
    return True


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; it becomes ``target`` if the body succeeds.

    An existing folder is replaced: the caller decides whether it may be. On any exception, Ctrl-C included,
    the temporary folder is removed and ``target`` is untouched.

    Raises:
        UsageError: The parent folder cannot be written.
    """
    target = target.resolve()  # the folder behind a link is replaced, not the link
    parent = target.parent
    made = _make_parents(parent)
    # Not mkdtemp, which makes private folders: this one gets the user's umask.
    work = parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        work.mkdir()
    except OSError as error:
        _remove_empty(made)
        raise UsageError(f"cannot write in {parent}: {error.strerror}") from error
    try:
        yield work
        for path in work.rglob("*"):
            _flush(path)
        _flush(work)
        _swap(work, target)
        _flush(parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        _remove_empty(made)
        raise


def _flush(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    if sys.platform == "win32":
        if path.is_dir():  # Windows keeps names by itself, and cannot flush a folder
            return
        handle = os.open(path, os.O_RDWR)
    else:
        handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_parents(parent: Path) -> list[Path]:
    """Make the missing parents; return them, deepest first, so that a failure can remove them again."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise UsageError(f"cannot make the folder {parent}: {error.strerror}") from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _swap(work: Path, target: Path) -> None:
    """Rename ``work`` to ``target``; an old folder there is renamed first and deleted after."""
    if not target.exists():
        work.rename(target)
        return
    old = work.with_suffix(".old")
    target.rename(old)
    try:
        work.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
