"""Tables of ``onevision eval`` on stdout: no wider than 80 columns with the names of the tiny suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.cli.console import stdout

if TYPE_CHECKING:
    from onevision.eval.compare import EvalComparison, PairedDifference
    from onevision.eval.report import EvalReport, Score
    from onevision.eval.suite.sample import InputKind

_KINDS: dict[InputKind, str] = {"image": "one image", "images": "images", "video": "video", "text": "text"}


def print_scores(scores: EvalReport) -> None:
    """Accuracy by family, by kind of input, and overall."""
    from rich.table import Column, Table

    chances = any(score.chance is not None for score in scores.families.values())
    names = ("questions", "accuracy", "95 % interval", *(("chance",) if chances else ()), "first token")
    numbers = [Column(name, justify="right", no_wrap=True) for name in names]
    table = Table(Column("family", overflow="fold"), *numbers, box=None, pad_edge=False)
    for name, score in scores.families.items():
        table.add_row(name, *_cells(score, chances=chances))
    table.add_row()
    for kind, score in scores.kinds.items() if len(scores.kinds) > 1 else ():
        table.add_row(_KINDS[kind], *_cells(score, chances=chances))
    table.add_row("overall", *_cells(scores.overall, chances=chances), style="bold")
    console = stdout()
    console.print(table)
    overall = scores.overall
    if overall.tiles is not None and overall.image_tokens is not None:
        took = f"{overall.tiles:.2f} tiles and {overall.image_tokens:,.0f} visual tokens a question"
        console.print(f"on average {took}", style="dim")
    if len(scores.families) > 1:
        console.print("by kind and overall: the mean of the families", style="dim")


def _cells(score: Score, *, chances: bool) -> tuple[str, ...]:
    chance = "" if score.chance is None else _percent(score.chance)
    return (
        f"{score.n:,}",
        _percent(score.accuracy),
        _interval(score.interval),
        *((chance,) if chances else ()),
        "" if score.ttft_ms is None else f"{score.ttft_ms:,.0f} ms",
    )


def print_comparison(comparison: EvalComparison, scores: EvalReport, name: str) -> None:
    """Both accuracies and their difference by family, and how alike the answers are."""
    from rich.table import Column, Table

    names = ("this", "other", "difference", "95 % interval", "wins", "losses", "agree")
    numbers = [Column(name, justify="right", no_wrap=True) for name in names]
    table = Table(Column("family", overflow="fold"), *numbers, box=None, pad_edge=False)

    def add(
        name: str, ours: Score, other: Score, difference: PairedDifference, style: str | None = None
    ) -> None:
        table.add_row(
            name,
            _percent(ours.accuracy),
            _percent(other.accuracy),
            f"{difference.difference * 100:+.1f}",
            _interval(difference.interval),
            f"{difference.wins:,}",
            f"{difference.losses:,}",
            _percent(difference.agreement),
            style=style,
        )

    for family, difference in comparison.families.items():
        add(family, scores.families[family], comparison.other.families[family], difference)
    overall = comparison.overall
    table.add_row()
    add("overall", scores.overall, comparison.other.overall, overall, "bold")
    console = stdout()
    console.print(f"\nagainst {name}")
    console.print(table)
    console.print(
        f"the same answer to {_percent(overall.agreement)} of the questions, the same text to "
        f"{_percent(overall.same_text)}; McNemar's exact test of {overall.wins:,} wins and "
        f"{overall.losses:,} losses: p = {comparison.mcnemar_p:.2g}"
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low * 100:.1f} to {high * 100:.1f}"
