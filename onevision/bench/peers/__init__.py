"""Peers: other engines measured beside ours, by name, and what each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from onevision.bundle import PREFILL, Bundle, Manifest
from onevision.errors import UsageError, suggest
from onevision.models import SHIPPED
from onevision.native.device import Device
from onevision.runtime.options import AnswerOptions

#: Our own bundle with llama.cpp's prefill instead of its prefill graph.
LLAMA = "llama"
#: Packages by the peer that needs them.
PEERS: dict[str, tuple[str, ...]] = {
    "transformers-bf16": ("torch", "transformers"),
    "transformers-fp32": ("torch", "transformers"),
    "openvino": ("openvino",),
    "openvino-int8": ("openvino", "nncf"),
    LLAMA: (),
}
GROUPS = {"transformers": ("transformers-bf16", "transformers-fp32")}


@dataclass(frozen=True)
class TargetSetup:
    """What a target in another process is given: the same work for all.

    Attributes:
        bundle: Folder of the bundle.
        checkpoint: Folder of the checkpoint that the bundle was made from; None if no peer needs it.
        device: Where to run.
        threads: CPU threads.
        options: Prompt format and system prompt.
    """

    bundle: Path
    checkpoint: Path | None
    device: Device
    threads: int
    options: AnswerOptions = field(default_factory=AnswerOptions)


def choose_peers(values: Sequence[str]) -> tuple[str, ...]:
    """Peers from names, groups (``transformers``), and comma-separated lists.

    Raises:
        UsageError: A name is unknown.
    """
    names = [name.strip() for value in values for name in value.split(",")]
    if unknown := [name for name in names if name not in PEERS and name not in GROUPS]:
        raise UsageError(f"unknown peer {unknown[0]!r}", hint=suggest(unknown[0], (*GROUPS, *PEERS)))
    return tuple(dict.fromkeys(peer for name in names for peer in GROUPS.get(name, (name,))))


def lacking(name: str, bundle: Bundle) -> str | None:
    """Reason why a target cannot run at all; None if it can."""
    if missing := _missing(name):
        return f"it needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    if name == LLAMA and PREFILL not in bundle.manifest.files:
        return "the bundle has no prefill graph: llama.cpp reads its prompts anyway"
    return None


def find_checkpoint(manifest: Manifest, given: Path | None, peers: Sequence[str]) -> Path | None:
    """The bundle's checkpoint: as given, as shipped, in the Hub's cache, or the folder it was made from.

    Returns:
        None if none of the installed peers needs it.

    Raises:
        UsageError: It is needed and cannot be found.
    """
    if given is not None and not (given / "config.json").is_file():
        raise UsageError(f"{given} is not a checkpoint: it has no config.json")
    if not any(name in GROUPS["transformers"] and not _missing(name) for name in peers):
        return None
    if given is not None:
        return given
    if shipped := SHIPPED.get((manifest.size or "", manifest.variant or "")):
        return shipped
    source = manifest.source
    found = _in_hub_cache(source.repo, source.revision) if source.revision else Path(source.repo)
    if found is None or not (found / "config.json").is_file():
        raise UsageError(
            f"transformers needs the checkpoint that the bundle was made from, {source.repo}",
            hint="name its folder: --checkpoint FOLDER",
        )
    return found


def _missing(name: str) -> list[str]:
    return [package for package in PEERS.get(name, ()) if find_spec(package) is None]


def _in_hub_cache(repo: str, revision: str) -> Path | None:
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None
