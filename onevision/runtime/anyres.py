"""Pictures to tiles before the vision encoder, and its features to visual tokens after it.

In: an RGB picture. Out of the first half: uint8 tiles [T, S, S, 3] and, normalised, float32 [T, 3, S, S].
In: image features float32 [T, P, H]. Out of the second half: visual tokens float32 [n, H].

A single picture is tiled by AnyRes (arXiv 2408.03326, section 3.1): a base view and a grid of tiles. Several
pictures are one padded square each; a frame of a video is squashed to one tile and its features are pooled.
Sizes are (height, width) throughout. The arithmetic is that of transformers' ``llava_onevision`` (its slow
image processor and ``pack_image_features``), in double precision unless said otherwise.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from onevision.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RESAMPLE_ABOVE = 1.1  # a grid is shrunk to max_tiles only when its side is more than this factor too long
BAND_PIXELS = 1 << 22  # pixels of a padded square that are in memory at once


@dataclass(frozen=True)
class AnyRes:
    """How a checkpoint cuts a picture: the shape of a tile, the grids to choose from, the cap on tokens."""

    tile: int  # S, pixels per side of a tile
    side: int  # patches per side of a tile; side**2 is P
    pinpoints: tuple[tuple[int, int], ...]  # (height, width) in pixels, multiples of S
    max_tiles: int | None  # N of "anyres_max_N"; None for plain "anyres", which has no cap

    @classmethod
    def parse(
        cls, aspect_ratio: str, *, image_size: int, patch_size: int, pinpoints: Sequence[Sequence[int]]
    ) -> AnyRes:
        """Reads the fields of a manifest.

        Args:
            aspect_ratio: ``"anyres"`` or ``"anyres_max_N"``.
            image_size: S in pixels.
            patch_size: Pixels per side of a patch. Pixels left over at the right and the bottom are not seen.
            pinpoints: Sizes (height, width) that a picture may be fitted into.

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
        """Rows and columns of tiles for a picture of ``size`` (height, width)."""
        height, width = select_best_resolution(size, self.pinpoints)
        return height // self.tile, width // self.tile

    def unpadded(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the grid's features that show the picture and not its black border.

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
        rows, cols = (kept.stop - kept.start for kept in self.unpadded(size))
        if self.max_tiles is None:
            return rows, cols
        ratio = math.sqrt(rows * cols / (self.max_tiles * self.side**2))
        if ratio > RESAMPLE_ABOVE:
            return int(rows // ratio), int(cols // ratio)
        return rows, cols

    def token_count(self, size: tuple[int, int]) -> int:
        """Visual tokens of one picture: the base view, the grid, and a newline after each of its rows."""
        rows, cols = self.packed_shape(size)
        return self.side**2 + rows * (cols + 1)


@dataclass(frozen=True, eq=False)
class Tiles:
    """What the vision encoder sees of one picture."""

    pixels: NDArray[np.uint8]  # [T, S, S, 3]: the base view, then the grid row by row
    size: tuple[int, int]  # (height, width) of the picture, in pixels
    grid: tuple[int, int] | None  # (rows, columns) of tiles; None for a padded square


def select_best_resolution(size: tuple[int, int], pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of ``pinpoints`` that keeps most of the picture's pixels, then wastes fewest.

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
    """Cuts one RGB picture into a base view and a grid of tiles.

    The base view is the whole picture squashed to S×S. For the grid the picture is fitted into the best
    resolution with its proportions kept, and centred on black (an odd pixel goes to the right or the bottom).
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
    """Pads one RGB picture of several to a square in the mean colour, and resizes it to one tile.

    Equal to ``pad_to_square`` and a bicubic resize. Pillow resizes the rows first and the columns after, each
    to whole levels; padding in bands of rows and resizing those first gives the same levels without ever
    holding the square, which for a 10000×50 picture has 100 million pixels.
    """
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    red, green, blue = (int(level * 255) for level in mean)
    columns = Image.new("RGB", (tile, side), (red, green, blue))
    step = max(1, BAND_PIXELS // side)
    for y in range(0, height, step):
        band = Image.new("RGB", (side, min(step, height - y)), (red, green, blue))
        band.paste(image.crop((0, y, width, y + band.height)), (left, 0))
        columns.paste(band.resize((tile, band.height), Image.Resampling.BICUBIC), (0, top + y))
    return Tiles(squash(columns, tile)[None], (height, width), None)


def squash(image: Image.Image, tile: int) -> NDArray[np.uint8]:
    """Resizes an RGB picture to uint8 [S, S, 3], whatever its proportions."""
    return np.asarray(image.resize((tile, tile), Image.Resampling.BICUBIC))


def normalise(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Scales uint8 [T, S, S, 3] to the encoder's input, float32 [T, 3, S, S].

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


def pack_image(
    features: NDArray[np.float32], size: tuple[int, int], spec: AnyRes, newline: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Joins the features of a tiled picture to its visual tokens.

    Args:
        features: Image features [1 + rows·columns, P, H] of ``split``'s tiles.
        size: (height, width) of the picture.
        spec: What the picture was split by.
        newline: The learned ``image_newline`` [H].

    Returns:
        [n, H] with n = ``spec.token_count(size)``: the base view's P features, then the grid's row by row,
        each row ended by a newline.
    """
    grid_rows, grid_cols = spec.grid_shape(size)
    side, hidden = spec.side, features.shape[-1]
    rows, cols = spec.packed_shape(size)
    plane = (
        features[1:]
        .reshape(grid_rows, grid_cols, side, side, hidden)
        .swapaxes(1, 2)
        .reshape(grid_rows * side, grid_cols * side, hidden)[spec.unpadded(size)]
    )
    out = np.empty((side**2 + rows * (cols + 1), hidden), np.float32)
    out[: side**2] = features[0]
    lines = out[side**2 :].reshape(rows, cols + 1, hidden)
    lines[:, :cols] = resize_bilinear(plane, (rows, cols))
    lines[:, cols] = newline
    return out


def pack_square(features: NDArray[np.float32], newline: NDArray[np.float32]) -> NDArray[np.float32]:
    """Visual tokens [P + 1, H] of a padded square: its features [1, P, H] and one newline."""
    return np.concatenate([features[0], newline[None]])


def pool_frames(features: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Halves the features [F, P, H] of video frames along both axes: [F, ceil(side/2)², H].

    As ``apply_pooling`` of transformers and ``get_2dPool`` (bilinear, stride 2) of LLaVA-NeXT.
    """
    frames, _, hidden = features.shape
    pooled = math.ceil(side / 2)
    out = np.empty((frames, pooled, pooled, hidden), np.float32)
    for frame, small in zip(features, out, strict=True):
        small[:] = resize_bilinear(frame.reshape(side, side, hidden), (pooled, pooled))
    return out.reshape(frames, pooled**2, hidden)


def pack_video(features: NDArray[np.float32], side: int, newline: NDArray[np.float32]) -> NDArray[np.float32]:
    """Visual tokens [F·ceil(side/2)² + 1, H] of a video: all pooled frames, and one newline at the end."""
    return np.concatenate([pool_frames(features, side).reshape(-1, features.shape[-1]), newline[None]])


def resize_bilinear(x: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resamples a plane [h, w, C] to [*size, C], as torch's ``interpolate(mode="bilinear")``.

    That is without ``align_corners`` and without antialiasing. Each output row is made from two input rows,
    which stay in the processor's cache. ``x`` itself is returned if it has the size already.
    """
    height, width, channels = x.shape
    if (height, width) == size:
        return x
    left, right, near, far = _neighbours(width, size[1])
    near, far = near[:, None], far[:, None]
    out = np.empty((*size, channels), np.float32)
    for y, (above, below, upper, lower) in enumerate(zip(*_neighbours(height, size[0]), strict=True)):
        row = x[above] * upper + x[below] * lower
        np.multiply(row[left], near, out=out[y])
        out[y] += row[right] * far
    return out


def _neighbours(
    source: int, target: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """For each of ``target`` positions on an axis: its two neighbours among ``source``, and their weights.

    torch computes the coordinate in float32 with a fused multiply-add, which rounds once; so does this. With
    plain double precision the weights differ by 1e-5.
    """
    scale = np.float32(source) / np.float32(max(target, 1))
    coordinate = (float(scale) * (np.arange(target) + 0.5) - 0.5).clip(0).astype(np.float32)
    first = coordinate.astype(np.intp)
    weight = coordinate - first.astype(np.float32)
    return first, np.minimum(first + 1, source - 1), 1 - weight, weight
