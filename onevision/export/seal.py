"""The last files of a bundle: the model card and the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onevision._version import __version__
from onevision.bundle import CARD, MANIFEST, Bundle, Manifest, files_of
from onevision.export.card import model_card
from onevision.proof.verify import Report


def seal(folder: Path, manifest: Manifest, report: Report, **measured: Mapping[str, Any]) -> Bundle:
    """Write card and manifest beside the other files.

    Args:
        folder: The bundle's folder.
        manifest: Manifest without the card; its ``quality`` is replaced.
        report: Result of verify; without cases if nothing was compared.
        measured: Further entries of ``quality``.
    """
    manifest = replace(manifest, quality={**measured, "verify": report.to_dict()})
    (folder / CARD).write_text(model_card(manifest), encoding="utf-8")
    manifest = replace(manifest, files=manifest.files | files_of([folder / CARD], {}))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle(folder, manifest)


def writer_versions() -> dict[str, str]:
    """Versions of the packages that write a bundle's files, for ``created_by``."""
    return {"onevision": __version__, **{name: version(name) for name in ("gguf", "onnx")}}


def tool_versions() -> dict[str, str]:
    """Versions of the packages that run, check and quantize a bundle, for ``created_by``."""
    import onnxruntime

    return {
        "onevision": __version__,
        "onnxruntime": str(onnxruntime.__version__),  # whichever distribution brought it
        "llama_cpp": version("llama-cpp-python"),
    }
