"""Scenarios: inputs by name, each with a short and a long answer.

In: names and the user's files. Out: scenarios. Their images and video are generated, always the same, in true
sizes and with detail at every scale, as photographs have it: JPEG decodes slower where there is more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from onevision.errors import ImageError, UsageError, VideoError, suggest
from onevision.eval.suite.draw import FONT_FOLDER
from onevision.eval.suite.vocabulary import COLORS, SHAPES
from onevision.runtime.messages import ImagePart, Message, Part, VideoPart

SHORT, LONG = 16, 128  # tokens of an answer
LONG_SUFFIX = "-long"
QUESTION = "Describe what can be seen here, and where it is."
SECOND_QUESTION = "Which part of it is the brightest?"

_OCTAVES = (4, 16, 64, 256)  # blotches along the longer side
_FRAME, _FRAMES, _RATE = (854, 480), 48, 24


@dataclass(frozen=True)
class Scenario:
    """One question."""

    name: str
    answer: int = SHORT  # tokens
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) of images to generate
    kind: Literal["photo", "scan", "video", "file"] = "photo"
    frames: int | None = None  # of a video; None: the bundle's default
    file: Path | None = None  # the user's
    again: bool = False  # time the second question about the same input

    def messages(self, folder: Path) -> list[Message]:
        """The question with its inputs, which are generated; a video in ``folder``.

        Raises:
            ImportError: A video is needed, and PyAV is missing.
        """
        if self.kind == "video":
            path = self.file or folder / "clip.mp4"
            visuals: list[Part] = [VideoPart(path if path.exists() else write_video(path))]
        elif self.file:
            visuals = [ImagePart(self.file.read_bytes())]
        else:
            make = scan if self.kind == "scan" else photograph
            visuals = [ImagePart(make(size, seed)) for seed, size in enumerate(self.sizes)]
        return [Message("user", (*visuals, QUESTION))]


_INPUTS = (
    Scenario("text"),
    Scenario("photo-384", sizes=((384, 384),)),
    Scenario("photo-480p", sizes=((640, 480),)),
    Scenario("photo-1080p", sizes=((1920, 1080),)),
    Scenario("photo-12mp", sizes=((4032, 3024),)),
    Scenario("a4-scan", sizes=((1654, 2339),), kind="scan"),  # 200 dots per inch
    Scenario("multi-4", sizes=((640, 480),) * 4),
    Scenario("video-8", kind="video", frames=8),
    Scenario("video-32", kind="video", frames=32),
)
_FOLLOW_UP = Scenario("followup", sizes=((640, 480),), again=True)
_LONG_ANSWERS = (replace(short, name=short.name + LONG_SUFFIX, answer=LONG) for short in _INPUTS)
SCENARIOS = {one.name: one for one in (*_INPUTS, _FOLLOW_UP, *_LONG_ANSWERS)}
QUICK = ("text", "photo-384", "photo-480p")


def choose(names: Sequence[str], files: Sequence[Path], *, quick: bool) -> tuple[Scenario, ...]:
    """Scenarios by name and one per file; without either, all of them, or those of ``quick``.

    Raises:
        UsageError: A name is unknown, ``quick`` is combined with names or files, or a file cannot be read.
    """
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise UsageError(f"unknown scenario {unknown[0]!r}", hint=suggest(unknown[0], SCENARIOS))
    if quick and (names or files):
        raise UsageError("--quick cannot be combined with --scenario or --file")
    if not names and not files:
        names = QUICK if quick else tuple(SCENARIOS)
    return (*(SCENARIOS[name] for name in dict.fromkeys(names)), *map(_of_file, files))


def _of_file(path: Path) -> Scenario:
    """A scenario of the user's image or video."""
    from onevision.runtime.container import probe_video
    from onevision.runtime.images import read_image

    try:
        read_image(path)
    except ImageError as not_an_image:
        try:
            probe_video(path)
        except VideoError:
            raise not_an_image from None
        return Scenario(path.name, kind="video", file=path)
    return Scenario(path.name, kind="file", file=path)


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
    for top in range(margin, height - margin, line):
        text = " ".join(generator.choice([*COLORS, *SHAPES], 24))
        while face.getlength(text) > width - 2 * margin:
            text = text.rpartition(" ")[0]
        draw.text((margin, top), text, (30, 30, 34), face)
    return _jpeg(page)


def write_video(path: Path) -> Path:
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
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
