"""The default bundle: the tiny model that comes with the package, exported once into the user's cache.

The folder is ``ONEVISION_CACHE``, or else what the system has for caches. A bundle's name there has the
package's version and a hash of the checkpoint, so that an update of either makes another one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from onevision import __version__
from onevision.bundle import open_bundle, sha256_of
from onevision.errors import BundleError, ExportError, UsageError
from onevision.export import missing_packages
from onevision.models import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onevision.export.build import Steps

SIZE, VARIANT = "tiny", "ov"

_LOG = logging.getLogger(__name__)
#: Bundles of any version, and what an export that was killed left behind; of nobody else's.
_OURS = re.compile(rf"{SIZE}-.+-[0-9a-f]{{16}}|\.{SIZE}-.+-[0-9a-f]{{16}}\..+\.(partial|old)")


def default_bundle(steps: Steps | None = None) -> Path:
    """Folder of the default bundle, in full precision. It is made if it is not there, or damaged.

    Making it takes some 20 seconds and the extra ``export``. Another process that wants it waits meanwhile.

    Args:
        steps: Told what goes on if it has to be made; None: the log is.

    Raises:
        UsageError: It has to be made, and the extra ``export`` is not installed.
        ExportError: The cache cannot be written.
    """
    cache = cache_folder()
    bundle = cache / f"{SIZE}-{__version__}-{_digest(SHIPPED[SIZE, VARIANT])}"
    if _is_sound(bundle):
        return bundle
    if missing := missing_packages():
        raise UsageError(
            f"no bundle was given, and making the default one needs {', '.join(missing)}",
            hint="pip install 'onevision[export]', or name a bundle: -m FOLDER",
        )
    steps = steps or _LogSteps()
    with _lock(cache, steps):
        if not _is_sound(bundle):  # nobody else made it meanwhile
            _make(bundle, steps)
    return bundle


def cache_folder() -> Path:
    """Where this package keeps what it makes for itself; the folder need not be there."""
    if folder := os.environ.get("ONEVISION_CACHE"):
        return Path(folder).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("onevision", appauthor=False)


def _digest(checkpoint: Path) -> str:
    """16 hex digits of the checkpoint's names and contents: 14 MB, read in some 10 ms."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    listing = "\n".join(f"{sha256_of(path)} {path.name}" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _is_sound(bundle: Path) -> bool:
    try:
        open_bundle(bundle)
    except BundleError:
        return False
    return True


def _make(bundle: Path, steps: Steps) -> None:
    steps.note(f"the {SIZE} model is exported once, into {bundle.parent}")
    from onevision.export import hub
    from onevision.export.build import ExportOptions, export

    if bundle.exists():
        steps.note("the bundle that is there is damaged")
        shutil.rmtree(bundle, ignore_errors=True)
    source = hub.fetch(hub.resolve(size=SIZE, variant=VARIANT), progress=False, notify=steps.note)
    export(source, bundle, ExportOptions(backbone="f32", size=SIZE, variant=VARIANT), steps)
    for other in bundle.parent.iterdir():
        if other != bundle and _OURS.fullmatch(other.name):
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _lock(cache: Path, steps: Steps) -> Iterator[None]:
    """One process at a time."""
    from filelock import FileLock, Timeout

    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{SIZE}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            steps.note(f"another process is exporting the {SIZE} model: waiting for it")
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


class _LogSteps:
    """Steps of an export for the log, which nobody sees unless they ask for it."""

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[float], None]]:
        _LOG.info(name)
        yield lambda _fraction: None

    def note(self, text: str) -> None:
        _LOG.info(text)
