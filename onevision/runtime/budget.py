"""How much of a picture is looked at: which of the grids cuts it.

In: the size of a picture and what the user wants to spend. Out: how it is cut. The input stays one that the
model was trained on: a smaller budget chooses another of its grids, or the padded square of several pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onevision.runtime.anyres import AnyRes

#: ``auto`` is the reference's choice. ``low`` is one tile, as each of several pictures is. ``high`` enlarges
#: a small picture first, to as many pixels as the tiles have whose tokens the model takes at most.
Detail = Literal["low", "auto", "high"]


@dataclass(frozen=True)
class Budget:
    """What may be spent on the pictures and videos of a prompt. The default is what the reference spends.

    ``max_tiles`` counts all that the encoder sees of a picture: base view and grid. None: no limit.
    """

    max_tiles: int | None = None
    detail: Detail = "auto"
    frames: int | None = None  # None: the bundle's default


@dataclass(frozen=True)
class Cut:
    """How a picture is cut.

    Attributes:
        size: (height, width) that it is enlarged to first; its own if it is not.
        spec: The grids to choose from; None for a padded square.
        grid: (rows, columns) of tiles; None for a padded square.
        tiles: Passes of the encoder: base view and grid.
        tokens: Visual tokens.
    """

    size: tuple[int, int]
    spec: AnyRes | None
    grid: tuple[int, int] | None
    tiles: int
    tokens: int


def cut(spec: AnyRes, size: tuple[int, int], budget: Budget, *, several: bool = False) -> Cut:
    """How a picture of ``size`` (height, width) is cut.

    Args:
        spec: How the checkpoint cuts pictures.
        size: Of the picture.
        budget: What may be spent.
        several: It is one of several: a padded square, whatever the budget.
    """
    allowed = None if several or budget.detail == "low" else within(spec, budget.max_tiles)
    if allowed is None:
        return Cut(size, None, None, 1, spec.side**2 + 1)
    if budget.detail == "high":
        size = enlarged(spec, size)
    rows, columns = grid = allowed.grid_shape(size)
    return Cut(size, allowed, grid, 1 + rows * columns, allowed.token_count(size))


def within(spec: AnyRes, max_tiles: int | None) -> AnyRes | None:
    """The grids that have at most ``max_tiles`` tiles with the base view; None if none has."""
    if max_tiles is None:
        return spec
    fitting = tuple(
        (height, width)
        for height, width in spec.pinpoints
        if 1 + (height // spec.tile) * (width // spec.tile) <= max_tiles
    )
    return replace(spec, pinpoints=fitting) if fitting else None


def enlarged(spec: AnyRes, size: tuple[int, int]) -> tuple[int, int]:
    """``size`` (height, width) with the pixels of the checkpoint's most tiles, if it has fewer.

    Those are the N of ``anyres_max_N``, or the tiles of the largest grid where there is no N.
    """
    height, width = size
    largest = max(rows * columns for rows, columns in spec.pinpoints)
    most = spec.max_tiles * spec.tile**2 if spec.max_tiles else largest
    # A line of pixels would become longer than any grid: no side needs to exceed the longest one.
    longest = max(max(pinpoint) for pinpoint in spec.pinpoints)
    factor = min(math.sqrt(most / (height * width)), longest / max(size))
    return (round(height * factor), round(width * factor)) if factor > 1 else size
