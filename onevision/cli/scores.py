"""Tables of ``onevision eval`` on stdout: no wider than 80 columns with the names of the tiny suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.cli.console import print_table, stdout

if TYPE_CHECKING:
    from rich.text import Text

    from onevision.eval.compare import EvalComparison, PairedDifference
    from onevision.eval.evaluate import Evaluation
    from onevision.eval.report import EvalReport, Score
    from onevision.eval.suite.sample import InputKind

_KINDS: dict[InputKind, str] = {"image": "one image", "images": "images", "video": "video", "text": "text"}
_INTERVAL = "95\N{NO-BREAK SPACE}% interval"


def print_evaluation(done: Evaluation) -> None:
    """Print scores, and the comparison if there is one."""
    _print_scores(done.report)
    if done.comparison is not None:
        _print_comparison(done.comparison, done.report, str(done.against))


def _print_scores(scores: EvalReport) -> None:
    """Print accuracies by family, by kind of input, and overall."""
    chances = any(score.chance is not None for score in scores.families.values())

    def cells(name: str, score: Score) -> tuple[str, ...]:
        chance = "" if score.chance is None else _percent(score.chance)
        ttft = "" if score.ttft_ms is None else f"{score.ttft_ms:,.0f} ms"
        interval = "–".join(f"{end * 100:.1f}" for end in score.interval)
        return (
            name, f"{score.n:,}", _percent(score.accuracy), interval, *((chance,) if chances else ()), ttft,
        )  # fmt: skip

    columns = ("family", "questions", "accuracy", _INTERVAL, *(("chance",) if chances else ()))
    rows: list[tuple[str | Text, ...]] = [cells(*item) for item in scores.families.items()]
    rows.append(())
    if len(scores.kinds) > 1:
        rows += [cells(_KINDS[kind], score) for kind, score in scores.kinds.items()]
    rows.append(_bold(cells("overall", scores.overall)))
    print_table((*columns, "first token"), rows)
    overall = scores.overall
    if overall.tiles is not None and overall.image_tokens is not None:
        costs = f"{overall.tiles:.2f} tiles and {overall.image_tokens:,.0f} visual tokens per question"
        stdout().print(f"on average {costs}", style="dim")
    if len(scores.families) > 1:
        stdout().print("by kind and overall: the mean over the families", style="dim")


def _print_comparison(comparison: EvalComparison, scores: EvalReport, name: str) -> None:
    """Print both accuracies and their difference by family, and the agreement of the answers."""
    theirs = comparison.other

    def cells(name: str, ours: Score, other: Score, difference: PairedDifference) -> tuple[str, ...]:
        return (
            name,
            _percent(ours.accuracy),
            _percent(other.accuracy),
            f"{difference.difference * 100:+.1f}",
            _interval(difference.interval),
            f"{difference.wins:,}",
            f"{difference.losses:,}",
            _percent(difference.agreement),
        )

    rows: list[tuple[str | Text, ...]] = [
        cells(family, scores.families[family], theirs.families[family], difference)
        for family, difference in comparison.families.items()
    ]
    overall = comparison.overall
    rows += [(), _bold(cells("overall", scores.overall, theirs.overall, overall))]
    stdout().print(f"\nagainst {name}")
    columns = ("family", "this", "other", "difference", _INTERVAL, "wins", "losses", "agree")
    print_table(columns, rows)
    stdout().print(
        f"the same answer to {_percent(overall.agreement)} of the questions, the same text to "
        f"{_percent(overall.same_text)}; McNemar's exact test of {overall.wins:,} wins and "
        f"{overall.losses:,} losses: p = {comparison.mcnemar_p:.2g}"
    )


def _bold(cells: tuple[str, ...]) -> tuple[Text, ...]:
    from rich.text import Text

    return tuple(Text(cell, "bold") for cell in cells)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low * 100:.1f} to {high * 100:.1f}"
