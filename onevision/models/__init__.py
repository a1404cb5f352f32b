"""The tiny model, which comes with the package: its checkpoint and its bundle."""

from __future__ import annotations

from pathlib import Path

from onevision.bundle import MANIFEST
from onevision.errors import BundleError

#: Checkpoints by size and variant, in the form of the ``llava-hf`` repositories; made by ``recipes/tiny``.
SHIPPED: dict[tuple[str, str], Path] = {("tiny", "ov"): Path(__file__).parent / "tiny"}

#: The bundle of the tiny model. ``hatch_build.py`` writes it when the package is built or installed.
TINY_BUNDLE = Path(__file__).parent / "tiny-bundle"


def default_bundle() -> Path:
    """Folder of the bundle that is used if none is named.

    Raises:
        BundleError: It is missing: a checkout of the sources that was not installed.
    """
    if not (TINY_BUNDLE / MANIFEST).is_file():
        raise BundleError(
            "the tiny model's bundle is missing: it is written when onevision is installed",
            hint="run pip install -e . in the sources' folder, or name a bundle: -m FOLDER",
        )
    return TINY_BUNDLE
