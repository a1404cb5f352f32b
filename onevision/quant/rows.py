"""The rows of a sweep: on disk, as a table, and as a plot of the Pareto fronts.

In: rows as they are measured. Out: ``sweep.jsonl``, CSV and PNG. A line that was cut off is left out.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

from onevision.errors import ExportError, UsageError
from onevision.eval.jsonl import read_as, to_line
from onevision.files import os_errors, whole_file
from onevision.metrics import wilson
from onevision.quant.candidates import Candidate
from onevision.quant.gates import GateResult

#: Costs beside the divergence: field of a row, label of its axis.
AXES = {"bytes": "size, MB", "tile_ms": "time per tile, ms", "token_ms": "time per token, ms"}
_DOTS_PER_INCH = 120
_MIN_KL = 1e-7  # place of the float bundle itself on a logarithmic axis


@dataclass(frozen=True)
class SweepRow(Candidate):
    """A candidate and its figures. None: not measured, or not finite."""

    bytes: int = 0  # of the bundle
    bits_per_weight: float = 0.0  # of the backbone
    tile_ms: float = 0.0
    token_ms: float = 0.0
    cosine: float | None = None  # image features of the worst tile
    mean_kl: float | None = None
    p99_kl: float | None = None
    top1: float | None = None
    accuracy: float | None = None
    questions: int | None = None  # that were scored
    passed: bool = False
    reasons: tuple[str, ...] = ()
    run: str = ""  # see :func:`onevision.quant.sweep.sweep_id`

    @property
    def candidate(self) -> Candidate:
        """The precisions alone."""
        return Candidate(self.vision, self.backbone, self.imatrix)


def row_of(candidate: Candidate, quality: GateResult, figures: dict[str, Any], run: str) -> SweepRow:
    """A row of the gate's figures and of others: bytes, bits per weight, milliseconds."""
    features, tokens, answers = quality.features, quality.tokens, quality.answers
    return SweepRow(
        **asdict(candidate),
        **figures,
        cosine=features.cosine if features else None,
        mean_kl=tokens.mean_kl if tokens else None,
        p99_kl=tokens.p99_kl if tokens else None,
        top1=tokens.top1 if tokens else None,
        accuracy=answers.accuracy if answers else None,
        questions=answers.n if answers else None,
        passed=quality.passed,
        reasons=quality.reasons,
        run=run,
    )


def open_rows(path: Path, run: str, *, force: bool = False) -> list[SweepRow]:
    """The rows so far; the file is made if missing, and rid of a line that was cut off.

    Args:
        path: The file; its folder is made if missing.
        run: See :func:`onevision.quant.sweep.sweep_id`.
        force: Drop rows of another sweep.

    Raises:
        UsageError: Rows of another sweep, or the folder cannot be made.
        InputError: The file is damaged.
    """
    with os_errors(f"make the folder {path.parent}", UsageError):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path) if path.exists() else []
    kept = [row for row in rows if row.run == run]
    if len(kept) < len(rows) and not force:
        raise UsageError(
            f"{path} is from another sweep: another bundle, other questions or another calibration",
            hint="choose another folder, or --force to start over",
        )
    with whole_file(path, 0) as part:
        part.write_bytes(b"".join(to_line(asdict(row)) for row in kept))
    return kept


def append_row(path: Path, row: SweepRow) -> None:
    """Add a row to the file.

    Raises:
        ExportError: The operating system refuses.
    """
    with os_errors(f"write {path}", ExportError), path.open("ab") as file:
        file.write(to_line(asdict(row)))


def read_rows(path: Path) -> list[SweepRow]:
    """The rows of a file; a last line that was cut off is left out.

    Raises:
        InputError: The file cannot be read, or is no sweep.
    """
    hint = "remove the file, or choose another folder"
    return read_as(SweepRow, path, "a row of a sweep", unfinished=True, hint=hint)


def write_csv(rows: Sequence[SweepRow], path: Path) -> None:
    """Write a table with a header; reasons are joined by semicolons."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(SweepRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) | {"reasons": "; ".join(row.reasons)} for row in rows)


def front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is as good in every cost and better in one."""
    points = [tuple(cost) for cost in costs]
    return [
        not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in points)
        for own in points
    ]


def front_of(rows: Sequence[SweepRow]) -> list[bool]:
    """Whether each row is on the Pareto front of divergence and all of :data:`AXES` together."""
    divergences = [inf if row.mean_kl is None else row.mean_kl for row in rows]
    return front(
        [(kl, row.bytes, row.tile_ms, row.token_ms) for kl, row in zip(divergences, rows, strict=True)]
    )


def plot(rows: Sequence[SweepRow], path: Path, *, max_kl: float) -> None:
    """Draw divergence, and wrong answers if they were counted, against each of :data:`AXES` as PNG.

    Points are numbered as in the legend, and each front is joined. Rows whose logits are not finite are left
    out. ``max_kl`` is the gate's threshold.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [row for row in rows if row.mean_kl is not None]
    scored = bool(shown) and all(row.questions for row in shown)
    figure = Figure(figsize=(15, 10 if scored else 5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1 + scored, len(AXES), sharey="row", sharex="col", squeeze=False)
    for axes, (field, label) in zip(grid[0], AXES.items(), strict=True):
        _draw(axes, shown, field, [max(row.mean_kl or 0.0, _MIN_KL) for row in shown])
        axes.axhline(max_kl, color="tab:red", linewidth=1, linestyle=":")
        axes.set_xlabel(label)
    grid[0, 0].set(yscale="log", ylabel="mean KL divergence from the float bundle (dotted: limit)")
    for axes, (field, label) in zip(grid[-1], AXES.items() if scored else (), strict=scored):
        _draw(axes, shown, field, [100 * (1 - (row.accuracy or 0.0)) for row in shown])
        for row in shown:
            count = row.questions or 1
            share = wilson(round((1 - (row.accuracy or 0.0)) * count), count)
            axes.plot([_cost(row, field)] * 2, [100 * end for end in share], color="0.7", zorder=0)
        axes.set_xlabel(label)
    if scored:
        grid[1, 0].set_ylabel("wrong answers, % (bars: 95 % interval)")
    names = [f"{number}  {row.name}" for number, row in enumerate(shown, 1)]
    handles = [Line2D([], [], linestyle="", color=_color(row), marker=_marker(row)) for row in shown]
    figure.legend(handles, names, loc="outside right upper")
    figure.suptitle("Lower left is better. Circles pass the quality gate, crosses fail.")
    figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


def _color(row: SweepRow) -> str:
    return "tab:green" if row.passed else "tab:red"


def _marker(row: SweepRow) -> str:
    return "o" if row.passed else "x"


def _cost(row: SweepRow, field: str) -> float:
    value: float = getattr(row, field)
    return value / 1e6 if field == "bytes" else value


def _draw(axes: Any, rows: Sequence[SweepRow], field: str, losses: Sequence[float]) -> None:  # noqa: ANN401
    """Draw the points of one panel, and the front among them."""
    points = [(_cost(row, field), loss) for row, loss in zip(rows, losses, strict=True)]
    best = sorted(point for point, ahead in zip(points, front(points), strict=True) if ahead)
    axes.plot(*zip(*best, strict=True), color="0.75", linewidth=1.5, zorder=1)
    for number, (row, point) in enumerate(zip(rows, points, strict=True), 1):
        axes.scatter(*point, color=_color(row), marker=_marker(row), zorder=2)
        axes.annotate(str(number), point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.margins(x=0.1)
    axes.grid(alpha=0.3)
