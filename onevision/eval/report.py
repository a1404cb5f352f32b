"""Records to accuracies: by family, by kind of input and over all.

The accuracy of a family is the share of its questions that were answered rightly, with Wilson's interval.
That of a kind, and the overall one, is the mean of its families, so that a family counts the same however
often it was asked; see :func:`onevision.eval.intervals.mean_interval` for its interval.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

from onevision.eval.intervals import Interval, mean_interval, wilson
from onevision.eval.suite.sample import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onevision.eval.records import Record

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Score:
    """How good some answers are."""

    accuracy: float
    interval: Interval  # 95 %
    n: int
    chance: float | None  # accuracy of guessing, where it is known of all questions
    ttft_ms: float | None  # mean time to the first token, of the questions that could be asked
    tiles: float | None  # mean passes of the encoder, of those
    image_tokens: float | None  # mean visual tokens, of those


@dataclass(frozen=True)
class Report:
    """Scores of a run."""

    overall: Score
    kinds: dict[Kind, Score]
    families: dict[str, Score]  # in the order of their kinds
    errors: int  # questions that could not be asked; they count as wrong

    def to_dict(self) -> dict[str, Any]:
        """For ``onevision eval --json``: the overall score with the others in it."""
        data = asdict(self)
        overall: dict[str, Any] = data.pop("overall")
        return overall | data


def report(records: Sequence[Record]) -> Report:
    """Score the records of a run, of which there is at least one."""
    return Report(
        overall=_mean_of_families(records),
        kinds={
            kind: _mean_of_families(those)
            for kind in KINDS
            if (those := [record for record in records if record.kind == kind])
        },
        families={family: _score(those) for family, those in by_family(records).items()},
        errors=sum(record.error is not None for record in records),
    )


def by_family(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by family: those about one picture first, then several, videos, and text alone."""
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: KINDS.index(record.kind)):
        groups.setdefault(record.family, []).append(record)
    return groups


def _score(records: Sequence[Record]) -> Score:
    """Of one family."""
    right, n = sum(record.right for record in records), len(records)
    chances = [record.chance for record in records if record.chance is not None]
    return Score(
        accuracy=right / n,
        interval=wilson(right, n),
        n=n,
        chance=fmean(chances) if len(chances) == n else None,
        **_means(records),
    )


def _mean_of_families(records: Sequence[Record]) -> Score:
    scores = [_score(those) for those in by_family(records).values()]
    means = [score.accuracy for score in scores]
    chances = [score.chance for score in scores if score.chance is not None]
    return Score(
        accuracy=fmean(means),
        interval=mean_interval(means, [score.interval for score in scores]),
        n=len(records),
        chance=fmean(chances) if len(chances) == len(scores) else None,
        **_means(records),
    )


def _means(records: Sequence[Record]) -> dict[str, float | None]:
    """What the questions took on average, of those that tell."""
    told = {
        name: [value for record in records if (value := getattr(record, name)) is not None]
        for name in ("ttft_ms", "tiles", "image_tokens")
    }
    return {name: fmean(values) if values else None for name, values in told.items()}
