"""``onevision cache``: what caches hold, and its removal."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onevision.cli.console import print_json, print_table
from onevision.cli.options import Json, add_command
from onevision.cli.usage import not_nan
from onevision.errors import UsageError
from onevision.files import cache_folder, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.runtime.cache import Entry

_DAY = 86_400  # seconds

Folder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Folder that --cache named before.  [default: onevision's own, with the speed profiles]",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(rich_markup_mode=None, help="List or clear a cache of --cache, and speed profiles.")
    add_command(group, list_, "onevision cache list --cache images/", name="list")
    add_command(group, clear, "onevision cache clear --cache images/ --older-than 30")
    app.add_typer(group, name="cache")


def list_(cache: Folder = None, as_json: Json = False) -> None:
    """List what a cache holds, by kind. Bundles are listed by `onevision list`."""
    folder = _folder(cache)
    _report(folder, _entries(folder, speed=cache is None), "listed", as_json=as_json)


def clear(
    cache: Folder = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=not_nan,
            metavar="DAYS",
            help="Only what was not used for DAYS.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove what a cache holds. It is made again when it is needed. Bundles and other files stay."""
    folder = _folder(cache)
    latest = time.time() - (older_than or 0) * _DAY
    old = [
        entry for entry in _entries(folder, speed=cache is None) if older_than is None or entry.used <= latest
    ]
    for entry in old:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot remove {entry.path}: {error.strerror or error}") from error
    _report(folder, old, "removed", as_json=as_json)


def _folder(cache: Path | None) -> Path:
    if cache is not None and not cache.is_dir():
        raise UsageError(f"{cache} is not a folder" if cache.exists() else f"there is no cache {cache}")
    return cache or cache_folder()


def _entries(folder: Path, *, speed: bool) -> list[Entry]:
    from onevision.runtime.cache import Entry, entries

    found = list(entries(folder))
    profiles = ((path, path.stat()) for path in (folder / "speed").glob("*.json")) if speed else ()
    return found + [Entry("speed profiles", path, s.st_size, s.st_mtime) for path, s in profiles]


@dataclass(frozen=True)
class _Kind:
    """Entries of a kind, for ``--json``."""

    kind: str
    entries: int
    bytes: int
    last_used: str


def _report(folder: Path, found: Sequence[Entry], action: str, *, as_json: bool) -> None:
    """Print counts and sizes by kind, and a line about all on stderr."""
    by_kind: dict[str, list[Entry]] = {}
    for entry in found:
        by_kind.setdefault(entry.kind, []).append(entry)
    rows = []
    for kind, same in sorted(by_kind.items()):
        used = datetime.fromtimestamp(max(entry.used for entry in same), UTC)
        size = sum(entry.bytes for entry in same)
        rows.append(_Kind(kind, len(same), size, used.isoformat(" ", "minutes")))
    total = sum(row.bytes for row in rows)
    if as_json:
        print_json(
            {"cache": str(folder), "action": action, "bytes": total, "kinds": [asdict(row) for row in rows]}
        )
        return
    cells = [(row.kind, str(row.entries), readable(row.bytes), row.last_used) for row in rows]
    print_table(("kind", "entries", "size", "last used"), cells)
    print(f"{action} {len(found)} files of {readable(total)} in {folder}", file=sys.stderr)
