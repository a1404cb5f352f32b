"""Draw ``anyres.png``: the AnyRes steps for one photograph, computed by the runtime's own code.

python docs/anyres_figure.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image
from sklearn.datasets import load_sample_image

from onevision.models.shapes import published_config, vision_info
from onevision.runtime.anyres import AnyRes, Tiles, split

TARGET = Path(__file__).with_name("anyres.png")
GAP = 16  # pixels between the tiles of the grid


def draw() -> Figure:
    """Image, tiles, visual tokens: left to right, in the order of the data."""
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    spec: AnyRes = AnyRes.of(vision_info(published_config("0.5b")))
    tiles = split(photograph, spec)
    base = Image.fromarray(tiles.pixels[0])
    height, width = tiles.size
    side, (rows, columns) = spec.side, spec.packed_shape(tiles.size)
    across, down = reversed(spec.grid_shape(tiles.size))

    figure = plt.figure(figsize=(14, 6.2))
    image = _panel(figure, (0.01, 0.28, 0.25, 0.44), f"1  Image\n{width} × {height} pixels")
    image.imshow(photograph)
    view = _panel(figure, (0.42, 0.60, 0.16, 0.27), "2  Base view: one tile")
    view.imshow(base)
    grid = _panel(figure, (0.37, 0.08, 0.26, 0.41), f"3  Grid: {across} × {down} tiles")
    _draw_grid(grid, tiles, spec.tile, across, down)
    first = _panel(figure, (0.80, 0.60, 0.16, 0.27), f"{side} × {side} = {side**2} tokens")
    first.imshow(base.resize((side, side), Image.Resampling.BOX))
    second = _panel(
        figure,
        (0.76, 0.17, 0.22, 0.31),
        f"{rows} rows × ({columns} + newline)\n= {rows * (columns + 1):,} tokens",
    )
    _draw_tokens(second, photograph, rows, columns)

    _arrow(figure, (0.265, 0.58), (0.412, 0.74), "whole image,\nresized", (0.318, 0.71))
    _arrow(figure, (0.265, 0.42), (0.362, 0.28), "fitted, padded,\ncut into tiles", (0.30, 0.22))
    _arrow(figure, (0.588, 0.735), (0.792, 0.735), "encoder", (0.69, 0.75))
    _arrow(figure, (0.638, 0.285), (0.752, 0.285), "encoder,\nstitched,\nunpadded", (0.695, 0.30))
    total = f"4  {spec.token_count(tiles.size):,} visual tokens from {len(tiles.pixels)} encoder passes"
    figure.text(0.99, 0.04, total, fontsize=15, ha="right")
    return figure


def _panel(figure: Figure, place: tuple[float, float, float, float], title: str) -> Axes:
    axes = figure.add_axes(place)
    axes.set_title(title, fontsize=15)
    axes.set_axis_off()
    return axes


def _draw_grid(axes: Axes, tiles: Tiles, tile: int, across: int, down: int) -> None:
    for number, pixels in enumerate(tiles.pixels[1:]):
        row, column = divmod(number, across)
        x, y = column * (tile + GAP), row * (tile + GAP)
        axes.imshow(pixels, extent=(x, x + tile, y + tile, y))
    axes.set_xlim(-GAP, across * (tile + GAP))
    axes.set_ylim(down * (tile + GAP), -GAP)


def _draw_tokens(axes: Axes, photograph: Image.Image, rows: int, columns: int) -> None:
    """A pixel for each token, and the newline of each row in red."""
    axes.imshow(photograph.resize((columns, rows), Image.Resampling.BOX), extent=(0, columns, rows, 0))
    axes.add_patch(Rectangle((columns, 0), 1, rows, color="tab:red", linewidth=0))
    axes.set_xlim(-1, columns + 2)


def _arrow(
    figure: Figure, tail: tuple[float, float], head: tuple[float, float], label: str, at: tuple[float, float]
) -> None:
    figure.add_artist(
        FancyArrowPatch(
            tail,
            head,
            transform=figure.transFigure,
            arrowstyle="-|>",
            mutation_scale=28,
            linewidth=2.4,
            color="0.3",
        )
    )
    figure.text(*at, label, fontsize=13, ha="center", va="bottom", color="0.25")


if __name__ == "__main__":
    draw().savefig(TARGET, dpi=80)
