"""The part that is there of a JPEG that was cut off."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import BinaryIO

from PIL import Image, ImageChops

from onevision.errors import ImageError

_SCAN = b"\xff\xda"
_END = b"\xff\xd9"
_ZEROS = 64  # bytes; a decoder takes them for pixels
_LEAST_SCANS = 2  # complete ones of a progressive JPEG: all colors, and the coarse shapes of the brightness
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_OTHER = bytes(at * at % 251 for at in range(5000))  # any bits, for more blocks than one


def ends_in_zeros(file: BinaryIO) -> bool:
    """Whether the rest of a JPEG file was never written, as after a download into a file of the full size."""
    place = file.tell()
    file.seek(max(0, file.seek(0, io.SEEK_END) - _ZEROS))
    zeros = not any(file.read())
    if zeros:
        file.seek(0)
        zeros = not file.read().rstrip(b"\0").endswith(_END)
    file.seek(place)
    return zeros


def read_cut_jpeg(data: bytes, name: str, warn: Callable[[str], None]) -> Image.Image:
    """Decode a JPEG without its end, if half of its rows are there; the others get a flat color.

    A progressive JPEG holds the whole image several times, ever finer: of it, two complete scans are needed.

    Args:
        data: The file.
        name: Of the file, for messages.
        warn: Receives how much is there.

    Raises:
        ImageError: Less is there.
        OSError: The data are damaged otherwise.
    """
    data = data.rstrip(b"\0").rstrip(b"\xff")  # a download's empty rest, and half of a marker
    file = io.BytesIO(data + _END)
    image = Image.open(file, formats=("JPEG",))
    later_scans = data.count(_SCAN, file.tell())
    image.load()
    if image.info.get("progressive"):
        missing = "its finest scans are missing or cut, so it may be less sharp"
        enough = later_scans >= _LEAST_SCANS
    else:
        rows = _rows(image, data)
        missing, enough = f"{rows} of {image.height} rows are there", 2 * rows >= image.height
        if rows == image.height:
            missing = "only its end marker is missing"
    if not enough:
        raise ImageError(f"{name} is cut off: {missing}", hint="save or download it again")
    warn(f"{name} is cut off: {missing}")
    return image


def _rows(image: Image.Image, data: bytes) -> int:
    """Rows above the first that depends on what follows the data."""
    restarts = _RESTART.findall(data)
    due = bytes((0xFF, 0xD0 + ((restarts[-1][1] + 1) % 8 if restarts else 0)))
    with Image.open(io.BytesIO(data + _OTHER + due + _OTHER + _END), formats=("JPEG",)) as other:
        box = ImageChops.difference(image, other).getbbox()
    return box[1] if box else image.height
