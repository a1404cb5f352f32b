"""Bundles in the user's cache: made once, by one process, and replaced by those of the next version.

The folder is ``ONEVISION_CACHE``, or else what the system has for caches. A bundle's name there has the
package's version and a hash of what it is made of, so that an update of either makes another one.
"""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onevision._version import __version__
from onevision.bundle import open_bundle
from onevision.errors import BundleError, ExportError
from onevision.extras import require
from onevision.files import cache_folder
from onevision.progress import LogProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from onevision.progress import Progress


def cached_bundle(
    name: str,
    digest: str,
    make: Callable[[Path, Progress], object],
    progress: Progress | None,
    *,
    what: str,
    without: tuple[str, str],
) -> Path:
    """Folder of a bundle in the cache. It is made if it is not there, or damaged.

    Another process that wants it waits meanwhile. Bundles of this name and other versions or digests are
    deleted, and so is what a process left behind that was killed while it made one.

    Args:
        name: Of the bundle.
        digest: 16 hex digits of all that decides its contents, besides the version.
        make: Writes the bundle to the folder that it is given, which is not there, and tells the progress.
        progress: Told what goes on if it has to be made; None: the log is.
        what: What is made, for messages: "the tiny model".
        without: Where the extra ``export`` is missing: what it is needed for, and what to do instead.

    Raises:
        UsageError: It has to be made, and the extra ``export`` is not installed.
        ExportError: The cache cannot be written.
    """
    cache = cache_folder()
    bundle = cache / f"{name}-{__version__}-{digest}"
    if _is_sound(bundle):
        return bundle
    needing, instead = without
    require("export", needing, instead=instead)
    progress = progress or LogProgress()
    with _lock(cache, name, what, progress):
        if not _is_sound(bundle):  # nobody else made it meanwhile
            _remove(cache, rf"\.{_ours(name)}\..+\.(partial|old)")
            progress.note(f"{what} is exported once, into {cache}")
            if bundle.exists():
                progress.note("the bundle that is there is damaged")
                shutil.rmtree(bundle, ignore_errors=True)
            make(bundle, progress)
            _remove(cache, _ours(name), spare=bundle)
    return bundle


def _ours(name: str) -> str:
    """Pattern of bundles of a name, of any version; of nobody else's. Versions have no dash."""
    return rf"{re.escape(name)}-[^-]+-[0-9a-f]{{16}}"


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
    """One process at a time."""
    from filelock import FileLock, Timeout

    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.note(f"another process is exporting {what}: waiting for it")
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
