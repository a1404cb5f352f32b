"""Images with more than 8 bits, and how much of their range they use.

Scanners, microscopes and depth cameras write 12 bits into 16, or floating-point numbers of any unit: such an
image looks black or white as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

_LEAST_SHARE = 0.25  # of the range; an image that uses less shows 64 levels at most


def has_wide_colors(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet has colors of 16 bits, of which Pillow keeps 8."""
    return image.mode.startswith("RGB") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def to_8_bits(image: Image.Image, name: str, *, stretch: bool, warn: Callable[[str], None]) -> Image.Image:
    """Mode RGB of an image with more than 8 bits, or of one that had them.

    16-bit grayscale and mode I are 0 to 65,535. Floating-point grayscale is 0 to 1 if it stays within, else 0
    to 255. Pillow's own conversion clips at 255.

    Args:
        image: Of mode I, I;16, F or RGB.
        name: Of the file, for messages.
        stretch: Map the smallest level to 0, the largest to 255.
        warn: Receives a warning where the image uses a small part of its range, or goes beyond it.
    """
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
    least, most = float(values.min()), float(values.max())
    top = 255 if image.mode in ("RGB", "F") else 65_535
    if image.mode == "F" and least >= 0 and most <= 1:
        top = 1
    if not stretch and (0 < most - least < _LEAST_SHARE * top or least < 0 or most > top):
        warn(
            f"{name} has levels from {least:,.6g} to {most:,.6g}, where 0 is black and {top:,} white: "
            "see --stretch"
        )
    low, span = (least, most - least or 1.0) if stretch else (0.0, float(top))
    levels = np.rint((values.astype(np.float32).clip(low, low + span) - low) * (255 / span))
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
