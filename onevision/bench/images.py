"""Benchmark inputs: images and a video of true sizes with the detail of photographs, the same every time.

Only decoding depends on the content: JPEG decodes slower where there is more detail. These have detail at
every scale, as photographs do.
"""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from onevision.suite.draw import FONT_FOLDER
from onevision.suite.vocabulary import COLOURS, SHAPES

if TYPE_CHECKING:
    from pathlib import Path

_QUALITY = 90
_OCTAVES = (4, 16, 64, 256)  # blotches along the longer side
_FRAME, _FRAMES, _RATE = (854, 480), 48, 24


def photograph(size: tuple[int, int], seed: int = 0) -> bytes:
    """A JPEG of (width, height) with blotches of every scale and grain."""
    return _jpeg(_blotches(size, seed))


def scan(size: tuple[int, int], seed: int = 0) -> bytes:
    """A JPEG of (width, height): a page full of print."""
    width, height = size
    generator = np.random.default_rng(seed)
    page = Image.new("RGB", size, (250, 248, 243))
    draw = ImageDraw.Draw(page)
    margin, line = width // 10, height // 70
    face = ImageFont.truetype(FONT_FOLDER / "DejaVuSerif.ttf", round(line * 0.7))
    words = [*COLOURS, *SHAPES]
    for top in range(margin, height - margin, line):
        text = " ".join(generator.choice(words, 24))
        while face.getlength(text) > width - 2 * margin:
            text = text.rpartition(" ")[0]
        draw.text((margin, top), text, (30, 30, 34), face)
    return _jpeg(page)


def video(path: Path) -> Path:
    """Write a video of two seconds: a view that moves across an image.

    Raises:
        ImportError: PyAV is not installed.
    """
    import av

    width, height = _FRAME
    scene = np.asarray(_blotches((2 * width, height), seed=1))
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=Fraction(_RATE))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for left in np.linspace(0, width, _FRAMES, dtype=int):
            view = np.ascontiguousarray(scene[:, left : left + width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def _blotches(size: tuple[int, int], seed: int) -> Image.Image:
    """Noise of several scales, the coarser the stronger, as in photographs."""
    generator = np.random.default_rng(seed)
    width, height = size
    total = np.full((height, width, 3), 128, np.int16)
    for octave, cells in enumerate(_OCTAVES):
        shape = (max(2, cells * height // max(size)), max(2, cells * width // max(size)), 3)
        noise = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        total += (np.asarray(noise.resize(size, Image.Resampling.BICUBIC), np.int16) - 128) >> octave
    total += generator.integers(-4, 5, total.shape, np.int16)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
