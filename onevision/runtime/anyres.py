"""An image to tiles, before the vision encoder.

In: an RGB image. Out: tiles uint8 [T, S, S, 3] and, normalized, pixel values float32 [T, 3, S, S].

A single image is tiled by AnyRes (arXiv 2408.03326, section 3.1): a base view and a grid of tiles. Several
images are one padded square each; a frame of a video is squashed to one tile. A smaller budget chooses
another of the model's grids, or the padded square: the input stays one that the model was trained on.

Sizes are (height, width) in pixels throughout. The arithmetic is that of transformers' ``llava_onevision``
(its slow image processor), in double precision unless said otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onevision.bundle import VisionInfo
from onevision.errors import BundleError
from onevision.runtime.options import AnswerOptions

RESAMPLE_ABOVE = 1.1  # a grid is shrunk to max_tiles only when its side is more than this factor too long
BAND_PIXELS = 1 << 22  # pixels of a padded square that are in memory at once


@dataclass(frozen=True)
class AnyRes:
    """How a checkpoint tiles an image: the shape of a tile, the grids to choose from, the cap on tokens."""

    tile: int  # S, pixels per side of a tile
    side: int  # patches per side of a tile; side**2 is P
    pinpoints: tuple[tuple[int, int], ...]  # (height, width) of the grids, multiples of S
    max_tiles: int | None  # N of "anyres_max_N"; None for plain "anyres", which has no cap

    @classmethod
    def of(cls, vision: VisionInfo) -> AnyRes:
        """The tiling of a bundle, from its manifest; see :meth:`parse`."""
        return cls.parse(
            vision.aspect_ratio,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            pinpoints=vision.grid_pinpoints,
        )

    @classmethod
    def parse(
        cls, aspect_ratio: str, *, image_size: int, patch_size: int, pinpoints: Sequence[Sequence[int]]
    ) -> AnyRes:
        """Read the fields of a manifest.

        Args:
            aspect_ratio: ``"anyres"`` or ``"anyres_max_N"``.
            image_size: S in pixels.
            patch_size: Pixels per side of a patch. Pixels left over at the right and the bottom are not seen.
            pinpoints: Sizes (height, width) that an image may be fitted into.

        Raises:
            BundleError: Another aspect ratio, or a grid that is not made of whole tiles.
        """
        match = re.fullmatch(r"anyres(?:_max_([1-9][0-9]*))?", aspect_ratio)
        if match is None:
            raise BundleError(
                f"the aspect ratio {aspect_ratio!r} is not supported",
                hint='only "anyres" and "anyres_max_N" are: export the checkpoint again',
            )
        for height, width in pinpoints:
            if min(height, width) < image_size or height % image_size or width % image_size:
                raise BundleError(f"the grid {height}x{width} is not made of tiles of {image_size} pixels")
        if not pinpoints:
            raise BundleError("the list of grids is empty")
        return cls(
            tile=image_size,
            side=image_size // patch_size,
            pinpoints=tuple((height, width) for height, width in pinpoints),
            max_tiles=int(match[1]) if match[1] else None,
        )

    def grid_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tiles for an image of ``size``."""
        height, width = select_best_resolution(size, self.pinpoints)
        return height // self.tile, width // self.tile

    def unpadded(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the grid's features that show the image and not its black border.

        As ``unpad_image``: the cut is the same on both sides, so that one more row than needed may stay.
        """
        height, width = size
        rows, cols = (self.side * tiles for tiles in self.grid_shape(size))
        if width / height > cols / rows:
            cut = (rows - int(round(height * (cols / width), 7))) // 2
            return slice(cut, rows - cut), slice(0, cols)
        cut = (cols - int(round(width * (rows / height), 7))) // 2
        return slice(0, rows), slice(cut, cols - cut)

    def packed_shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the grid's features after unpadding and resampling, without the newlines."""
        rows, cols = (part.stop - part.start for part in self.unpadded(size))
        if self.max_tiles is None:
            return rows, cols
        ratio = math.sqrt(rows * cols / (self.max_tiles * self.side**2))
        if ratio > RESAMPLE_ABOVE:
            return int(rows // ratio), int(cols // ratio)
        return rows, cols

    def token_count(self, size: tuple[int, int]) -> int:
        """Visual tokens of one image: the base view, the grid, and a newline after each of its rows."""
        rows, cols = self.packed_shape(size)
        return self.side**2 + rows * (cols + 1)

    def within(self, max_tiles: int | None) -> AnyRes | None:
        """The grids that have at most ``max_tiles`` tiles with the base view; None if none has."""
        if max_tiles is None:
            return self
        fitting = tuple(
            (height, width)
            for height, width in self.pinpoints
            if 1 + (height // self.tile) * (width // self.tile) <= max_tiles
        )
        return replace(self, pinpoints=fitting) if fitting else None

    def enlarged(self, size: tuple[int, int]) -> tuple[int, int]:
        """``size`` with as many pixels as the checkpoint's most tiles have, if it has fewer.

        Those are the N of ``anyres_max_N``, or the tiles of the largest grid where there is no N.
        """
        height, width = size
        largest = max(rows * columns for rows, columns in self.pinpoints)
        most = self.max_tiles * self.tile**2 if self.max_tiles else largest
        # A line of pixels would become longer than any grid: no side needs to exceed the longest one.
        longest = max(max(pinpoint) for pinpoint in self.pinpoints)
        factor = min(math.sqrt(most / (height * width)), longest / max(size))
        return (round(height * factor), round(width * factor)) if factor > 1 else size


@dataclass(frozen=True)
class Tiling:
    """How one image is cut into tiles.

    Attributes:
        size: (height, width) that it is enlarged to first; its own if it is not.
        spec: The grids to choose from; None for a padded square.
        grid: (rows, columns) of tiles; None for a padded square.
        tiles: Tiles for the encoder: base view and grid.
        tokens: Visual tokens.
    """

    size: tuple[int, int]
    spec: AnyRes | None
    grid: tuple[int, int] | None
    tiles: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Tiles:
    """Input of the vision encoder for one image."""

    pixels: NDArray[np.uint8]  # [T, S, S, 3]: the base view, then the grid row by row
    size: tuple[int, int]  # (height, width) of the image, in pixels
    grid: tuple[int, int] | None  # (rows, columns) of tiles; None for a padded square


def choose_tiling(
    spec: AnyRes, size: tuple[int, int], options: AnswerOptions, *, several: bool = False
) -> Tiling:
    """Tiling of an image, before it is opened.

    Args:
        spec: Tiling of the checkpoint.
        size: (height, width) of the image.
        options: Its budget: ``max_tiles`` and ``detail``.
        several: It is one of several images: a padded square, whatever the budget.
    """
    allowed = None if several or options.detail == "low" else spec.within(options.max_tiles)
    if allowed is None:
        return Tiling(size, None, None, 1, spec.side**2 + 1)
    if options.detail == "high":
        size = spec.enlarged(size)
    rows, columns = grid = allowed.grid_shape(size)
    return Tiling(size, allowed, grid, 1 + rows * columns, allowed.token_count(size))


def select_best_resolution(size: tuple[int, int], pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of ``pinpoints`` that keeps most of the image's pixels, then wastes fewest.

    The first of equals is taken, as ``transformers.image_processing_utils.select_best_resolution`` does.
    """
    height, width = size

    def loss(pinpoint: tuple[int, int]) -> tuple[int, int]:
        rows, cols = pinpoint
        scale = min(cols / width, rows / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return -effective, rows * cols - effective

    return min(pinpoints, key=loss)


def fit_within(size: tuple[int, int], resolution: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) with the proportions of ``size`` that ``resolution`` holds, rounded up."""
    height, width = size
    rows, cols = resolution
    across, down = cols / width, rows / height
    if across < down:
        return min(math.ceil(height * across), rows), cols
    return rows, min(math.ceil(width * down), cols)


def split(image: Image.Image, spec: AnyRes) -> Tiles:
    """Cut one RGB image into a base view and a grid of tiles.

    The base view is the whole image squashed to S×S. For the grid the image is fitted into the best
    resolution with its proportions kept, and centered on black (an odd pixel goes right or down).
    """
    size = image.height, image.width
    height, width = select_best_resolution(size, spec.pinpoints)
    fitted = image.resize(fit_within(size, (height, width))[::-1], Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))

    tile = spec.tile
    rows, cols = height // tile, width // tile
    pixels = np.empty((1 + rows * cols, tile, tile, 3), np.uint8)
    pixels[0] = squash(image, tile)
    pixels[1:].reshape(rows, cols, tile, tile, 3)[:] = (
        np.asarray(canvas).reshape(rows, tile, cols, tile, 3).swapaxes(1, 2)
    )
    return Tiles(pixels, size, (rows, cols))


def pad_square(image: Image.Image, tile: int, mean: Sequence[float] = (0.5, 0.5, 0.5)) -> Tiles:
    """Pad one RGB image to a square in the mean color, and resize it to one tile.

    Equal to ``pad_to_square`` and a bicubic resize. Pillow resizes rows first and columns after, each to
    whole levels: resizing the rows in bands gives the same levels without ever holding the square, which for
    an image of 10,000×50 has 100 million pixels.
    """
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    red, green, blue = (int(level * 255) for level in mean)
    columns = Image.new("RGB", (tile, side), (red, green, blue))
    rows = max(1, BAND_PIXELS // side)
    for y in range(0, height, rows):
        band = Image.new("RGB", (side, min(rows, height - y)), (red, green, blue))
        band.paste(image.crop((0, y, width, y + band.height)), (left, 0))
        columns.paste(band.resize((tile, band.height), Image.Resampling.BICUBIC), (0, top + y))
    return Tiles(squash(columns, tile)[None], (height, width), None)


def squash(image: Image.Image, tile: int) -> NDArray[np.uint8]:
    """Resize an RGB image to uint8 [S, S, 3], whatever its proportions."""
    return np.asarray(image.resize((tile, tile), Image.Resampling.BICUBIC))


def normalize(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Scale tiles uint8 [T, S, S, 3] to the encoder's input, float32 [T, 3, S, S].

    Bit for bit the slow image processor's: a level times 1/255 in double precision, rounded to float32, then
    minus mean, by std. There are only 256 levels, so that each is computed once.
    """
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    tables = (levels - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    out = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
    for tile, planes in zip(pixels, out, strict=True):
        for channel, table in enumerate(tables):
            planes[channel] = table[tile[:, :, channel]]
    return out
