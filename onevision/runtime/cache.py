"""Cache of image features by tile, frames of videos, and keys and values of prompts up to their last image.

In: a key that names all that an entry depends on, and bytes. Out: the same bytes, or None. Entries are kept
in memory and, with a folder, on disk; of too many, the least recently used are removed. Files are written in
the background, from :meth:`Cache.write` on: no first token waits for a disk.

A file is a header (magic, sha256 of the rest) and the bytes. It is written under another name and renamed, so
that another process sees all of it or nothing; a damaged file is removed. A failing disk is no error: the
answer is computed as if there were no cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from onevision._version import __version__
from onevision.errors import UsageError

Buffer = bytes | memoryview

MEMORY_BYTES = 256 << 20
DISK_BYTES = 4 << 30

_MAGIC = b"ovcache1"
_HEADER = len(_MAGIC) + 32
_SUFFIX, _PART = ".ovc", ".part"
_UNWRITTEN = 256 << 20  # bytes that may wait to be written, beside those that are being written
_RECOUNT = 64  # writes after which the folder is counted again: other processes write there too


#: What entries are, by the beginning of their keys.
KINDS = {"features": "image features", "frames": "video frames", "prefix": "keys and values of prompts"}


def entry_key(kind: str, *facts: object) -> str:
    """Key of an entry of one of :data:`KINDS`. Entries of another version of onevision are not read."""
    return f"{kind}-{key_of(__version__, *facts)}"


def key_of(*facts: object) -> str:
    """Hex sha256 of strings, numbers, and bytes-like objects (by their content)."""
    digest = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, (bytes, memoryview)):
            digest.update(b"b%d:" % memoryview(fact).nbytes)
            digest.update(fact)
        else:
            text = repr(fact).encode(errors="surrogateescape")
            digest.update(b"t%d:" % len(text))
            digest.update(text)
    return digest.hexdigest()


class Cache:
    """Bytes by key; the least recently used are removed first. Not for several threads at once.

    Args:
        folder: Keeps entries as files too, and is made if it does not exist; None: in memory only.
        memory_bytes: Maximum bytes in memory. A larger entry is not kept there.
        disk_bytes: Maximum bytes in the folder.

    Attributes:
        problem: Why the last write to the disk failed.

    Raises:
        UsageError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._memory: OrderedDict[str, Buffer] = OrderedDict()
        self._memory_bytes, self._disk_bytes = memory_bytes, disk_bytes
        self._held = 0
        self._unwritten: dict[str, Buffer] = {}
        self._writer = ThreadPoolExecutor(1, "onevision-cache")  # the interpreter's end waits for it
        self._writing: Future[None] | None = None
        self._writes, self._on_disk = 0, 0  # bytes in the folder; other processes' as last counted
        self.problem: str | None = None
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"cannot make the cache {self._folder}: {error.strerror or error}",
                    hint="name a writable folder",
                ) from error

    def get(self, key: str) -> Buffer | None:
        """The bytes of a key, or None."""
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        if key in self._unwritten:
            return self._unwritten[key]
        if self._folder is None or (data := _read(self._folder / f"{key}{_SUFFIX}")) is None:
            return None
        self._keep(key, data)
        return data

    def put(self, key: str, data: Buffer) -> None:
        """Keep bytes under a key; nothing may change them any more. :meth:`write` writes them."""
        self._keep(key, data)
        if self._folder is None or len(data) + _HEADER > self._disk_bytes:
            return
        self._unwritten[key] = data
        if self._waiting() > _UNWRITTEN:
            self.write()
            if self._waiting() > _UNWRITTEN:  # the disk is slower than what comes
                self.flush()

    def _waiting(self) -> int:
        return sum(map(len, self._unwritten.values()))

    def write(self) -> None:
        """Begin to write what was put, in the background, unless an earlier write is still at it."""
        if self._folder is not None and self._unwritten and (self._writing is None or self._writing.done()):
            entries, self._unwritten = self._unwritten, {}
            self._writing = self._writer.submit(self._write, self._folder, entries)

    def flush(self, seconds: float | None = None) -> None:
        """Write what was put. A failure is noted in ``problem`` and nowhere else.

        Args:
            seconds: Longest time to wait for a write; it goes on in the background.
        """
        with contextlib.suppress(TimeoutError):
            while self._writing or self._unwritten:
                if self._writing:
                    self._writing.result(seconds)
                    self._writing = None
                self.write()

    def remove(self, key: str) -> None:
        """Remove an entry that is of no use."""
        self._held -= len(self._memory.pop(key, b""))
        self._unwritten.pop(key, None)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / f"{key}{_SUFFIX}").unlink()

    def _write(self, folder: Path, entries: dict[str, Buffer]) -> None:
        try:
            for key, data in entries.items():
                _write(folder / f"{key}{_SUFFIX}", data)
                self._on_disk += len(data) + _HEADER
                if self._writes % _RECOUNT == 0 or self._on_disk > self._disk_bytes:
                    self._evict(folder)
                self._writes += 1
        except OSError as error:
            self.problem = f"the cache {folder} was not written: {error.strerror or error}"

    def _keep(self, key: str, data: Buffer) -> None:
        if len(data) > self._memory_bytes:
            return
        self._held += len(data) - len(self._memory.pop(key, b""))
        self._memory[key] = data
        while self._held > self._memory_bytes:
            _, gone = self._memory.popitem(last=False)
            self._held -= len(gone)

    def _evict(self, folder: Path) -> None:
        """Remove the least recently used files, those that a killed process left half-written included."""
        files = sorted(entries(folder), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in files)
        for entry in files:
            if total <= self._disk_bytes:
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.bytes
        self._on_disk = total


def _read(path: Path) -> Buffer | None:
    """Contents of an entry; a damaged one is removed."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    data = memoryview(whole)[_HEADER:]
    if whole[:_HEADER] != _MAGIC + hashlib.sha256(data).digest():
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return data


def _write(path: Path, data: Buffer) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=_PART, dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(data).digest())
            file.write(data)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


@dataclass(frozen=True)
class Entry:
    """A file of a cache."""

    kind: str  # as in :data:`KINDS`
    path: Path
    bytes: int
    used: float  # seconds since the epoch


def entries(folder: Path) -> Iterable[Entry]:
    """Entries of a folder, and parts that a killed process left; others may remove some meanwhile."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in {_SUFFIX, _PART}:
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                kind = KINDS.get(path.stem.partition("-")[0], "unfinished or unknown")
                yield Entry(kind, path, status.st_size, status.st_mtime)
