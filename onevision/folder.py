"""Folders that are there whole or not at all: made under another name beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onevision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_vacant(target: Path) -> bool:
    """Whether a folder can be made at ``target`` with nothing lost: there is none, or an empty one.

    Raises:
        UsageError: There is something that is no folder.
    """
    if target.is_dir():
        return not any(target.iterdir())
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists and is not a folder")
    return True


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` if the body ends well.

    A folder that stands there is replaced: whether it may be is for the caller to say.

    Yields:
        The folder to fill. On any exception, Ctrl-C included, it is removed and ``target`` is untouched.

    Raises:
        UsageError: The parent folder cannot be written.
    """
    target = target.resolve()  # what a link leads to is replaced, not the link
    parent = target.parent
    made = _make_parents(parent)
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=parent))
    except OSError as error:
        _remove_empty(made)
        raise UsageError(f"cannot write in {parent}: {error.strerror}") from error
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        _swap(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        _remove_empty(made)
        raise


def _make_parents(parent: Path) -> list[Path]:
    """Make the missing parents; returns them, deepest first, so that a failure can take them away again."""
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


def _umask() -> int:
    """The process's umask: mkdtemp makes private folders, this one is as readable as any other."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _swap(work: Path, target: Path) -> None:
    """Rename ``work`` to ``target``; an old folder there steps aside first and is deleted after."""
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
