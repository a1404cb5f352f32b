"""Bundles that lie on the Hub as they are: repositories with an ``onevision.json``.

In: a Hub id. Out: a folder of the Hub's own cache that holds the whole bundle, if the repository has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onevision.bundle import MANIFEST, NAMES, open_bundle
from onevision.errors import BundleError, DownloadError
from onevision.export.hub import check_disk_space, snapshot
from onevision.export.hub_errors import retried
from onevision.files import sha256_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


def fetch_bundle(repo: str, *, progress: bool) -> Path | None:
    """Folder of a repository's bundle, with what the cache lacks downloaded; None if it holds no bundle.

    A bundle that is in the cache is taken as it is: the Hub is not asked for a newer one.

    Args:
        repo: Hub id.
        progress: Let huggingface_hub draw progress bars on stderr.

    Raises:
        DownloadError: The Hub, the network or the disk failed, or a file arrived damaged.
        BundleError: It is no bundle that this version reads.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if folder := _find_cached(repo):
        return folder
    if constants.HF_HUB_OFFLINE:
        return None

    def ask() -> ModelInfo:
        return HfApi().model_info(repo, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)

    info = retried(ask, repo, None)
    files = [file for file in info.siblings or [] if file.rfilename in NAMES]
    names = [file.rfilename for file in files]
    if MANIFEST not in names:
        return None
    fresh = [
        file
        for file in files
        if not isinstance(try_to_load_from_cache(repo, file.rfilename, revision=info.sha), str)
    ]
    check_disk_space(repo, fresh)
    bundle = open_bundle(snapshot(repo, None, names, progress=progress))
    for file in fresh:
        path = bundle.path(file.rfilename)
        known = bundle.manifest.files.get(file.rfilename)
        if known is not None and sha256_of(path) != known.sha256:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise DownloadError(
                f"{file.rfilename} of {repo} is damaged: its sha256 is not the manifest's",
                hint="it has been deleted: run the same command again",
            )
    return bundle.folder


def _find_cached(repo: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return open_bundle(
            snapshot_download(repo, local_files_only=True, allow_patterns=sorted(NAMES))
        ).folder
    except (LocalEntryNotFoundError, BundleError):
        return None


def cached_bundles() -> Iterator[tuple[str, Path]]:
    """Hub ids and folders of the bundles in the Hub's cache, whole or not."""
    from huggingface_hub import constants

    for manifest in sorted(Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{MANIFEST}")):
        yield manifest.parents[2].name.removeprefix("models--").replace("--", "/", 1), manifest.parent
