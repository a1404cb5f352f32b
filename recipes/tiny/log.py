"""The training log: losses and held-out accuracy by family as CSV, and a plot of them."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onevision.eval.suite import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    from recipes.tiny.forward import Learned

FIELDS = ("stage", "step", "seconds", "kind", "family", "loss", "accuracy", "n")


@dataclass
class Tally:
    """Losses and right answers by family since the last report."""

    _learned: list[Learned] = field(default_factory=list)

    def add(self, learned: Learned) -> None:
        """Count a batch. Its numbers are read when they are asked for: a GPU is not waited for."""
        self._learned.append(replace(learned, loss=learned.loss.detach()))

    def losses(self) -> dict[str, list[float]]:
        """The loss of each question, by family."""
        found: dict[str, list[float]] = defaultdict(list)
        for learned in self._learned:
            for family, loss in zip(learned.families, learned.losses.tolist(), strict=True):
                found[family].append(loss)
        return found

    def right(self) -> dict[str, list[bool]]:
        """Whether each question was answered right, by family; families without answers are left out."""
        found: dict[str, list[bool]] = defaultdict(list)
        for learned in self._learned:
            if learned.right is not None:
                for family, right in zip(learned.families, learned.right.tolist(), strict=True):
                    found[family].append(right)
        return found

    def accuracy(self) -> float:
        """Mean over the suite's families: captions and lessons do not count, unless there is nothing else."""
        every = self.right()
        asked = {family: right for family, right in every.items() if family in FAMILIES} or every
        shares = [sum(right) / len(right) for right in asked.values()]
        return sum(shares) / len(shares) if shares else 0.0

    def loss(self) -> float:
        """Mean over all questions."""
        every = [loss for losses in self.losses().values() for loss in losses]
        return sum(every) / len(every) if every else 0.0


class Log:
    """Appends to a CSV file. ``size`` is where it ends, to cut off what a resumed run does again."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        with path.open("ab") as file:
            file.truncate(size)
        if not size:
            self._append([FIELDS])

    @property
    def size(self) -> int:
        """Bytes written."""
        return self.path.stat().st_size

    def write(self, stage: str, step: int, seconds: float, kind: str, tally: Tally) -> None:
        """One line per family; ``kind`` is ``train`` or ``held-out``."""
        lines: list[tuple[object, ...]] = []
        answers = tally.right()
        for family, losses in sorted(tally.losses().items()):
            right = answers.get(family, [])
            accuracy = f"{sum(right) / len(right):.4f}" if right else ""
            mean = sum(losses) / len(losses)
            lines.append((stage, step, f"{seconds:.0f}", kind, family, f"{mean:.4f}", accuracy, len(losses)))
        self._append(lines)

    def _append(self, lines: list[tuple[object, ...]]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


def plot(log: Path, target: Path) -> None:
    """Draw loss and held-out accuracy over time, a line per family, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with log.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            hours = float(line["seconds"]) / 3600
            if line["kind"] == "train":
                curves["loss", line["family"]].append((hours, float(line["loss"])))
            elif line["accuracy"]:
                curves["accuracy", line["family"]].append((hours, float(line["accuracy"])))
    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, quantity in zip(figure.subplots(2, 1, sharex=True), ("loss", "accuracy"), strict=True):
        for (kind, family), points in sorted(curves.items()):
            if kind == quantity:
                axes.plot(*zip(*points, strict=True), label=family, linewidth=1)
        axes.set_ylabel("training loss" if quantity == "loss" else "held-out accuracy, teacher-forced")
        axes.grid(alpha=0.3)
    axes.set_xlabel("hours")
    if curves:
        figure.axes[0].set_yscale("log")
        figure.axes[0].legend(fontsize=6, ncols=4)
    figure.savefig(target, dpi=110)
