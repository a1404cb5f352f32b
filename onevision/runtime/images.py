"""An image from a file or from Python, upright and RGB.

In: a path, the bytes of a file, an open file, a PIL image or a NumPy array. Out: a PIL image of mode RGB.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from onevision.errors import ImageError
from onevision.runtime.imagefile import (
    DAMAGE,
    PagedImage,
    check_size,
    decode,
    is_preview,
    open_image,
    pillow_errors,
    quiet,
)
from onevision.runtime.kinds import existing_file
from onevision.runtime.levels import has_wide_colors, to_8_bits

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | io.BytesIO | Image.Image | NDArray[np.uint8]
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_log_warning = logging.getLogger("onevision").warning


def read_image(
    source: ImageSource,
    *,
    exif: bool = True,
    page: int | None = None,
    stretch: bool = False,
    warn: Callable[[str], None] = _log_warning,
) -> Image.Image:
    """Open an image: upright, alpha over white, mode RGB, 8 bits as :func:`to_8_bits` scales them.

    Args:
        source: A path, a file's bytes, an open binary file, a PIL image, or an array uint8 [H, W],
            [H, W, 3] or [H, W, 4].
        exif: Turn the image as its EXIF orientation says. The original LLaVA-NeXT does not.
        page: Page of a TIFF or PDF, or frame of an animation, from 1; None: the first, with a warning where
            there are more.
        stretch: Map the levels that a 16-bit or floating-point image uses to 0 to 255.
        warn: Receives warnings: pages that are not read, a file without its end, a range that is hardly used.

    Raises:
        ImageError: Missing, empty, damaged, not an image, over MAX_PIXELS or MAX_SIDE, or without that page.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return to_rgb(source, "the PIL image", exif=exif, stretch=stretch, warn=warn)
    with open_source(source) as opened:
        if page is None and opened.count > 1:
            others = "--page or --video" if opened.unit == "frames" else "--page"
            warn(f"{opened.name} has {opened.count} {opened.unit}, of which the first is used: see {others}")
        if page is not None and page > opened.count:
            raise ImageError(f"{opened.name} has no page {page}: it has {opened.count}")
        image = opened.page((page or 1) - 1)
        if is_preview(image):
            warn(f"{opened.name}: only a preview of {image.width}x{image.height} pixels is read of it")
        return to_rgb(image, opened.name, exif=exif and opened.turns, stretch=stretch, warn=warn)


def whole_source(source: ImageSource) -> ImageSource:
    """The source itself, or the bytes of an open file, which can be read once only.

    Raises:
        ImageError: The file is open as text.
    """
    if isinstance(source, Image.Image) or not hasattr(source, "read"):
        return source
    data = source.read()
    if isinstance(data, str):
        raise ImageError("the file is open as text", hint="open it as binary: open(path, 'rb')")
    return data


@contextmanager
def open_source(source: ImageSource) -> Iterator[PagedImage]:
    """Open the image file that a path, bytes or an open file stand for.

    Raises:
        ImageError: See :func:`read_image`.
    """
    if isinstance(source, (str, os.PathLike)):
        path = existing_file(source, ImageError)
        try:
            file = path.open("rb")
        except OSError as error:
            raise ImageError(f"{path} cannot be opened: {error.strerror}") from error
        with file, open_image(file, str(path)) as opened:
            yield opened
        return
    data = whole_source(source)
    if not isinstance(data, bytes):
        raise ImageError(
            f"an image cannot be read from a value of type {type(source).__name__}",
            hint="give a path, the bytes of a file, an open file, a PIL image or a uint8 array (H, W, 3)",
        )
    if not data:
        raise ImageError("the image has 0 bytes")
    with open_image(io.BytesIO(data), f"the image of {len(data):,} bytes") as opened:
        yield opened


def to_rgb(
    image: Image.Image, name: str, *, exif: bool, stretch: bool = False, warn: Callable[[str], None]
) -> Image.Image:
    """A new image that needs no open file, see :func:`read_image`."""
    wide = has_wide_colors(image)
    image = decode(image, name, warn)
    with pillow_errors(name, ()):
        turn = _UPRIGHT.get(_orientation(image)) if exif else None
        if turn is not None:
            image = image.transpose(turn)
        gray = image.mode == "F" or image.mode.startswith("I")
        if not gray and image.has_transparency_data:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        try:
            image = image if gray else image.convert("RGB")
            return to_8_bits(image, name, stretch=stretch, warn=warn) if gray or wide else image
        except ValueError as error:
            raise ImageError(f"{name} has the color mode {image.mode}", hint="convert it to RGB") from error


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"an array of shape {array.shape} and type {array.dtype} is not an image",
            hint="give uint8 of shape (height, width), or (height, width, 3 or 4) as red, green, blue, alpha",
        )
    check_size(array.shape[1], array.shape[0], "the array")
    image = Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
    return to_rgb(image, "the array", exif=False, warn=_log_warning)


def _orientation(image: Image.Image) -> int:
    try:
        with quiet():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:
        return 1  # the pixels are good, and nothing else is needed of the EXIF data
