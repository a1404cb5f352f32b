"""Drawing: a canvas with shapes and text, anti-aliased, on varied grounds, with grain.

Coordinates and sizes are pixels of the finished image, floats; the canvas is drawn twice as large and
reduced.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from onevision.eval.suite.vocabulary import COLORS

Rgb = tuple[int, int, int]

SCALE = 2  # the canvas is drawn this many times as large
CAP_HEIGHT = 0.73  # of the em, near enough for all fonts here
FONT_FOLDER = Path(__file__).parent / "fonts"


class Canvas:
    """A image being drawn.

    Args:
        random: Source of all variation.
        size: (width, height) in pixels.
        dark: Draw on a dark ground; None: at random.
    """

    def __init__(self, random: Random, size: tuple[int, int], *, dark: bool | None = None) -> None:
        self.random = random
        self.width, self.height = size
        self.dark = random.random() < 0.25 if dark is None else dark
        self._image = _ground(random, (self.width * SCALE, self.height * SCALE), dark=self.dark)
        self._draw = ImageDraw.Draw(self._image)

    def copy(self) -> Canvas:
        """A copy with everything drawn so far."""
        other = object.__new__(Canvas)
        other.random, other.width, other.height, other.dark = self.random, self.width, self.height, self.dark
        other._image = self._image.copy()
        other._draw = ImageDraw.Draw(other._image)
        return other

    def ink(self) -> Rgb:
        """A readable color for this ground: near black or near white, with a tint."""
        low, high = (205, 255) if self.dark else (0, 70)
        red, green, blue = (self.random.randint(low, high) for _ in range(3))
        return red, green, blue

    def shape(
        self, shape: str, color: Rgb, center: tuple[float, float], size: float, angle: float = 0.0
    ) -> None:
        """Draw one of ``vocabulary.SHAPES``, ``size`` pixels across, turned by ``angle`` degrees."""
        x, y, radius = center[0] * SCALE, center[1] * SCALE, size * SCALE / 2
        if shape in ("circle", "ring"):
            box = (x - radius, y - radius, x + radius, y + radius)
            if shape == "circle":
                self._draw.ellipse(box, fill=color)
            else:
                self._draw.ellipse(box, outline=color, width=round(radius * 0.38))
            return
        turn = math.radians(angle)
        cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
        outline = [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in _OUTLINES[shape]]
        self._draw.polygon(outline, fill=color)

    def rectangle(
        self,
        box: tuple[float, float, float, float],
        fill: Rgb | None = None,
        outline: Rgb | None = None,
        *,
        line: float = 1.0,
        radius: float = 0.0,
    ) -> None:
        """Draw a rectangle (left, top, right, bottom), filled, framed or both, with rounded corners."""
        scaled = tuple(SCALE * edge for edge in box)
        width = max(1, round(line * SCALE))
        self._draw.rounded_rectangle(scaled, radius * SCALE, fill, outline, width)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], color: Rgb, width: float = 1.0
    ) -> None:
        """Draw a straight line."""
        points = [(x * SCALE, y * SCALE) for x, y in (start, end)]
        self._draw.line(points, color, max(1, round(width * SCALE)))

    def text(
        self,
        text: str,
        center: tuple[float, float],
        font: str,
        cap_height: float,
        color: Rgb,
        angle: float = 0.0,
    ) -> None:
        """Draw a line of text around its center; ``cap_height`` is the height of its capitals."""
        face = _face(font, round(cap_height * SCALE / CAP_HEIGHT))
        x, y = center[0] * SCALE, center[1] * SCALE
        left, top, right, bottom = face.getbbox(text, anchor="ls")
        if not angle:
            self._draw.text((x - (left + right) / 2, y - (top + bottom) / 2), text, color, face, anchor="ls")
            return
        pad = 2
        mask = Image.new("L", (math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad))
        ImageDraw.Draw(mask).text((pad - left, pad - top), text, 255, face, anchor="ls")
        mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        self._image.paste(color, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)

    def finish(self, grain: float | None = None) -> NDArray[np.uint8]:
        """The finished image, uint8 [height, width, 3]; ``grain`` is its noise in levels, None: at random."""
        pixels = np.asarray(self._image.reduce(SCALE), np.int16)
        grain = self.random.choice((0.0, 2.0, 4.0, 8.0)) if grain is None else grain
        if grain:
            noise = np.random.default_rng(self.random.getrandbits(64))
            most = round(grain * 1.7)
            pixels = pixels + noise.integers(-most, most + 1, pixels.shape, np.int16)
        light = self.random.randint(-10, 10)
        return (pixels + light).clip(0, 255).astype(np.uint8)


def text_width(text: str, font: str, cap_height: float) -> float:
    """Width of a line of text, in pixels."""
    left, _, right, _ = _face(font, round(cap_height * SCALE / CAP_HEIGHT)).getbbox(text, anchor="ls")
    return (right - left) / SCALE


def fitting(text: str, font: str, cap_height: float, width: float) -> float:
    """Largest cap height, up to the given one, at which the text is no wider than ``width``."""
    return min(cap_height, cap_height * width / text_width(text, font, cap_height))


def shade(random: Random, color: str) -> Rgb:
    """A shade of one of ``vocabulary.COLORS``."""
    red, green, blue = (min(255, max(0, level + random.randint(-14, 14))) for level in COLORS[color])
    return red, green, blue


def tilt(random: Random, shape: str) -> float:
    """Random rotation, in degrees, that keeps a shape recognizable."""
    return random.uniform(-180, 180) if shape == "star" else random.uniform(-14, 14)


@lru_cache(maxsize=512)
def _face(font: str, pixels: int) -> ImageFont.FreeTypeFont:
    if font == "Aileron":
        face = ImageFont.load_default(pixels)
        assert isinstance(face, ImageFont.FreeTypeFont)  # noqa: S101  # with a size it always is
        return face
    return ImageFont.truetype(FONT_FOLDER / f"{font}.ttf", pixels)


def _ground(random: Random, size: tuple[int, int], *, dark: bool) -> Image.Image:
    """A plain, graded or blotched ground without strong colors."""
    level = random.randint(15, 50) if dark else random.randint(215, 250)

    def tint() -> Rgb:
        red, green, blue = (level + random.randint(-12, 5) for _ in range(3))
        return red, green, blue

    kind = random.choice(("plain", "graded", "blotched"))
    if kind == "plain":
        return Image.new("RGB", size, tint())
    cells = (2, 2) if kind == "graded" else (random.randint(3, 6), random.randint(3, 6))
    seeds = Image.new("RGB", cells)
    seeds.putdata([tint() for _ in range(cells[0] * cells[1])])
    return seeds.resize(size, Image.Resampling.BILINEAR)


def _star() -> list[tuple[float, float]]:
    spikes = [(1.0 if at % 2 == 0 else 0.42, math.pi * (at / 5 - 0.5)) for at in range(10)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for radius, turn in spikes]


def _heart() -> list[tuple[float, float]]:
    points = []
    for at in range(40):
        t = 2 * math.pi * at / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16, -(y + 2.5) / 15))
    return points


def _moon() -> list[tuple[float, float]]:
    """A crescent: the outer arc of one circle and the arc of a second that cuts it."""
    outer = [math.radians(degrees) for degrees in range(50, 311, 10)]
    points = [(math.cos(turn) + 0.25, math.sin(turn)) for turn in outer]
    tip_x, tip_y = points[0]
    center = 0.62 + 0.25
    radius, reach = math.hypot(center - tip_x, tip_y), math.atan2(tip_y, tip_x - center)
    inner = np.linspace(2 * math.pi - reach, reach, 24)
    return points + [(center + radius * math.cos(turn), radius * math.sin(turn)) for turn in inner]


_ARM = 0.34
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "star": _star(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "heart": _heart(),
    "moon": _moon(),
}  # fmt: skip
