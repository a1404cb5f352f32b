"""Find a checkpoint and bring it to this machine.

In: a folder, a Hub id, or a size and variant. Out: a folder with the files that an export needs, and their
commit. Downloads use huggingface_hub and its cache; its environment variables apply.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, cast, get_args

from onevision.errors import (
    CheckpointError,
    DownloadError,
    SourceError,
    UnsupportedCheckpointError,
    UsageError,
)
from onevision.export.checkpoint import PICKLE_HINT, PICKLES, SINGLE_FILE, weight_files
from onevision.export.config import read_config
from onevision.export.hub_errors import StalledError, UnavailableError, UnreachableError, retried
from onevision.files import readable, sha256_of
from onevision.models import SHIPPED
from onevision.models.shapes import PublishedSize, Variant, repositories

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

# "*/config.json": the tower's, in a folder of an lmms-lab checkpoint.
_SMALL_FILES = (
    "*config.json",
    "*.safetensors.index.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.*",
)


@dataclass(frozen=True)
class Source:
    """A folder, or repositories of the Hub, of which the first available one is taken."""

    folder: Path | None
    repos: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def bundle_name(self) -> str:
        """Default name of the bundle's folder, after the repository or the checkpoint's folder."""
        name = self.repos[0].split("/")[-1] if self.folder is None else self.folder.resolve().name
        return f"{name.removesuffix('-hf')}-bundle"


@dataclass(frozen=True)
class FetchedCheckpoint:
    """A checkpoint on this machine; ``repo`` and ``revision`` (a commit) if it is from the Hub."""

    folder: Path
    repo: str | None
    revision: str | None
    adapter: Path | None = None  # folder of an adapter to merge
    vision_tower: str | None = None  # instead of the one that config.json names


def resolve(
    source: str | None = None, *, size: str | None = None, variant: str = "ov", revision: str | None = None
) -> Source:
    """Find out which checkpoint is meant; downloads nothing.

    Args:
        source: A local folder or a Hub id.
        size: Instead of ``source``: ``tiny``, which comes with the package, or a published size.
        variant: With a size: ``ov`` (one-vision), ``si`` (single image), ``chat`` or ``video`` (LLaVA-Video).
        revision: Branch, tag or commit on the Hub.

    Raises:
        UsageError: Both or neither of ``source`` and ``size``, an unknown size or variant, or a revision of a
            local folder.
        SourceError: ``source`` is neither a folder nor a Hub id.
    """
    if bool(source) == bool(size):
        raise UsageError(
            "name a checkpoint by its size or by its source, not both", hint="such as --size 0.5b"
        )
    shipped = SHIPPED.get((size or "", variant))
    folder = shipped or (_folder(source) if source else None)
    if folder and revision is not None:
        raise UsageError(f"{folder} is a folder, and only the Hub has revisions")
    if folder:
        return Source(folder)
    if source:
        return Source(None, (source,), revision)
    known = size in get_args(PublishedSize) and variant in get_args(Variant)
    repos = repositories(cast("PublishedSize", size), cast("Variant", variant)) if known else ()
    if not repos:
        sizes, variants = ", ".join(get_args(PublishedSize)), ", ".join(get_args(Variant))
        raise UsageError(
            f"there is no size {size}, variant {variant}",
            hint=f"sizes: tiny, {sizes}; variants: {variants} (tiny: ov only; 0.5b: ov and si)",
        )
    # A revision belongs to one repository.
    return Source(None, repos if revision is None else repos[:1], revision)


def _folder(source: str) -> Path | None:
    """The local folder that ``source`` names; None if it is a Hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        path = Path(source).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: unknown user in ~name
        raise SourceError(f"cannot look into {source}: {error}", hint="name another folder") from error
    if is_folder:
        return path
    if exists:
        raise SourceError(
            f"{source} is a file", hint="name the folder that holds config.json and the weights"
        )
    written_as_path = source.startswith((".", "~")) or "\\" in source or bool(PureWindowsPath(source).anchor)
    if written_as_path or source.count("/") != 1:
        raise SourceError(f"there is no folder {source}", hint="a Hub id is written owner/name")
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        reason = str(error).rstrip(".")
        raise SourceError(f"{source} is neither a folder nor a Hub id", hint=reason) from error
    return None


def fetch(
    source: Source, *, progress: bool, notify: Callable[[str], None], vision_tower: str | None = None
) -> FetchedCheckpoint:
    """Download a checkpoint, or find it in the cache.

    Args:
        source: From :func:`resolve`.
        progress: Let huggingface_hub draw progress bars on stderr.
        notify: Called with a sentence if another repository or the cache has to be used.
        vision_tower: See :func:`~onevision.export.config.read_config`.

    Raises:
        DownloadError: The Hub, the network or the disk failed.
        UnsupportedCheckpointError: The repository has only pickles.
    """
    if source.folder is not None:
        return FetchedCheckpoint(source.folder, None, None, vision_tower=vision_tower)
    refusals: list[UnavailableError] = []
    for repo in source.repos:
        if refusals:
            notify(f"{refusals[-1].message}; trying {repo} instead")
        try:
            found = _fetch_repo(repo, source.revision, progress, notify, vision_tower)
            return replace(found, vision_tower=vision_tower)
        except UnavailableError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _fetch_repo(
    repo: str, revision: str | None, progress: bool, notify: Callable[[str], None], vision_tower: str | None
) -> FetchedCheckpoint:
    from huggingface_hub import HfApi, constants

    def ask() -> ModelInfo:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)

    if constants.HF_HUB_OFFLINE:
        if cached := _find_cached(repo, revision):
            return cached
        raise UnavailableError(
            f"HF_HUB_OFFLINE is set and {repo} is not in the cache, or not wholly",
            hint="unset it to download the checkpoint, or name a local folder",
        )
    try:
        info = retried(ask, repo, revision)
    except UnreachableError as error:
        cached = _find_cached(repo, revision)
        if cached is None:
            raise
        notify(f"{error.message}; using {repo} as it is in the cache, commit {cached.revision}")
        return cached
    return _download(repo, revision, info, progress, vision_tower)


def _find_cached(repo: str, revision: str | None) -> FetchedCheckpoint | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Since 1.0 the client refuses a snapshot that lacks a file, unless patterns leave that file out.
        cached = snapshot_download(
            repo,
            revision=revision,
            local_files_only=True,
            allow_patterns=[*_SMALL_FILES, "*.safetensors"],
            ignore_patterns="*/*.safetensors",
        )
        weight_files(Path(cached))
    except (LocalEntryNotFoundError, CheckpointError):
        return None
    return FetchedCheckpoint(Path(cached), repo, Path(cached).name)


def _download(
    repo: str, revision: str | None, info: ModelInfo, progress: bool, vision_tower: str | None
) -> FetchedCheckpoint:
    """Download what the cache lacks. The config comes first: an unsupported model ends here."""
    from huggingface_hub import try_to_load_from_cache

    small, weights = _wanted_files(repo, info)
    read_config(snapshot(repo, revision, small, progress=False), vision_tower)
    fresh = [
        file
        for file in weights
        if not isinstance(try_to_load_from_cache(repo, file.rfilename, revision=info.sha), str)
    ]
    check_disk_space(repo, fresh)
    folder = snapshot(repo, revision, [*small, *(file.rfilename for file in weights)], progress=progress)
    for file in fresh:
        path = folder / file.rfilename
        if file.lfs is not None and sha256_of(path) != file.lfs.sha256:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            message = f"{file.rfilename} of {repo} arrived damaged: its sha256 is not the one on the Hub"
            raise DownloadError(message, hint="it has been deleted: run the same command again")
    return FetchedCheckpoint(folder, repo, folder.name)


def _wanted_files(repo: str, info: ModelInfo) -> tuple[list[str], list[RepoSibling]]:
    """Files that an export reads: names of the small ones, and the weights."""
    files = {file.rfilename: file for file in info.siblings or []}
    shards = [name for name in files if "/" not in name and name.endswith(".safetensors")]
    weights = [SINGLE_FILE] if SINGLE_FILE in files else shards
    if not weights:
        if pickles := [name for name in files if name.endswith(PICKLES)]:
            message = f"{repo} has its weights only as pickles ({', '.join(pickles[:3])})"
            raise UnsupportedCheckpointError(message, hint=PICKLE_HINT)
        raise UnavailableError(
            f"{repo} has no safetensors files", hint="name another repository or a local folder"
        )
    if "config.json" not in files:
        hint = "name the repository of the original checkpoint"
        raise UnsupportedCheckpointError(f"{repo} has no config.json", hint=hint)
    small = [
        name
        for name in files
        if name.endswith("/config.json")
        or ("/" not in name and any(fnmatchcase(name, pattern) for pattern in _SMALL_FILES))
    ]
    return small, [files[name] for name in weights]


def snapshot(repo: str, revision: str | None, names: list[str], *, progress: bool) -> Path:
    """Download files into the cache, or find them there.

    The revision is passed on as it was named, not as a commit: the cache needs the name for offline use.
    """
    from huggingface_hub import snapshot_download

    def download() -> Path:
        with _bars(shown=progress):
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=names))
        # When the Hub stops answering, the client returns an incomplete folder without an error.
        if not all((folder / name).exists() for name in names):
            raise StalledError
        return folder

    return retried(download, repo, revision)


def check_disk_space(repo: str, files: list[RepoSibling]) -> None:
    """Check that the Hub's cache has room for files.

    Raises:
        DownloadError: It has not.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    partial = (cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs").glob("*.incomplete")
    needed = sum(file.size or 0 for file in files) - sum(path.stat().st_size for path in partial)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if needed > free:
        raise DownloadError(
            f"{repo} needs {readable(needed)} more in {cache}, where {readable(free)} are free",
            hint="free some space, or point HF_HOME at another disk",
        )


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Hide huggingface_hub's progress bars for a while, unless the user's environment decides."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
