"""The quality gate: a quantized bundle against the same model in floats, its reference.

In: image features, next-token logits and answers of both. Out: figures, and a :class:`GateResult` with the
reasons if they do not pass. Formulas only; :mod:`onevision.quant.measure` runs the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import ge, le
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.eval.compare import compare
from onevision.eval.records import Record
from onevision.metrics import cosine, relative_error, sign_test

Logits = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # candidate's, reference's

_ROUNDING = 1e-9

#: Field of a figure and of its threshold, the comparison that passes, and the reason if it does not.
Check = tuple[str, "Callable[[float, float], bool]", str]
_FEATURES: tuple[Check, ...] = (
    ("cosine", ge, "image features: cosine {:.4f} of the worst tile, below {}"),
    ("relative_error", le, "image features: relative error {:.3g} of the worst tile, above {}"),
)
_TOKENS: tuple[Check, ...] = (
    ("mean_kl", le, "mean KL divergence {:.3g}, above {}"),
    ("p99_kl", le, "99th percentile of the KL divergence {:.3g}, above {}"),
    ("top1", ge, "top-1 agreement {:.2%}, below {:.0%}"),
)


@dataclass(frozen=True)
class Thresholds:
    """Limits of the gate. Accuracies and agreements are shares, divergences are in nats."""

    #: Minimum cosine similarity of a tile's image features with the reference's.
    cosine: float = 0.999
    #: Maximum relative error of a tile's image features. It is as strict as the cosine if the error has no
    #: direction of its own: √(2 - 2 · 0.999).
    relative_error: float = 0.045
    #: Maximum mean Kullback-Leibler divergence of the next token's distribution from the reference's.
    mean_kl: float = 0.02
    #: Maximum 99th percentile of the same: a few answers may depend on coarse rounding.
    p99_kl: float = 0.2
    #: Minimum top-1 agreement: share of positions with the same most likely token.
    top1: float = 0.97
    #: Maximum drop of the accuracy, as the mean of all families. One more wrong answer never fails: among few
    #: questions it is many points, and chance.
    accuracy_drop: float = 0.01
    #: Maximum drop of one family's accuracy; a larger one fails only if chance does not explain it.
    family_drop: float = 0.02
    #: Probability of a false alarm in any family. A family's drop is tested at this level divided by the
    #: number of families (Bonferroni), by a sign test of the questions that only one of both got right.
    chance: float = 0.05


@dataclass(frozen=True)
class FeatureQuality:
    """Image features against the reference's. None: not finite."""

    tiles: int
    cosine: float | None  # of the worst tile
    relative_error: float | None  # of the worst tile
    constant: bool  # all tiles have the same features, unlike the reference's


@dataclass(frozen=True)
class TokenQuality:
    """Next-token distributions on the reference's own answers. None: logits that are not finite."""

    samples: int
    positions: int
    mean_kl: float | None
    p99_kl: float | None
    top1: float | None


@dataclass(frozen=True)
class FamilyChange:
    """Answers of a family: of ``n``, ``wins`` are right here only, ``losses`` in the reference only."""

    n: int
    wins: int
    losses: int

    @property
    def difference(self) -> float:
        """Change of the accuracy."""
        return (self.wins - self.losses) / self.n


@dataclass(frozen=True)
class AnswerQuality:
    """Answers against the reference's and against the true ones. Accuracies are means of the families."""

    n: int
    accuracy: float
    reference_accuracy: float
    agreement: float  # share of equal answers
    families: dict[str, FamilyChange]


@dataclass(frozen=True)
class GateResult:
    """Figures of a candidate, and the reasons why it does not pass. None: not measured."""

    reference: str  # precisions of the reference: ``fp32 + f32``
    features: FeatureQuality | None
    tokens: TokenQuality | None
    answers: AnswerQuality | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """The manifest's ``quality.gate``."""
        data = asdict(self) | {"passed": self.passed, "reasons": list(self.reasons)}
        return {key: value for key, value in data.items() if value is not None}


def compare_features(
    candidate: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> FeatureQuality:
    """Compare image features, both [T, P, H], tile by tile; the worst tile counts."""
    cosines, errors = [], []
    for ours, theirs in zip(candidate, reference, strict=True):
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            return FeatureQuality(len(candidate), None, None, constant=False)
        cosines.append(cosine(ours, theirs))
        errors.append(relative_error(ours, theirs))
    constant = _is_constant(candidate) and not _is_constant(reference)
    return FeatureQuality(len(candidate), min(cosines), max(errors), constant)


def worst_features(parts: Sequence[FeatureQuality]) -> FeatureQuality:
    """The worst tile of at least one comparison."""
    cosines = [part.cosine for part in parts if part.cosine is not None]
    errors = [part.relative_error for part in parts if part.relative_error is not None]
    finite = len(cosines) == len(errors) == len(parts)
    return FeatureQuality(
        tiles=sum(part.tiles for part in parts),
        cosine=min(cosines) if finite else None,
        relative_error=max(errors) if finite else None,
        constant=any(part.constant for part in parts),
    )


def compare_logits(pairs: Iterable[Logits], samples: int) -> TokenQuality:
    """Compare next-token logits position by position.

    Args:
        pairs: The candidate's and the reference's logits of each position, float32 [tokens] each.
        samples: Number of answers that the positions belong to.
    """
    divergences: list[float] = []
    same: list[bool] = []
    for candidate, reference in pairs:
        if not (np.isfinite(candidate).all() and np.isfinite(reference).all()):
            return TokenQuality(samples, len(divergences) + 1, None, None, None)
        divergences.append(kl_divergence(candidate, reference))
        same.append(int(candidate.argmax()) == int(reference.argmax()))
    return TokenQuality(
        samples=samples,
        positions=len(divergences),
        mean_kl=float(np.mean(divergences)),
        p99_kl=float(np.percentile(divergences, 99)),
        top1=float(np.mean(same)),
    )


def kl_divergence(candidate: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    """Kullback-Leibler divergence Σ p · log(p / q) in nats: reference p, candidate q.

    Both are the softmax, in float64, of finite logits [tokens]. Equal logits give exactly 0.
    """
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (reference, candidate))
    return max(0.0, float(np.sum(np.exp(log_p) * (log_p - log_q))))


def compare_answers(ours: Sequence[Record], theirs: Sequence[Record]) -> AnswerQuality:
    """Compare two runs over the same questions, at least one."""
    comparison = compare(ours, theirs)
    families = comparison.other.families
    accuracy = comparison.other.overall.accuracy
    return AnswerQuality(
        n=len(ours),
        accuracy=accuracy + comparison.overall.difference,
        reference_accuracy=accuracy,
        agreement=comparison.overall.agreement,
        families={
            family: FamilyChange(families[family].n, difference.wins, difference.losses)
            for family, difference in comparison.families.items()
        },
    )


def judge(
    thresholds: Thresholds,
    reference: str,
    *,
    features: FeatureQuality | None = None,
    tokens: TokenQuality | None = None,
    answers: AnswerQuality | None = None,
) -> GateResult:
    """Compare figures with the thresholds; arguments as in :class:`GateResult`."""
    reasons: list[str] = []
    if features:
        if features.constant:
            reasons.append("image features are the same for every image")
        reasons += _missed(thresholds, features, _FEATURES, "image features")
    if tokens:
        reasons += _missed(thresholds, tokens, _TOKENS, "logits")
    if answers:
        reasons += _answer_reasons(thresholds, answers)
    return GateResult(reference, features, tokens, answers, tuple(reasons))


def _missed(
    limits: Thresholds, figures: FeatureQuality | TokenQuality, checks: tuple[Check, ...], name: str
) -> Iterator[str]:
    """The figures that miss their thresholds."""
    for field, passes, text in checks:
        value, limit = getattr(figures, field), getattr(limits, field)
        if value is None:
            yield f"{name} are not finite"
            return
        if not passes(value, limit):
            yield text.format(value, limit)


def _answer_reasons(limits: Thresholds, found: AnswerQuality) -> Iterator[str]:
    if found.reference_accuracy - found.accuracy > max(limits.accuracy_drop, 1 / found.n) + _ROUNDING:
        yield f"accuracy {found.accuracy:.1%}, the reference's is {found.reference_accuracy:.1%}"
    for family, change in found.families.items():
        drop = -change.difference
        if drop <= limits.family_drop + _ROUNDING:
            continue
        if sign_test(change.wins, change.losses) <= limits.chance / len(found.families):
            yield (
                f"accuracy in {family} falls by {drop * 100:.1f} points: of {change.n} answers "
                f"{change.losses} become wrong, {change.wins} right"
            )


def _is_constant(features: npt.NDArray[np.float32]) -> bool:
    """Whether several tiles all have the same features."""
    return len(features) > 1 and bool((features == features[0]).all())


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max()
    log_probabilities: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return log_probabilities
