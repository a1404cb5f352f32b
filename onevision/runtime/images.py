"""An image from a file or from Python, upright and RGB.

In: a path, the bytes of a file, an open file, a PIL image or a NumPy array. Out: a PIL image of mode RGB.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from onevision.errors import ImageError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from numpy.typing import NDArray

    ImageSource: TypeAlias = (
        str | os.PathLike[str] | bytes | BinaryIO | io.BytesIO | Image.Image | NDArray[np.uint8]
    )

MAX_PIXELS = 178_956_970  # where Pillow itself refuses; at 3 bytes a pixel that is half a gibibyte
MAX_SIDE = 65_535  # JPEG's longest side

# Bitmap formats with a signature in their first bytes. No EPS, PDF or the like: they run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "JPEG2000", "ICO", "AVIF")
_READABLE = "JPEG, PNG, WebP, GIF, BMP and TIFF files"

# What Pillow's decoders raise on damaged files: there is no common base.
_DAMAGE = (
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

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# (offset, bytes there, kind of file). The first match counts.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"BM", "a BMP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyphe", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (4, b"ftypM4A", "an MP4 sound file"),
    (4, b"ftyp", "an MP4 video"),
    (4, b"moov", "a QuickTime video"),
    (4, b"mdat", "a QuickTime video"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b"\0\0\x01\xba", "an MPEG video"),
    (0, b"\0\0\x01\xb3", "an MPEG video"),
    (0, b"\x30\x26\xb2\x75", "a Windows Media video"),
    (0, b"OggS", "an Ogg video or sound file"),
    (8, b"WAVE", "a WAV sound file"),
    (0, b"ID3", "an MP3 sound file"),
    (0, b"fLaC", "a FLAC sound file"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
)

_LOCK = threading.Lock()  # the list of warning filters belongs to the whole process


def read_image(source: ImageSource, *, exif: bool = True) -> Image.Image:
    """Open an image: upright, alpha over white, mode RGB.

    Of an animation, the first frame is taken. 16-bit grayscale is scaled to 8 bits, and so is mode I;
    floating-point grayscale is taken as 0 to 1 if it stays within, else as 0 to 255.

    Args:
        source: A path, a file's bytes, an open binary file, a PIL image, or an array uint8 [H, W],
            [H, W, 3] or [H, W, 4].
        exif: Turn the image as its EXIF orientation says. The original LLaVA-NeXT does not.

    Raises:
        ImageError: Missing, empty, damaged, not an image, or over MAX_PIXELS or MAX_SIDE.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the PIL image", exif=exif)
    if isinstance(source, bytes):
        if not source:
            raise ImageError("the image has 0 bytes")
        return _open(io.BytesIO(source), f"the image of {len(source):,} bytes", exif=exif)
    if isinstance(source, (str, os.PathLike)):
        path = existing_file(source, ImageError)
        try:
            file = path.open("rb")
        except OSError as error:
            raise ImageError(f"{path} cannot be opened: {error.strerror}") from error
        with file:
            return _open(file, str(path), exif=exif)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise ImageError("the file is open as text", hint="open it as binary: open(path, 'rb')")
        return read_image(data, exif=exif)
    raise ImageError(
        f"an image cannot be read from a value of type {type(source).__name__}",
        hint="give a path, the bytes of a file, an open file, a PIL image or a uint8 array (H, W, 3)",
    )


def existing_file(source: str | os.PathLike[str], error: type[InputError]) -> Path:
    """The path of a file that exists and is not empty.

    Raises:
        InputError: As ``error``, if it is missing, empty, a folder, a device or an address on the web.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise error(f"a path is needed, not a value of type {type(source).__name__}")
    path = Path(source)
    name = str(source) if len(str(source)) <= 200 else f"{str(source)[:80]}…"
    if "://" in name:
        raise error(f"{name} is an address, not a file", hint="download it first and give its path")
    try:
        status = path.stat() if str(source) else None
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except (OSError, ValueError) as cause:  # too long, a null byte, no permission
        reason = cause.strerror if isinstance(cause, OSError) else cause
        raise error(f"{name} is not a path that can be opened: {reason}") from cause
    if status is None:
        raise error(f"{name or repr(name)} does not exist", hint=f"relative paths start at {Path.cwd()}")
    if stat.S_ISDIR(status.st_mode):
        raise error(f"{name} is a folder", hint="name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{name} is not a regular file", hint="write it to a file first")
    if not status.st_size:
        raise error(f"{name} is empty (0 bytes)")
    return path


def identify(head: bytes) -> str | None:
    """Kind of a file by its first bytes, such as "a PNG image" or "an MP4 video"; None if unknown."""
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    if head[:1] == head[188:189] == b"G":
        return "an MPEG transport stream video"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG or other XML document"
    return None


@contextmanager
def _pillow(name: str, damage: tuple[type[Exception], ...] = _DAMAGE) -> Iterator[None]:
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
        raise ImageError(f"{name} is damaged: {error}", hint="save or download it again") from error


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Drop warnings on what headers and EXIF data have. Only short work: other threads wait for the lock."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(file: BinaryIO, name: str, *, exif: bool) -> Image.Image:
    kind = identify(file.read(512))
    file.seek(0)
    Image.init()
    formats = [form for form in FORMATS if form in Image.OPEN]
    with _no_warnings(), _pillow(name):
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError as error:
            raise _not_an_image(name, kind) from error
    with image:
        return _to_rgb(image, name, exif=exif)


def _not_an_image(name: str, kind: str | None) -> ImageError:
    if kind is None:
        return ImageError(f"{name} is not an image that can be read", hint=f"{_READABLE} are read")
    if "HEIC" in kind or "AVIF" in kind:
        return ImageError(f"{name} is {kind}, which cannot be read here", hint="convert it to JPEG or PNG")
    if kind.endswith("image"):
        return ImageError(f"{name} starts as {kind} and is damaged", hint="save or download it again")
    hint = "pass it with --video" if kind.endswith("video") else f"{_READABLE} are read"
    return ImageError(f"{name} is {kind}, not an image", hint=hint)


def _check_size(width: int, height: int, name: str) -> None:
    if not width or not height:
        raise ImageError(f"{name} has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} is too large: {width}x{height} pixels",
            hint=f"the limit is {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE:,} pixels a side",
        )


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"an array of shape {array.shape} and type {array.dtype} is not an image",
            hint="give uint8 of shape (height, width), or (height, width, 3 or 4) as red, green, blue, alpha",
        )
    _check_size(array.shape[1], array.shape[0], "the array")
    image = Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
    return _to_rgb(image, "the array", exif=False)


def _to_rgb(image: Image.Image, name: str, *, exif: bool) -> Image.Image:
    """A new image that needs no open file. Its size is checked before anything is decoded."""
    _check_size(image.width, image.height, name)
    # A TIFF parses its tags once more when it is decoded.
    with _pillow(name), _no_warnings() if image.format == "TIFF" else nullcontext():
        image.load()
    with _pillow(name, ()):
        turn = _UPRIGHT.get(_orientation(image)) if exif else None
        if turn is not None:
            image = image.transpose(turn)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _to_gray(image)
        elif image.has_transparency_data:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        try:
            return image.convert("RGB")
        except ValueError as error:
            raise ImageError(f"{name} has the color mode {image.mode}", hint="convert it to RGB") from error


def _orientation(image: Image.Image) -> int:
    try:
        with _no_warnings():
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return 1  # the pixels are good, and nothing else is needed of the EXIF data


def _to_gray(image: Image.Image) -> Image.Image:
    """Mode L of a grayscale image with more than 8 bits. Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        levels = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
        levels = levels * 255 if levels.min() >= 0 and levels.max() <= 1 else levels
        return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    wide = values.clip(0, 65535).astype(np.int32)
    return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
