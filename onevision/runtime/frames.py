"""A video that is given as images: an animation, a folder, a list or an array."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onevision.errors import ImageError, VideoError
from onevision.runtime.container import Source, VideoBytes, file_head
from onevision.runtime.imagefile import FORMATS, decode
from onevision.runtime.images import ImageSource, open_source, read_image, to_rgb, whole_source
from onevision.runtime.kinds import identify

#: A file, its bytes, a folder of frames, frames in order, or frames as an array uint8 [N, H, W, 3].
GivenVideo: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | io.BytesIO | Sequence[ImageSource] | NDArray[np.uint8]
)

Warn: TypeAlias = Callable[[str], None]

_ANIMATIONS = ("a WebP image", "an AVIF image")  # FFmpeg reads those of GIF and PNG


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames that are images.

    Attributes:
        name: For messages.
        count: N, at least 1.
        read: Reads the frames of some numbers, in ascending order; warnings go to its second argument.
        times: When each is shown, in seconds after the first; None: unknown.
        duration: Seconds.
        warnings: About the whole.
    """

    name: str
    count: int
    read: Callable[[Sequence[int], Warn], Iterator[Image.Image]]
    times: tuple[float, ...] | None = None
    duration: float | None = None
    warnings: tuple[str, ...] = ()


def given_video(source: GivenVideo) -> Frames | Source:
    """Frames, where a video is given as images; else the video file.

    Raises:
        VideoError: No such frames.
    """
    if isinstance(source, np.ndarray):
        return _of_array(source)
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return _of_list(source)
    with _video_errors():
        file: Any = whole_source(source)
    if isinstance(file, bytes):
        if not file:
            raise VideoError("the video has 0 bytes")
        file = VideoBytes(file)
    elif isinstance(file, (str, os.PathLike)) and os.path.isdir(file):  # noqa: PTH112 (a null byte)
        return _of_folder(Path(file))
    return _of_animation(file)


def _of_array(array: NDArray[np.uint8]) -> Frames:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise VideoError(
            f"an array of shape {array.shape} and type {array.dtype} is not a video",
            hint="give uint8 of shape (frames, height, width, 3), in the order red, green, blue",
        )
    return _of_images("the array", list(array))


def _of_list(frames: Sequence[ImageSource]) -> Frames:
    if not frames:
        raise VideoError("the list of frames is empty")
    return _of_images("the list", frames, hint="a list holds the frames of one video; videos= takes several")


def _of_folder(folder: Path) -> Frames:
    """The images of a folder, in the order of the numbers in their names."""
    Image.init()
    suffixes = {suffix for suffix, form in Image.EXTENSION.items() if form in FORMATS} | {".heic", ".heif"}
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise VideoError(f"{folder} cannot be opened: {error.strerror}") from error
    frames = sorted((path for path in files if path.suffix.lower() in suffixes), key=_in_order)
    if not frames:
        raise VideoError(
            f"{folder} is a folder without images", hint="name a video, or a folder of its frames"
        )
    others = len(files) - len(frames)
    warnings = (
        (f"{folder}: {others} of {len(files)} files are no images, and are left out",) if others else ()
    )
    return _of_images(str(folder), frames, warnings=warnings)


def _in_order(path: Path) -> tuple[list[tuple[str, int]], str]:
    """Sort key of a name in which numbers count as such: frame 2 comes before frame 10."""
    parts = re.findall(r"(\D*)(\d*)", path.stem.lower())
    return [(text, int(number or 0)) for text, number in parts], path.name


def _of_images(
    name: str, frames: Sequence[ImageSource], *, hint: str | None = None, warnings: tuple[str, ...] = ()
) -> Frames:
    def read(numbers: Sequence[int], warn: Warn) -> Iterator[Image.Image]:
        for number in numbers:
            try:
                yield read_image(frames[number], warn=warn)
            except ImageError as error:
                raise VideoError(
                    f"frame {number + 1} of {name}: {error.message}", hint=hint or error.hint
                ) from error

    return Frames(name, len(frames), read, warnings=warnings)


def _of_animation(source: Source) -> Frames | Source:
    """Frames of an animated WebP or AVIF and their times; any other file as it is."""
    if identify(file_head(source)) not in _ANIMATIONS:
        return source

    def read(numbers: Sequence[int], warn: Warn) -> Iterator[Image.Image]:
        with _video_errors(), open_source(source) as opened:
            for number in numbers:
                yield to_rgb(opened.page(number), opened.name, exif=opened.turns, warn=warn)

    with _video_errors(), open_source(source) as opened:
        if opened.count == 1:
            return source
        shown: list[float] = []
        for number in range(opened.count):  # a frame's time is known when it is decoded
            info = decode(opened.page(number), opened.name, lambda _: None).info
            shown.append(info["timestamp"] / 1e3)
        duration = shown[-1] - shown[0] + info["duration"] / 1e3
        if not duration:  # nothing is said
            return Frames(opened.name, opened.count, read)
        return Frames(opened.name, opened.count, read, tuple(time - shown[0] for time in shown), duration)


@contextmanager
def _video_errors() -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise VideoError(error.message, hint=error.hint) from error
