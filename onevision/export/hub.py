"""Which checkpoint is meant, and how it gets onto this machine.

In: a folder, a Hub id, or a size and variant. Out: a folder with the files an export needs, and the commit
they are of. Downloads go through huggingface_hub and its cache; nothing is stored elsewhere.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Literal, get_args

from onevision.bundle import sha256_of
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
from onevision.files import readable
from onevision.models import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from huggingface_hub.hf_api import ModelInfo, RepoSibling

    from onevision.models.shapes import CheckpointFormat

Size = Literal["tiny", "0.5b", "7b", "72b"]
Variant = Literal["ov", "si"]

PUBLISHED: dict[tuple[Size, Variant, CheckpointFormat], str] = {
    ("0.5b", "si", "hf"): "llava-hf/llava-onevision-qwen2-0.5b-si-hf",
    ("0.5b", "ov", "hf"): "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    ("7b", "si", "hf"): "llava-hf/llava-onevision-qwen2-7b-si-hf",
    ("7b", "ov", "hf"): "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ("72b", "si", "hf"): "llava-hf/llava-onevision-qwen2-72b-si-hf",
    ("72b", "ov", "hf"): "llava-hf/llava-onevision-qwen2-72b-ov-hf",
    ("0.5b", "si", "lmms-lab"): "lmms-lab/llava-onevision-qwen2-0.5b-si",
    ("0.5b", "ov", "lmms-lab"): "lmms-lab/llava-onevision-qwen2-0.5b-ov",
    ("7b", "si", "lmms-lab"): "lmms-lab/llava-onevision-qwen2-7b-si",
    ("7b", "ov", "lmms-lab"): "lmms-lab/llava-onevision-qwen2-7b-ov",
    ("72b", "si", "lmms-lab"): "lmms-lab/llava-onevision-qwen2-72b-si",
    ("72b", "ov", "lmms-lab"): "lmms-lab/llava-onevision-qwen2-72b-ov-sft",
}

# "*/config.json": a tower that an lmms-lab config names by a folder of its own checkpoint.
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
    """A folder, or repositories of the Hub to be tried in their order."""

    folder: Path | None
    repos: tuple[str, ...] = ()
    revision: str | None = None


@dataclass(frozen=True)
class FetchedCheckpoint:
    """A checkpoint on this machine; ``repo`` and ``revision`` (a commit) when it is from the Hub."""

    folder: Path
    repo: str | None
    revision: str | None
    adapter: Path | None = None  # folder of an adapter to merge


def resolve(
    source: str | None = None,
    *,
    size: str | None = None,
    variant: str = "ov",
    revision: str | None = None,
) -> Source:
    """Tell which checkpoint is meant; nothing is fetched.

    Args:
        source: A local folder or a Hub id.
        size: Instead of ``source``: ``tiny``, which comes with the package, or a published size.
        variant: Of that size: ``ov`` (one-vision) or ``si`` (single image).
        revision: Branch, tag or commit on the Hub.

    Raises:
        UsageError: Both or neither of ``source`` and ``size``, a size or variant that there is not, or a
            revision of a local folder.
        SourceError: ``source`` is neither a folder nor a Hub id.
    """
    if bool(source) == bool(size):
        raise UsageError(
            "name a checkpoint by its size or by its source, not both", hint="such as --size 0.5b"
        )
    if source:
        return _resolve_source(source, revision)
    if folder := SHIPPED.get((size or "", variant)):
        return _local(folder, revision)
    repos = tuple(repo for (s, v, _), repo in PUBLISHED.items() if (s, v) == (size, variant))
    if not repos:
        sizes, variants = ", ".join(get_args(Size)), ", ".join(get_args(Variant))
        raise UsageError(
            f"there is no size {size}, variant {variant}",
            hint=f"sizes: {sizes}; variants: {variants}, of tiny ov alone",
        )
    # A revision is one repository's own.
    return Source(None, repos if revision is None else repos[:1], revision)


def _resolve_source(source: str, revision: str | None) -> Source:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        path = Path(source).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name of nobody's
        raise SourceError(f"cannot look into {source}: {error}", hint="name another folder") from error
    if is_folder:
        return _local(path, revision)
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
        raise SourceError(
            f"{source} is neither a folder nor a Hub id", hint=str(error).rstrip(".")
        ) from error
    return Source(None, (source,), revision)


def _local(folder: Path, revision: str | None) -> Source:
    if revision is not None:
        raise UsageError(f"{folder} is a folder, and only the Hub has revisions")
    return Source(folder)


def fetch(source: Source, *, progress: bool, notify: Callable[[str], None]) -> FetchedCheckpoint:
    """Get a checkpoint onto this machine, or find it in the cache of huggingface_hub.

    ``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are that library's own.

    Args:
        source: What :func:`resolve` gave.
        progress: Whether huggingface_hub may draw its bars (on stderr).
        notify: Called with a sentence when something else happens than was asked for.

    Raises:
        DownloadError: The Hub, the network or the disk said no.
        UnsupportedCheckpointError: The repository has pickles alone.
    """
    if source.folder is not None:
        return FetchedCheckpoint(source.folder, None, None)
    refusals: list[UnavailableError] = []
    for repo in source.repos:
        if refusals:
            notify(f"{refusals[-1].message}; trying {repo} instead")
        try:
            return _fetch_repo(repo, source.revision, notify, progress=progress)
        except UnavailableError as refusal:
            refusals.append(refusal)
    raise refusals[0]


def _fetch_repo(
    repo: str, revision: str | None, notify: Callable[[str], None], *, progress: bool
) -> FetchedCheckpoint:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        cached = _find_cached(repo, revision)
        if cached is None:
            message = f"HF_HUB_OFFLINE is set and {repo} is not in the cache, or not wholly"
            raise UnavailableError(
                message, hint="unset it to download the checkpoint, or name a local folder"
            )
        return cached
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = retried(
            lambda: HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout),
            repo,
            revision,
        )
    except UnreachableError as error:
        cached = _find_cached(repo, revision)
        if cached is None:
            raise
        notify(f"{error.message}; using {repo} as it is in the cache, commit {cached.revision}")
        return cached
    return _download(repo, revision, info, progress=progress)


def _find_cached(repo: str, revision: str | None) -> FetchedCheckpoint | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, CheckpointError):
        return None
    return FetchedCheckpoint(folder, repo, folder.name)


def _download(repo: str, revision: str | None, info: ModelInfo, *, progress: bool) -> FetchedCheckpoint:
    """Bring in what the cache lacks, the config first: what cannot be exported is not worth gigabytes."""
    small, weights = _wanted_files(repo, info)
    read_config(_snapshot(repo, revision, small, progress=False))
    fresh = [file for file in weights if not _is_cached(repo, file.rfilename, info.sha)]
    _check_disk_space(repo, fresh)
    folder = _snapshot(repo, revision, [*small, *weights], progress=progress)
    for file in fresh:
        path = folder / file.rfilename
        if file.lfs is not None and sha256_of(path) != file.lfs.sha256:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            message = f"{file.rfilename} of {repo} arrived damaged: its sha256 is not the one on the Hub"
            raise DownloadError(message, hint="it has been deleted: run the same command again")
    return FetchedCheckpoint(folder, repo, folder.name)


def _wanted_files(repo: str, info: ModelInfo) -> tuple[list[RepoSibling], list[RepoSibling]]:
    """The files that an export reads, without the weights and the weights."""
    files = {file.rfilename: file for file in info.siblings or []}
    shards = [name for name in files if "/" not in name and name.endswith(".safetensors")]
    weights = [SINGLE_FILE] if SINGLE_FILE in files else shards
    if not weights:
        pickles = [name for name in files if name.endswith(PICKLES)]
        if pickles:
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
    return [files[name] for name in small], [files[name] for name in weights]


def _snapshot(repo: str, revision: str | None, files: Sequence[RepoSibling], *, progress: bool) -> Path:
    """Download files into the cache, or find them there.

    The revision is handed on as it was named, not as a commit: so the cache learns the name for offline use.
    """
    from huggingface_hub import snapshot_download

    names = [file.rfilename for file in files]

    def download() -> Path:
        with _bars(shown=progress):
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=names))
        # When the Hub stops answering, the client hands out the folder with as much as it has.
        if not all((folder / name).exists() for name in names):
            raise StalledError
        return folder

    return retried(download, repo, revision)


def _is_cached(repo: str, name: str, commit: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, name, revision=commit), str)


def _check_disk_space(repo: str, files: Sequence[RepoSibling]) -> None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE)
    partial = (cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs").glob("*.incomplete")
    needed = sum(file.size or 0 for file in files) - sum(path.stat().st_size for path in partial)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DownloadError(
            f"{repo} needs {readable(needed)} more in {cache}, where {readable(free)} are free",
            hint="free some space, or point HF_HOME at another disk",
        )


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Switch the bars of huggingface_hub off for a while; HF_HUB_DISABLE_PROGRESS_BARS has the last word."""
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
