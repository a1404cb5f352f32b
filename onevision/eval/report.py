"""Records to accuracies: by family, by kind of input, and overall.

The accuracy of a family is the share of its questions answered right, with Wilson's interval. The accuracy of
a kind, and the overall one, is the mean over its families, so that each family has the same weight however
often it was asked; see :func:`onevision.metrics.mean_interval` for its interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, get_args

from onevision.eval.records import Record
from onevision.eval.suite.sample import InputKind
from onevision.metrics import Interval, mean_interval, wilson

KINDS: tuple[InputKind, ...] = get_args(InputKind)


@dataclass(frozen=True)
class Score:
    """Accuracy and mean costs of some answers."""

    accuracy: float
    interval: Interval  # 95 %
    n: int
    chance: float | None  # accuracy of guessing, if known for all questions
    ttft_ms: float | None  # mean time to the first token, of the questions that could be asked
    tiles: float | None  # mean passes of the encoder, of the same questions
    image_tokens: float | None  # mean visual tokens, of the same questions

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        data = asdict(self)
        return data | {"usage": {name: data.pop(name) for name in ("image_tokens", "tiles")}}


@dataclass(frozen=True)
class EvalReport:
    """Scores of a run."""

    overall: Score
    kinds: dict[InputKind, Score]
    families: dict[str, Score]  # in the order of their kinds
    errors: int  # questions that could not be asked; they count as wrong

    def to_dict(self) -> dict[str, Any]:
        """JSON object for ``onevision eval --json``: the overall score comes first."""
        return {
            **self.overall.to_dict(),
            "kinds": {kind: score.to_dict() for kind, score in self.kinds.items()},
            "families": {family: score.to_dict() for family, score in self.families.items()},
            "errors": self.errors,
        }


def report(records: Sequence[Record]) -> EvalReport:
    """Score the records of a run, at least one."""
    return EvalReport(
        overall=_mean_of_families(records),
        kinds={
            kind: _mean_of_families(chosen)
            for kind in KINDS
            if (chosen := [record for record in records if record.kind == kind])
        },
        families={family: _score(chosen) for family, chosen in by_family(records).items()},
        errors=sum(record.error is not None for record in records),
    )


def by_family(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by family: one image first, then several images, videos, and text alone."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: KINDS.index(record.kind)):
        groups.setdefault(record.family, []).append(record)
    return groups


def _score(records: Sequence[Record]) -> Score:
    """Score of one family."""
    right, n = sum(record.right for record in records), len(records)
    chances = [record.chance for record in records if record.chance is not None]
    return Score(
        accuracy=right / n,
        interval=wilson(right, n),
        n=n,
        chance=fmean(chances) if len(chances) == n else None,
        **_mean_costs(records),
    )


def _mean_of_families(records: Sequence[Record]) -> Score:
    scores = [_score(family) for family in by_family(records).values()]
    means = [score.accuracy for score in scores]
    chances = [score.chance for score in scores if score.chance is not None]
    return Score(
        accuracy=fmean(means),
        interval=mean_interval(means, [score.interval for score in scores]),
        n=len(records),
        chance=fmean(chances) if len(chances) == len(scores) else None,
        **_mean_costs(records),
    )


def _mean_costs(records: Sequence[Record]) -> dict[str, float | None]:
    """Means over the questions that have the figure; None if no question has it."""
    costs = {
        name: [value for record in records if (value := getattr(record, name)) is not None]
        for name in ("ttft_ms", "tiles", "image_tokens")
    }
    return {name: fmean(values) if values else None for name, values in costs.items()}
