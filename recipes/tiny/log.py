"""The training log: losses and held-out accuracy by family as CSV, and a plot of them."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from onevision.eval.suite import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    from recipes.tiny.forward import Learned

FIELDS = ("stage", "step", "seconds", "kind", "family", "loss", "accuracy", "n")

_ACROSS = 5  # charts in a row of the plot


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
    """Draw a small chart for each family as PNG: training loss and held-out accuracy over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with log.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            hours = float(line["seconds"]) / 3600
            if line["kind"] == "train":
                curves[line["family"], "loss"].append((hours, float(line["loss"])))
            elif line["accuracy"]:
                curves[line["family"], "accuracy"].append((hours, float(line["accuracy"])))
    families = sorted({family for family, _ in curves}) or [""]
    rows = -(-len(families) // _ACROSS)
    figure = Figure(figsize=(2.6 * _ACROSS, 1.9 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    charts = figure.subplots(rows, _ACROSS, sharex=True, sharey=True, squeeze=False).flat
    for family, axes in zip_longest(families, charts):
        if family is None:
            axes.set_visible(False)
            continue
        axes.set_title(family.replace("_", " "), fontsize=10)
        axes.plot(*zip(*curves[family, "loss"] or [(0, 1)], strict=True), color="0.6")
        axes.set_yscale("log")
        accuracy = axes.twinx()
        accuracy.set_ylim(0, 1.05)
        accuracy.plot(
            *zip(*curves[family, "accuracy"] or [(0, 0)], strict=True), color="tab:blue", marker="."
        )
        accuracy.tick_params(labelsize=7, colors="tab:blue")
        axes.tick_params(which="both", labelsize=7)
    figure.supxlabel("hours", fontsize=10)
    figure.suptitle("training loss (gray) and held-out accuracy, teacher-forced (blue)", fontsize=11)
    figure.savefig(target, dpi=100)
