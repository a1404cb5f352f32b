"""``onevision list`` and ``onevision rm``: the bundles that were fetched or exported into the cache."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

from onevision.bundle import BACKBONE, PREFILL, VISION
from onevision.cli.console import print_table, show
from onevision.cli.options import Json, add_command
from onevision.errors import UsageError
from onevision.files import cache_folder, readable
from onevision.named import StoredBundle, stored_bundle, stored_bundles

_PROOF = {True: "passed", False: "FAILED", None: "unproven"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add_command(app, list_, "onevision list --json", name="list")
    add_command(app, remove, "onevision rm 0.5b", "onevision rm owner/name --yes", name="rm")


def list_(as_json: Json = False) -> None:
    """List the bundles in the cache. They are those of -m SIZE, -m HUB-ID and `bench --synthetic`."""
    rows = [_facts(stored) for stored in stored_bundles()]
    columns = ("name", "size", "vision", "backbone", "prefill", "verify", "source")
    cells = [_cells(row) for row in rows]
    show(
        as_json,
        {"cache": str(cache_folder()), "bundles": rows},
        partial(print_table, notes=True),
        columns,
        cells,
    )
    if not rows and not as_json:
        print(f"no bundles in {cache_folder()}; -m 0.5b exports one at its first use", file=sys.stderr)


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name in `onevision list`.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a bundle from the cache."""
    stored = stored_bundle(name)
    size = _bytes(stored)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{stored.name} would be removed", hint=f"onevision rm {name} --yes")
        typer.confirm(f"remove {stored.folder}, {readable(size)}?", abort=True, err=True)
    stored.remove()
    show(as_json, {"removed": stored.name, "bytes": size}, print, f"removed {stored.name}, {readable(size)}")


def _bytes(stored: StoredBundle) -> int:
    return sum(path.stat().st_size for path in stored.folder.iterdir() if path.is_file())


def _facts(stored: StoredBundle) -> dict[str, Any]:
    """A bundle, for ``--json``."""
    facts: dict[str, Any] = {
        "name": stored.name,
        "folder": str(stored.folder),
        "bytes": _bytes(stored),
        "damaged": stored.bundle is None,
        "precisions": {},
        "verify": None,
        "source": None,
    }
    if stored.bundle is not None:
        manifest = stored.bundle.manifest
        parts = {"vision": VISION, "backbone": BACKBONE, "prefill": PREFILL}
        files, verify = manifest.files, manifest.quality.get("verify")
        facts |= {
            "precisions": {
                part: files[name].precision if name in files else None for part, name in parts.items()
            },
            "verify": verify.get("passed") if isinstance(verify, dict) else None,
            "source": {"repo": manifest.source.repo, "revision": manifest.source.revision},
        }
    return facts


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    kept = row["precisions"]
    precisions = (kept.get(part) or "" for part in ("vision", "backbone", "prefill"))
    proof = "DAMAGED" if row["damaged"] else _PROOF.get(row["verify"], "unproven")
    source = (row["source"] or {}).get("repo", "")
    return (row["name"], readable(row["bytes"]), *precisions, proof, source)
