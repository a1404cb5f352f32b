"""Pictures for stage 0: tiles full of letters, digits and shapes, and what each patch of them shows.

SigLIP comes to LLaVA-OneVision pretrained on pictures and captions. The tiny tower gets the same lesson in a
denser form: for each patch, which letters, shapes and colours it shows, and where in the tile it is. All
keeps to what may be trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from onevision.eval.suite.draw import Canvas, shade, text_width, tilt
from onevision.eval.suite.vocabulary import (
    COLORS,
    HELD_OUT_NUMBERS,
    HELD_OUT_WORDS,
    SHAPES,
    draw_font,
    things,
)
from recipes.tiny.model import GRID, PATCH, PATCHES, SIDE, TILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+"
#: Where in its tile a patch is: patches in the middle row or column are on neither side of it.
SIDES = ("top", "bottom", "left", "right", "centre")
LABELS = (*GLYPHS, *SHAPES, *COLORS, *SIDES)
_INDEX = {label: at for at, label in enumerate(LABELS)}
_PIXELS = GRID * TILE  # a side of the canvas that is cut to GRID² tiles


@dataclass(frozen=True, eq=False)
class LabelledTiles:
    """Tiles uint8 [T, S, S, 3], and float32 [T, P, len(LABELS)]: 1 where a patch shows it, or is there."""

    tiles: NDArray[np.uint8]
    labels: NDArray[np.float32]


def labelled_tiles(seed: int, number: int, canvases: int) -> LabelledTiles:
    """GRID² tiles of each canvas, from ``number`` on. The same arguments give the same tiles."""
    drawn = [_canvas(Random(f"tiles {seed} {number + at}")) for at in range(canvases)]  # noqa: S311
    return LabelledTiles(
        np.concatenate([tiles for tiles, _ in drawn]), np.concatenate([labels for _, labels in drawn])
    )


def _canvas(random: Random) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A canvas cut to tiles, as AnyRes cuts: things lie across the borders."""
    canvas = Canvas(random, (_PIXELS, _PIXELS))
    labels = np.zeros((GRID * SIDE, GRID * SIDE, len(LABELS)), np.float32)
    scale = random.choice((16.0, 24.0, 36.0, 48.0))  # of the things on this canvas, in pixels
    step = scale * 1.5
    for row in range(int(_PIXELS / step)):
        at = random.uniform(0, step)
        while at < _PIXELS:
            middle = (row + 0.5 + random.uniform(-0.15, 0.15)) * step
            at += _thing(canvas, random, labels, (at, middle), scale) + random.uniform(0.2, 1.2) * scale
    tiles = canvas.finish().reshape(GRID, TILE, GRID, TILE, 3).swapaxes(1, 2)
    by_tile = labels.reshape(GRID, SIDE, GRID, SIDE, -1).swapaxes(1, 2)
    for name, rows, cols in (
        ("top", slice(0, SIDE // 2), slice(None)),
        ("bottom", slice(-(SIDE // 2), None), slice(None)),
        ("left", slice(None), slice(0, SIDE // 2)),
        ("right", slice(None), slice(-(SIDE // 2), None)),
        ("centre", SIDE // 2, SIDE // 2),
    ):
        by_tile[:, :, rows, cols, _INDEX[name]] = 1
    return tiles.reshape(-1, TILE, TILE, 3), by_tile.reshape(GRID**2, PATCHES, -1)


def _thing(
    canvas: Canvas, random: Random, labels: NDArray[np.float32], left: tuple[float, float], scale: float
) -> float:
    """Draw a shape or a short text that begins at ``left``, mark its patches, and return its width."""
    x, y = left
    if random.random() < 0.25:
        colour, shape = random.choice(things("train"))
        size = scale * random.uniform(0.7, 1.2)
        canvas.shape(shape, shade(random, colour), (x + size / 2, y), size, tilt(random, shape))
        box = x, y - size / 2, x + size, y + size / 2
        _mark(labels, box, shape)
        _mark(labels, box, colour)
        return size
    text = _text(random)
    font, cap, ink = draw_font(random, "train"), scale * random.uniform(0.5, 0.85), canvas.ink()
    if random.random() < 0.25:
        ink = shade(random, random.choice(sorted(COLORS)))
    width = text_width(text, font, cap)
    canvas.text(text, (x + width / 2, y), font, cap, ink, random.choice((0.0, 0.0, random.uniform(-5, 5))))
    edges = [x, *(x + text_width(text[: end + 1], font, cap) for end in range(len(text)))]
    for glyph, start, end in zip(text, edges[:-1], edges[1:], strict=True):
        _mark(labels, (start, y - cap / 2, end, y + cap / 2), glyph)
    return width


def _text(random: Random) -> str:
    while True:
        pool = random.choice((GLYPHS[:26], GLYPHS[:26], GLYPHS[26:36], "+"))
        text = "".join(random.choice(pool) for _ in range(1 if pool == "+" else random.randint(1, 4)))
        if text not in HELD_OUT_WORDS and text not in HELD_OUT_NUMBERS:
            return text


def _mark(labels: NDArray[np.float32], box: tuple[float, float, float, float], label: str) -> None:
    """A patch shows a thing that covers a fifth of it, or of which it shows 40 %."""
    left, top, right, bottom = (edge / PATCH for edge in box)
    edges = np.arange(len(labels))
    across = (np.minimum(edges + 1, right) - np.maximum(edges, left)).clip(0)
    down = (np.minimum(edges + 1, bottom) - np.maximum(edges, top)).clip(0)
    area = down[:, None] * across
    shown = area >= min(0.2, 0.4 * (right - left) * (bottom - top))
    labels[shown & (area > 0), _INDEX[label]] = 1
