"""Draw ``anyres.png``: what AnyRes makes of a photograph, cut by the runtime's own code.

python docs/anyres_figure.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure  # noqa: TC002
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_image

from onevision.planning.cost import published
from onevision.runtime.anyres import AnyRes, split

TARGET = Path(__file__).with_name("anyres.png")


def draw() -> Figure:
    """Picture, base view and tiles, visual tokens; left to right, the way of the data."""
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    spec: AnyRes = published("0.5b").anyres
    tiles = split(photograph, spec)
    size = tiles.size
    rows, columns = spec.grid_shape(size)
    kept_rows, kept_columns = spec.packed_shape(size)

    figure = plt.figure(figsize=(12.5, 4.6), layout="constrained")
    left, base, grid, packed = figure.subplots(1, 4, width_ratios=(1.5, 0.75, 1.6, 1.5))
    left.imshow(photograph)
    left.set_title(f"picture\n{size[1]} × {size[0]}")
    base.imshow(tiles.pixels[0])
    base.set_title(f"base view\nsquashed to {spec.tile} × {spec.tile}\n{spec.side}² = {spec.side**2} tokens")

    gap = 14
    for number, tile in enumerate(tiles.pixels[1:]):
        row, column = divmod(number, columns)
        x, y = column * (spec.tile + gap), row * (spec.tile + gap)
        grid.imshow(tile, extent=(x, x + spec.tile, y + spec.tile, y))
    grid.set_xlim(-gap, columns * (spec.tile + gap))
    grid.set_ylim(rows * (spec.tile + gap), -gap)
    grid.set_title(f"grid of {columns} × {rows} tiles\nfitted, the rest is black")

    packed.imshow(
        photograph.resize((kept_columns, kept_rows), Image.Resampling.BOX),
        extent=(0, kept_columns, kept_rows, 0),
    )
    packed.add_patch(Rectangle((kept_columns, 0), 1, kept_rows, color="tab:red", linewidth=0))
    packed.set_xlim(-1, kept_columns + 2)
    packed.set_title(
        f"features, the black cut away:\n{kept_rows} rows of {kept_columns} and a newline (red)\n"
        f"{kept_rows} × {kept_columns + 1} = {kept_rows * (kept_columns + 1):,} tokens"
    )
    for axes in (left, base, grid, packed):
        axes.set_axis_off()
        axes.title.set_fontsize(10)
    figure.suptitle(
        f"{spec.side**2} + {kept_rows * (kept_columns + 1):,} = {spec.token_count(size):,} visual tokens "
        f"from {len(tiles.pixels)} passes of the encoder",
        y=0.03,
        va="bottom",
    )
    return figure


if __name__ == "__main__":
    draw().savefig(TARGET, dpi=80)
