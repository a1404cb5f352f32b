"""An image file before it is decoded: its format, and its pages.

In: an open file. Out: a :class:`PagedImage`, whose pages are PIL images.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from onevision.errors import ImageError
from onevision.runtime.jpeg import ends_in_zeros, read_cut_jpeg
from onevision.runtime.kinds import identify
from onevision.runtime.pdf import open_pdf

MAX_PIXELS = 178_956_970  # where Pillow itself refuses; at 3 bytes a pixel that is half a gibibyte
MAX_SIDE = 65_535  # JPEG's longest side

# Bitmap formats with a signature in their first bytes. No EPS or the like: they run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "ICO", "AVIF")
#: Formats of several images, and what they are; those of ICO and MPO are one image in several sizes.
_PAGED = {"TIFF": "pages", "GIF": "frames", "WEBP": "frames", "PNG": "frames", "AVIF": "frames"}
_SUBFILE_TYPE = 254  # a TIFF's tag
_READABLE = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, HEIC and PDF files"
_AGAIN = "save or download it again"

#: Exceptions of Pillow's decoders for damaged files: there is no common base.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_LOCK = threading.Lock()  # the list of warning filters belongs to the whole process


@dataclass(frozen=True)
class PagedImage:
    """An image file that is open.

    Attributes:
        name: For messages.
        count: Images in it, at least 1.
        unit: ``pages`` or ``frames``.
        turns: Whether its EXIF orientation still has to be applied.
        page: Image at a place, from 0. It is the same object for all places, and not decoded yet.
    """

    name: str
    count: int
    unit: str
    turns: bool
    page: Callable[[int], Image.Image]


@contextmanager
def open_image(file: BinaryIO, name: str) -> Iterator[PagedImage]:
    """Open an image file.

    Raises:
        ImageError: Not an image, damaged, or of a format whose reader is not installed.
    """
    kind = identify(file.read(512))
    file.seek(0)
    if kind == "a PDF document":
        with open_pdf(file, name) as (count, draw):
            yield PagedImage(name, count, "pages", turns=False, page=draw)
        return
    Image.init()
    formats = [form for form in FORMATS if form in Image.OPEN]
    with quiet(), pillow_errors(name):
        try:
            image: Image.Image = Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            if kind != "a HEIC image":
                raise _not_an_image(name, kind) from error
            image = _read_heic(file, name)
        unit = _PAGED.get(image.format or "")
        count = getattr(image, "n_frames", 1) if unit else 1

    def page(index: int) -> Image.Image:
        if index or image.tell():
            with quiet(), pillow_errors(name):
                image.seek(index)
        return image

    with image:
        yield PagedImage(name, count, unit or "pages", turns=image.format is not None, page=page)


def decode(image: Image.Image, name: str, warn: Callable[[str], None]) -> Image.Image:
    """Decode an image, as far as it is there. Its size is checked before.

    Args:
        image: Not decoded yet.
        name: For messages.
        warn: Receives how much is there of one that was cut off.

    Raises:
        ImageError: Damaged, or too large.
    """
    check_size(image.width, image.height, name)
    # A TIFF parses its tags once more when it is decoded.
    with pillow_errors(name), quiet() if image.format == "TIFF" else nullcontext():
        file = getattr(image, "fp", None) if image.format in ("JPEG", "MPO") else None
        file = None if file is None or file.closed else file
        cut = file is not None and ends_in_zeros(file)
        try:
            image.load()
        except OSError:
            if file is None:
                raise
            cut = True
        if file is not None and cut:
            file.seek(0)
            with quiet():
                return read_cut_jpeg(file.read(), name, warn)
    return image


def is_preview(image: Image.Image) -> bool:
    """Whether a page of a TIFF is marked as a smaller copy of another: in raw photos, the first one is."""
    kind = image.tag_v2.get(_SUBFILE_TYPE) if isinstance(image, TiffImageFile) else None
    return isinstance(kind, int) and bool(kind & 1)


def check_size(width: int, height: int, name: str) -> None:
    """Raise ImageError for an image without pixels, or over MAX_PIXELS or MAX_SIDE."""
    if not width or not height:
        raise ImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} is too large: {width}x{height} pixels",
            hint=f"the limit is {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE:,} pixels a side",
        )


@contextmanager
def pillow_errors(name: str, damage: tuple[type[Exception], ...] = DAMAGE) -> Iterator[None]:
    """Turn what Pillow raises into an ImageError about ``name``; ``damage`` is what a bad file causes."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is too large: over {MAX_PIXELS // 10**6} megapixels", hint="make it smaller first"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory", hint="make it smaller first") from error
    except damage as error:
        raise ImageError(f"{name} is damaged or cut off", hint=_AGAIN) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings on what headers and EXIF data have. Only short work: other threads wait for the lock."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read_heic(file: BinaryIO, name: str) -> Image.Image:
    """The main image, of no format. It is turned as its container says, which its EXIF data repeat."""
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC image, which cannot be read here", hint="pip install 'onevision[heic]'"
        ) from error
    file.seek(0)
    try:
        opened = pillow_heif.open_heif(file)
        check_size(opened.size[0], opened.size[1], name)
        image: Image.Image = opened.to_pillow()
    except DAMAGE as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} starts as a HEIC image and is damaged", hint=_AGAIN) from error
    return image


def _not_an_image(name: str, kind: str | None) -> ImageError:
    if kind is None:
        return ImageError(f"{name} is not an image that can be read", hint=f"{_READABLE} are read")
    if "AVIF" in kind and "AVIF" not in Image.OPEN:
        return ImageError(f"{name} is {kind}, which cannot be read here", hint="pip install 'pillow>=11.3'")
    if kind.endswith("image"):
        return ImageError(f"{name} starts as {kind} and is damaged", hint=_AGAIN)
    hint = "pass it with --video" if kind.endswith("video") else f"{_READABLE} are read"
    return ImageError(f"{name} is {kind}, not an image", hint=hint)
