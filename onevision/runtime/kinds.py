"""A file that a user named: whether it is there, and what kind it is by its first bytes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from onevision.errors import InputError

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
    (4, b"ftypmsf1", "a HEIC image"),
    (4, b"ftypcrx", "a raw photo"),
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
    (0, b"version https://git-lfs", "a Git LFS pointer"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (4, b"JXL ", "a JPEG XL file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR file"),
    (0, b"#?RADIANCE", "a Radiance HDR file"),
    (0, b"FUJIFILMCCD-RAW", "a raw photo"),
    (0, b"IIRO", "a raw photo"),
    (0, b"IIU\0", "a raw photo"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
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
