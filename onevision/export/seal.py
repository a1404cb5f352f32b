"""The last of a bundle's files, written when all others are there: the model card and the manifest."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from onevision._version import __version__
from onevision.bundle import CARD, MANIFEST, Bundle, files_of
from onevision.export.card import model_card

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onevision.bundle import Manifest
    from onevision.native.quantize import BackboneReport
    from onevision.proof.verify import Report


def seal(
    folder: Path, manifest: Manifest, backbone: BackboneReport, report: Report, **measured: Mapping[str, Any]
) -> Bundle:
    """Write card and manifest, and so make a folder of files a bundle.

    Args:
        folder: Where the files are.
        manifest: Theirs, without the card; its ``quality`` is replaced.
        backbone: What the GGUF file holds.
        report: What verify found; without cases if it was not asked.
        measured: What else goes into ``quality``, by name.
    """
    proof = {"verify": report.to_dict()} if report.cases else {}
    manifest = replace(manifest, quality=proof | measured)
    (folder / CARD).write_text(model_card(manifest, backbone, report), encoding="utf-8")
    manifest = replace(manifest, files=manifest.files | files_of([folder / CARD], {}))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(folder, manifest)


def tool_versions() -> dict[str, str]:
    """Versions of what writes and checks a bundle's files, for ``created_by``."""
    import onnxruntime

    return {
        "onevision": __version__,
        "onnxruntime": str(onnxruntime.__version__),  # whichever distribution brought it
        "llama_cpp": version("llama-cpp-python"),
    }
