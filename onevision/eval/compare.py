"""Paired comparison of two runs over the same samples, with intervals and McNemar's test.

A win is a sample that our run answered right and the other wrong, a loss the reverse. The overall difference
is the mean over families, as the accuracies are; McNemar's test takes all samples together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from onevision.errors import InputError
from onevision.eval.records import Record
from onevision.eval.report import EvalReport, by_family, report
from onevision.eval.suite import Sample
from onevision.eval.suite.sample import normalize
from onevision.metrics import Interval, mcnemar, mean_interval, paired_interval


@dataclass(frozen=True)
class PairedDifference:
    """Our run minus the other, on the same samples."""

    difference: float  # of the accuracies
    interval: Interval  # 95 %, paired
    wins: int
    losses: int
    agreement: float  # share of samples with the same answer up to case, punctuation and leading article
    same_text: float  # share of samples with the same text, character for character


@dataclass(frozen=True)
class EvalComparison:
    """Report of the other run, and the differences to it."""

    other: EvalReport
    overall: PairedDifference
    families: dict[str, PairedDifference]
    mcnemar_p: float  # probability of a split at least this uneven if wins and losses were equally likely

    def to_dict(self) -> dict[str, Any]:
        """JSON object of ``against`` in ``onevision eval --json``: the overall difference comes first."""
        data = asdict(self)
        overall: dict[str, Any] = data.pop("overall")
        return overall | data | {"other": self.other.to_dict()}


def matched(samples: Iterable[Sample], earlier: Sequence[Record], path: Path) -> list[Record]:
    """Records of an earlier run for these samples, in their order, scored again.

    Args:
        samples: The questions.
        earlier: Records of the other run, which may have more.
        path: Their file, for messages.

    Raises:
        InputError: A sample has no record, or its id belongs to another question.
    """
    by_id = {record.id: record for record in earlier}

    def match(sample: Sample) -> Record:
        record = by_id.get(sample.id)
        if record is None or record.prompt != sample.prompt:
            problem = "has no answer to" if record is None else "asked something else as"
            raise InputError(
                f"{path} {problem} question {sample.id!r}",
                hint="compare on the same questions: the same --questions, or --seed, --family and --limit",
            )
        return Record.of(sample, record.reply, record.run)

    return [match(sample) for sample in samples]


def compare(ours: Sequence[Record], others: Sequence[Record]) -> EvalComparison:
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
    return EvalComparison(report(others), overall, families, mcnemar(overall.wins, overall.losses))


def _difference(pairs: Sequence[tuple[Record, Record]]) -> PairedDifference:
    """Difference over pairs of our record and the other's."""
    n = len(pairs)
    wins = sum(ours.right and not other.right for ours, other in pairs)
    losses = sum(other.right and not ours.right for ours, other in pairs)
    return PairedDifference(
        difference=(wins - losses) / n,
        interval=paired_interval(wins, losses, n),
        wins=wins,
        losses=losses,
        agreement=sum(normalize(ours.text) == normalize(other.text) for ours, other in pairs) / n,
        same_text=sum(ours.text == other.text for ours, other in pairs) / n,
    )
