"""Optional packages by the extra that brings them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from onevision.errors import UsageError

_EXPORT = ("onnx", "ml_dtypes", "gguf", "safetensors", "tokenizers", "huggingface_hub", "filelock")

#: Modules of each extra of ``pip install 'onevision[…]'`` that the base install lacks.
EXTRAS: dict[str, tuple[str, ...]] = {
    "export": _EXPORT,
    "proof": (*_EXPORT, "torch", "transformers"),
    "optimum": (*_EXPORT, "torch", "transformers", "optimum"),
    "video": ("av",),
    "heic": ("pillow_heif",),
    "pdf": ("pypdfium2",),
    "bench": ("matplotlib", "onnx"),
    "schema": ("llguidance",),
}


def installed_version(package: str) -> str | None:
    """Version of a distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if find_spec(name) is None]


def require(extra: str, purpose: str, *, instead: str = "") -> None:
    """Check that an extra is installed.

    Args:
        extra: A key of :data:`EXTRAS`.
        purpose: Subject of the message: ``the export``.
        instead: Another way out for the hint: ``name a bundle: -m FOLDER``.

    Raises:
        UsageError: It is not.
    """
    if names := missing(extra):
        install = f"pip install 'onevision[{extra}]'"
        raise UsageError(
            f"{purpose} needs {', '.join(names)}", hint=f"{install}, or {instead}" if instead else install
        )
