"""Bundles by name: what ``-m`` and the functions of :mod:`onevision` take.

A folder is itself. A size (``0.5b``, ``7b-si``) or a Hub id is fetched if the repository holds a bundle, and
exported once, into the cache, if it holds a checkpoint: with an int8 encoder whose features pass (fp16 on a
GPU), q8_0 and a prefill graph.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from onevision.bundle import MANIFEST, Bundle, open_bundle
from onevision.errors import BundleError, DownloadError, UsageError, closest
from onevision.export.cached import cached_bundle
from onevision.extras import missing, require
from onevision.files import cache_folder
from onevision.models import default_bundle
from onevision.models.shapes import PublishedSize, Variant, repositories
from onevision.progress import LogProgress, Progress

_MODELS = "models"  # folder in the cache
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
#: Published models by what they are called here.
PUBLISHED: dict[str, tuple[PublishedSize, Variant]] = {
    size if variant == "ov" else f"{size}-{variant}": (size, variant)
    for size in get_args(PublishedSize)
    for variant in get_args(Variant)
    if repositories(size, variant)
}
_INSTEAD = "name a bundle: -m FOLDER"


def named_bundle(name: str | os.PathLike[str] | None, progress: Progress | None = None) -> Path:
    """Folder of a bundle, which is fetched or made first if it has to be.

    Args:
        name: A folder, ``tiny``, a size with or without a variant, or a Hub id; None for the tiny model. A
            folder that exists comes first, and ``owner/name`` is a folder if there is a folder ``owner``.
        progress: Receives steps and notes; None for the log.

    Raises:
        BundleError: No such folder, or the tiny model's bundle is missing.
        UsageError: An unknown size, or the extra ``export`` is needed and not installed.
        DownloadError, CheckpointError, ExportError, QuantError: The bundle cannot be had.
    """
    text = "tiny" if name is None else os.fspath(name)
    if os.path.exists(text):  # noqa: PTH110 (never raises, whatever the name)
        return default_bundle() if name is None else Path(text)
    known = text.lower().removesuffix("-ov")
    if known == "tiny":
        return default_bundle()
    progress = progress or LogProgress()
    if known in PUBLISHED:
        return _exported(repositories(*PUBLISHED[known])[0], progress)
    if re.fullmatch(r"\d+(\.\d+)?b(-.*)?", known):
        raise UsageError(f"there is no size {text!r}", hint=_similar(known, PUBLISHED) or _sizes())
    if not _HUB_ID.fullmatch(text) or Path(text).parent.is_dir():
        raise BundleError(
            f"no bundle at {text}: there is no such folder",
            hint=_similar(text, [*PUBLISHED, *_bundles_beside(text)]) or _sizes(),
        )
    try:
        return _ready(text, progress) or _exported(text, progress)
    except DownloadError as error:
        raise DownloadError(f"there is no folder {text}, and {error.message}", hint=error.hint) from error


def _sizes() -> str:
    return f"-m takes a bundle's folder, a size ({', '.join(PUBLISHED)}) or a Hub id"


def _similar(name: str, known: Iterable[str]) -> str | None:
    close = closest(name, known)
    return f"did you mean {close}?" if close else None


def _bundles_beside(name: str) -> list[str]:
    """Bundles in the folder in which ``name`` is not."""
    parent = Path(name).parent
    try:
        return [str(path.parent) for path in parent.glob(f"*/{MANIFEST}")]
    except (OSError, ValueError):  # a name that cannot be one
        return []


def _place(repo: str) -> str:
    """A repository's bundle, as a path in the cache."""
    return f"{_MODELS}/{repo.replace('/', '--')}"


def _ready(repo: str, progress: Progress) -> Path | None:
    """Folder of the bundle that a repository holds; None if it holds a checkpoint, or was exported."""
    if (cache_folder() / _place(repo) / MANIFEST).is_file():
        return None
    require("export", f"fetching {repo}", instead=_INSTEAD)
    from onevision.export.ready import fetch_bundle

    progress.note(f"looking for {repo}")
    return fetch_bundle(repo, progress=sys.stderr.isatty())


def _exported(repo: str, progress: Progress) -> Path:
    """Folder of the bundle in the cache that is exported from a repository, once."""
    what = _called(repo)
    return cached_bundle(_place(repo), None, partial(_export, repo), progress, what=what, instead=_INSTEAD)


def _export(repo: str, target: Path, progress: Progress) -> None:
    from onevision.export import hub
    from onevision.export.build import ExportOptions
    from onevision.native.llama import can_offload
    from onevision.native.ort import has_cuda
    from onevision.quant.candidates import GateConfig
    from onevision.quant.search import export_quantized

    size, variant = PUBLISHED.get(_called(repo), (None, None))
    source = hub.resolve(size=size, variant=variant) if size and variant else hub.resolve(repo)
    fetched = hub.fetch(source, progress=sys.stderr.isatty(), notify=progress.note)
    export_quantized(
        fetched,
        target,
        ExportOptions(prefill=None if can_offload() else "int8", size=size, variant=variant),
        GateConfig(()),
        progress,
        vision="fp16" if has_cuda() else "auto",
        backbone="q8_0",
    )


def _called(repo: str) -> str:
    """Name of a repository on the command line: its size, or its id."""
    ours = {repositories(*model)[0]: name for name, model in PUBLISHED.items()}
    return ours.get(repo, repo)


@dataclass(frozen=True)
class StoredBundle:
    """A bundle in a cache. ``bundle`` is None if it is damaged."""

    name: str  # for -m, or of its folder
    folder: Path
    bundle: Bundle | None
    in_hub_cache: bool = False

    def remove(self) -> None:
        """Delete it.

        Raises:
            BundleError: The operating system refused.
        """
        try:
            # Half of it must never look like a bundle, so it is renamed first. The Hub's cache has a folder
            # per repository, with the files and links to them.
            whole = self.folder.parents[1] if self.in_hub_cache else self.folder
            shutil.rmtree(whole.rename(whole.with_name(f".{whole.name}.removed.old")))
        except OSError as error:
            raise BundleError(f"cannot remove {self.folder}: {error.strerror or error}") from error


def stored_bundles() -> Iterator[StoredBundle]:
    """Bundles in the cache, and ready ones in the Hub's."""
    cache = cache_folder()
    for path in sorted([*cache.glob(f"{_MODELS}/*/{MANIFEST}"), *cache.glob(f"*/{MANIFEST}")]):
        folder = path.parent
        if not folder.name.startswith("."):
            is_model = folder.parent.name == _MODELS
            name = _called(folder.name.replace("--", "/", 1)) if is_model else folder.name
            yield StoredBundle(name, folder, _opened(folder))
    if not missing("export"):
        from onevision.export.ready import cached_bundles

        for repo, folder in cached_bundles():
            yield StoredBundle(repo, folder, _opened(folder), in_hub_cache=True)


def stored_bundle(name: str) -> StoredBundle:
    """A bundle in a cache, by name.

    Raises:
        BundleError: There is none of that name.
    """
    found = {stored.name: stored for stored in stored_bundles()}
    known = _called(name) if "/" in name else name.lower().removesuffix("-ov")
    if stored := found.get(name) or found.get(known):
        return stored
    names = f"there are {', '.join(found)}" if found else "the cache has no bundle"
    raise BundleError(f"no bundle {name!r} in the cache", hint=_similar(known, found) or names)


def _opened(folder: Path) -> Bundle | None:
    try:
        return open_bundle(folder)
    except BundleError:
        return None
