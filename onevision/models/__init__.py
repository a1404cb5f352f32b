"""Checkpoints that come with the package, in the form of the ``llava-hf`` repositories."""

from __future__ import annotations

from pathlib import Path

#: Folders by size and variant. ``recipes/tiny`` made the one.
SHIPPED: dict[tuple[str, str], Path] = {("tiny", "ov"): Path(__file__).parent / "tiny"}
