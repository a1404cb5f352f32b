"""Bundles in the user's cache: exported once, by one process.

The folder is ``ONEVISION_CACHE``, or the system's for caches. The name of a synthetic bundle has the
package's version and a digest of its inputs, and it is replaced by that of the next version; the bundle of a
checkpoint stays until it is removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onevision._version import __version__
from onevision.bundle import open_bundle
from onevision.errors import BundleError, ExportError
from onevision.extras import require
from onevision.files import cache_folder
from onevision.progress import LogProgress, Progress


def cached_bundle(
    name: str,
    digest: str | None,
    make: Callable[[Path, Progress], object],
    progress: Progress | None,
    *,
    what: str,
    instead: str,
) -> Path:
    """Folder of a bundle in the cache, which is exported if it is missing or damaged.

    Another process that asks for it waits meanwhile. Bundles of the same name with another version or digest
    are deleted, with what interrupted exports left behind.

    Args:
        name: Name of the bundle, as a path in the cache.
        digest: 16 hex digits of its inputs; None for a bundle that no version and no input replaces.
        make: Exports the bundle to a folder that does not exist.
        progress: Receives steps and notes of the export; None: the log.
        what: Name in messages: ``a 0.5b with random weights``.
        instead: Another way out for the hint where the extra ``export`` is missing.

    Raises:
        UsageError: It has to be exported, and the extra ``export`` is not installed.
        ExportError: The cache cannot be written.
    """
    bundle = cache_folder() / (f"{name}-{__version__}-{digest}" if digest else name)
    cache, stem = bundle.parent, name.rpartition("/")[2]
    if _is_sound(bundle):
        return bundle
    require("export", f"exporting {what}", instead=instead)
    progress = progress or LogProgress()
    with _lock(cache, stem, what, progress):
        if not _is_sound(bundle):  # no other process has exported it meanwhile
            versions = re.escape(stem) + (r"-[^-]+-[0-9a-f]{16}" if digest else "")
            _remove(cache, rf"\.{versions}\..+\.(partial|old)")
            progress.note(f"{what} is exported once, into {cache}")
            if bundle.exists():
                progress.note("the existing bundle is damaged")
                shutil.rmtree(bundle, ignore_errors=True)
            make(bundle, progress)
            _remove(cache, versions, spare=bundle)
    return bundle


def _remove(cache: Path, pattern: str, spare: Path | None = None) -> None:
    for other in cache.iterdir():
        if other != spare and re.fullmatch(pattern, other.name):
            shutil.rmtree(other, ignore_errors=True)


def _is_sound(bundle: Path) -> bool:
    try:
        open_bundle(bundle)
    except BundleError:
        return False
    return True


@contextmanager
def _lock(cache: Path, name: str, what: str, progress: Progress) -> Iterator[None]:
    """Let one process at a time into the body."""
    from filelock import FileLock, Timeout

    lock = FileLock(cache / f"{name}.lock")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.note(f"waiting for another process that exports {what}")
            lock.acquire()
    except OSError as error:
        raise ExportError(
            f"cannot write in the cache {cache}: {error.strerror or error}",
            hint="point ONEVISION_CACHE at a folder that can be written, or name a bundle: -m FOLDER",
        ) from error
    try:
        yield
    finally:
        lock.release()
