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
    """Draw divergence against each of :data:`AXES` as PNG, the front joined, what failed the gate crossed.

    Rows whose logits are not finite have no place in it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(row, max(row.mean_kl, _LEAST_KL)) for row in rows if row.mean_kl is not None]
    figure = Figure(figsize=(5 * len(AXES), 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (field, label) in zip(figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        scale = 1e-6 if field == "bytes" else 1.0
        points = [(getattr(row, field) * scale, divergence) for row, divergence in shown]
        best = sorted(point for point, ahead in zip(points, front(points), strict=True) if ahead)
        axes.plot(*zip(*best, strict=True), color="0.75", linewidth=1.5, zorder=1)
        for (row, _), point in zip(shown, points, strict=True):
            _draw(axes, row, point)
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean KL divergence from the float bundle")
    figure.suptitle("Lower left is better. Circles pass the quality gate, crosses do not.")
    figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


def _draw(axes: Any, row: Row, point: tuple[float, float]) -> None:  # noqa: ANN401
    colour = "tab:green" if row.passed else "tab:red"
    axes.scatter(*point, color=colour, marker="o" if row.passed else "x", zorder=2)
    axes.annotate(row.name, point, xytext=(4, 4), textcoords="offset points", fontsize=7)
