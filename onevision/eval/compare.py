"""Two runs over the same samples: who won where, and whether that could be luck.

A win is a sample that ours answered rightly and the other did not, a loss the reverse. The overall difference
is the mean of the families', as the accuracies are; McNemar's test takes all samples together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from onevision.errors import InputError
from onevision.eval.intervals import Interval, mcnemar, mean_interval, paired_interval
from onevision.eval.records import Record
from onevision.eval.report import Report, by_family, report
from onevision.eval.suite.sample import normalised

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from onevision.eval.suite import Sample

Pair = tuple[Record, Record]  # ours, the other's


@dataclass(frozen=True)
class Difference:
    """Ours less the other, on the same samples."""

    difference: float  # of the accuracies
    interval: Interval  # 95 %, paired
    wins: int
    losses: int
    agreement: float  # share of samples with the same answer but for case, punctuation and a leading article
    same_text: float  # share of samples with the same text, character for character


@dataclass(frozen=True)
class Comparison:
    """A comparison: the other's own report, and the differences."""

    other: Report
    overall: Difference
    families: dict[str, Difference]
    mcnemar_p: float  # probability of wins and losses so uneven, were they equally likely

    def to_dict(self) -> dict[str, Any]:
        """For ``onevision eval --json``: the overall difference with the others in it."""
        data = asdict(self)
        overall: dict[str, Any] = data.pop("overall")
        return overall | data | {"other": self.other.to_dict()}


def matched(samples: Iterable[Sample], earlier: Sequence[Record], path: Path) -> list[Record]:
    """The records of an earlier run for these samples, in their order, scored anew.

    Raises:
        InputError: It lacks one of the samples, or asked something else under its id.
    """
    by_id = {record.id: record for record in earlier}
    found = []
    for sample in samples:
        record = by_id.get(sample.id)
        if record is None or record.prompt != sample.prompt:
            problem = "has no answer to" if record is None else "asked something else as"
            raise InputError(
                f"{path} {problem} question {sample.id!r}",
                hint="compare on the same questions: the same --questions, or --seed, --family and --limit",
            )
        found.append(Record.of(sample, record.reply, record.run))
    return found


def compare(ours: Sequence[Record], others: Sequence[Record]) -> Comparison:
    """Compare two runs whose records are of the same samples, in the same order."""
    pairs = list(zip(ours, others, strict=True))
    partner = {record.id: other for record, other in pairs}
    families = {
        family: _difference([(record, partner[record.id]) for record in records])
        for family, records in by_family(ours).items()
    }
    means = [each.difference for each in families.values()]
    intervals = [each.interval for each in families.values()]
    overall = replace(_difference(pairs), difference=fmean(means), interval=mean_interval(means, intervals))
    return Comparison(report(others), overall, families, mcnemar(overall.wins, overall.losses))


def _difference(pairs: Sequence[Pair]) -> Difference:
    n = len(pairs)
    wins = sum(ours.right and not other.right for ours, other in pairs)
    losses = sum(other.right and not ours.right for ours, other in pairs)
    return Difference(
        difference=(wins - losses) / n,
        interval=paired_interval(wins, losses, n),
        wins=wins,
        losses=losses,
        agreement=sum(normalised(ours.text) == normalised(other.text) for ours, other in pairs) / n,
        same_text=sum(ours.text == other.text for ours, other in pairs) / n,
    )
