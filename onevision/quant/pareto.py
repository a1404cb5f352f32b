"""The picture of a sweep: size against quality, speed against quality, and who is beaten by nobody.

In: the rows of a sweep. Out: which of them are on the Pareto front, and a PNG.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onevision.quant.sweep import Row

#: What a point is judged by besides quality: field of a row, axis.
AXES = {
    "bytes": "size, MB",
    "tile_ms": "time per tile, ms",
    "token_ms": "time per token, ms",
}
_DOTS_PER_INCH = 120
_LEAST_KL = 1e-7  # where the float bundle itself stands on a logarithmic axis


def front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other beats: as good in every cost, and better in one.

    Args:
        costs: Of each point, the smaller the better; all of one length.
    """
    return [
        not any(_beats(other, own) for at, other in enumerate(costs) if at != number)
        for number, own in enumerate(costs)
    ]


def front_of(rows: Sequence[Row]) -> list[bool]:
    """Which rows no other beats in divergence and all of :data:`AXES` together."""
    costs = [
        (inf if row.mean_kl is None else row.mean_kl, *(getattr(row, field) for field in AXES))
        for row in rows
    ]
    return front(costs)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw divergence, and accuracy if it was measured, against each of :data:`AXES` as PNG.

    Who is on the front is joined and named, what failed the gate is crossed. Rows whose logits are not finite
    have no place in it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.mean_kl is not None]
    scored = bool(shown) and all(row.accuracy is not None for row in shown)
    figure = Figure(figsize=(5 * len(AXES), 10 if scored else 5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1 + scored, len(AXES), sharey="row", squeeze=False)
    for axes, (field, label) in zip(grid[0], AXES.items(), strict=True):
        _draw(axes, shown, field, [max(row.mean_kl or 0.0, _LEAST_KL) for row in shown])
        axes.set_yscale("log")
        axes.set_xlabel(label)
    for axes, (field, label) in zip(grid[-1], AXES.items() if scored else (), strict=scored):
        _draw(axes, shown, field, [100 * (1 - (row.accuracy or 0.0)) for row in shown])
        axes.set_xlabel(label)
    grid[0, 0].set_ylabel("mean KL divergence from the float bundle")
    if scored:
        grid[1, 0].set_ylabel("wrong answers, %")
    figure.suptitle("Lower left is better. Circles pass the quality gate, crosses do not.")
    figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


def _draw(axes: Any, rows: Sequence[Row], field: str, losses: Sequence[float]) -> None:  # noqa: ANN401
    """Points of one plane, and the front among them."""
    scale = 1e-6 if field == "bytes" else 1.0
    points = [(getattr(row, field) * scale, loss) for row, loss in zip(rows, losses, strict=True)]
    ahead = front(points)
    best = sorted(point for point, is_ahead in zip(points, ahead, strict=True) if is_ahead)
    axes.plot(*zip(*best, strict=True), color="0.75", linewidth=1.5, zorder=1)
    for row, point, is_ahead in zip(rows, points, ahead, strict=True):
        colour, marker = ("tab:green", "o") if row.passed else ("tab:red", "x")
        axes.scatter(*point, color=colour, marker=marker, zorder=2)
        if is_ahead:
            axes.annotate(row.name, point, xytext=(5, 5), textcoords="offset points", fontsize=7)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
