"""What a quantised bundle has to keep of the reference bundle, which is the same model in floats.

In: image features, next-token logits and answers of both. Out: figures, and a :class:`Quality` that says
whether they pass and, if not, why. Formulas alone: :mod:`onevision.quant.measure` runs the engines.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.eval.compare import compare
from onevision.eval.intervals import sign_test

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from onevision.eval.records import Record

    Logits = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # candidate's, reference's

_TINY = 1e-300  # instead of a division by zero
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Thresholds:
    """Where the gates stand. Accuracies and agreements are shares, divergences are in nats."""

    #: Cosine of a tile's image features with the reference's, at least, for the worst tile.
    cosine: float = 0.999
    #: Norm of the difference over that of the reference, at most, for the worst tile: the same as the
    #: cosine if the error has no direction of its own, √(2 - 2 · 0.999).
    relative_error: float = 0.045
    #: Kullback-Leibler divergence of the next token's distribution from the reference's, at most, on average.
    mean_kl: float = 0.02
    #: The same for the 99th percentile of all positions: few answers may hang on a coarse rounding.
    p99_kl: float = 0.2
    #: Share of positions whose likeliest token is the reference's, at least.
    top1: float = 0.97
    #: What the accuracy may fall by, as the mean of all families. A single question more that is answered
    #: wrongly never fails this gate: of few it is many points, and chance.
    accuracy_drop: float = 0.01
    #: What the accuracy of one family may fall by, and by more only if it may be chance.
    family_drop: float = 0.02
    #: How seldom it is chance that a family is found to fall, if none does: a sign test of the questions that
    #: only one of both answers rightly, at this level by the number of families (Bonferroni).
    chance: float = 0.05


@dataclass(frozen=True)
class FeatureQuality:
    """Image features against the reference's. None: they are not finite."""

    tiles: int
    cosine: float | None  # of the worst tile
    relative_error: float | None  # of the worst tile
    constant: bool  # every tile has the same features, and not so in the reference


@dataclass(frozen=True)
class TokenQuality:
    """Next-token distributions on the reference's own answers. None: logits that are not finite."""

    samples: int
    positions: int
    mean_kl: float | None
    p99_kl: float | None
    top1: float | None


@dataclass(frozen=True)
class FamilyQuality:
    """Accuracy of one family, less the reference's: of n questions, wins alone are right, losses wrong."""

    n: int
    wins: int
    losses: int

    @property
    def difference(self) -> float:
        """Ours less the reference's."""
        return (self.wins - self.losses) / self.n


@dataclass(frozen=True)
class AnswerQuality:
    """Answers against the reference's, and against what is right. Accuracies are means of the families."""

    n: int
    accuracy: float
    reference_accuracy: float
    agreement: float  # share of answers that say the same
    families: dict[str, FamilyQuality]


@dataclass(frozen=True)
class Quality:
    """What was measured, and why it does not pass. None: not measured."""

    reference: str  # precisions of the bundle that it was held against
    features: FeatureQuality | None
    tokens: TokenQuality | None
    answers: AnswerQuality | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Nothing speaks against it."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """For a manifest's ``quality``."""
        data = asdict(self) | {"passed": self.passed, "reasons": list(self.reasons)}
        return {key: value for key, value in data.items() if value is not None}


def compare_features(
    candidate: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> FeatureQuality:
    """Compare image features, both [T, P, H], tile by tile; the worst tile counts."""
    cosines, errors = [], []
    for ours, theirs in zip(candidate, reference, strict=True):
        a, b = ours.ravel().astype(np.float64), theirs.ravel().astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return FeatureQuality(len(candidate), None, None, constant=False)
        scale = float(np.linalg.norm(b))
        errors.append(float(np.linalg.norm(a - b)) / max(scale, _TINY))
        cosines.append(float(a @ b) / max(float(np.linalg.norm(a)) * scale, _TINY))
    constant = _is_constant(candidate) and not _is_constant(reference)
    return FeatureQuality(len(candidate), min(cosines), max(errors), constant)


def worst_features(parts: Sequence[FeatureQuality]) -> FeatureQuality:
    """Comparisons of several pictures as one: the worst tile of all, of which there is at least one."""
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
        pairs: The candidate's and the reference's logits of each position, float32 [vocabulary] each.
        samples: Number of answers that they are of.
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
    """Kullback-Leibler divergence Σ p · log(p / q) in nats, of the reference's p from the candidate's q.

    Both are the softmax of finite logits [vocabulary], in float64. It is 0 for equal ones, to the last bit.
    """
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (reference, candidate))
    return max(0.0, float(np.sum(np.exp(log_p) * (log_p - log_q))))


def compare_answers(ours: Sequence[Record], theirs: Sequence[Record]) -> AnswerQuality:
    """Compare two runs over the same questions, of which there is at least one."""
    comparison = compare(ours, theirs)
    families = comparison.other.families
    accuracy = comparison.other.overall.accuracy
    return AnswerQuality(
        n=len(ours),
        accuracy=accuracy + comparison.overall.difference,
        reference_accuracy=accuracy,
        agreement=comparison.overall.agreement,
        families={
            family: FamilyQuality(families[family].n, difference.wins, difference.losses)
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
) -> Quality:
    """Hold what was measured against the thresholds; ``reference``: see :class:`Quality`."""
    reasons = [
        *(_features_fail(thresholds, features) if features else ()),
        *(_tokens_fail(thresholds, tokens) if tokens else ()),
        *(_answers_fail(thresholds, answers) if answers else ()),
    ]
    return Quality(reference, features, tokens, answers, tuple(reasons))


def _features_fail(thresholds: Thresholds, seen: FeatureQuality) -> Iterator[str]:
    if seen.cosine is None or seen.relative_error is None:
        yield "image features are not finite"
        return
    if seen.constant:
        yield "image features are the same whatever the picture"
    if seen.cosine < thresholds.cosine:
        yield f"image features: cosine {seen.cosine:.4f} of the worst tile, below {thresholds.cosine}"
    if seen.relative_error > thresholds.relative_error:
        yield (
            f"image features: relative error {seen.relative_error:.3g} of the worst tile, "
            f"above {thresholds.relative_error}"
        )


def _tokens_fail(thresholds: Thresholds, seen: TokenQuality) -> Iterator[str]:
    if seen.mean_kl is None or seen.p99_kl is None or seen.top1 is None:
        yield "logits are not finite"
        return
    if seen.mean_kl > thresholds.mean_kl:
        yield f"mean KL divergence {seen.mean_kl:.3g}, above {thresholds.mean_kl}"
    if seen.p99_kl > thresholds.p99_kl:
        yield f"99th percentile of the KL divergence {seen.p99_kl:.3g}, above {thresholds.p99_kl}"
    if seen.top1 < thresholds.top1:
        yield f"the likeliest token is the same at {seen.top1:.2%} of positions, below {thresholds.top1:.0%}"


def _answers_fail(thresholds: Thresholds, seen: AnswerQuality) -> Iterator[str]:
    if seen.reference_accuracy - seen.accuracy > max(thresholds.accuracy_drop, 1 / seen.n) + _ROUNDING:
        yield f"accuracy {seen.accuracy:.1%}, the reference's is {seen.reference_accuracy:.1%}"
    for family, part in seen.families.items():
        falls = -part.difference > thresholds.family_drop + _ROUNDING
        if falls and sign_test(part.wins, part.losses) <= thresholds.chance / len(seen.families):
            yield (
                f"accuracy in {family} falls by {-part.difference * 100:.1f} points: of {part.n} answers "
                f"{part.losses} become wrong, {part.wins} right"
            )


def _is_constant(features: npt.NDArray[np.float32]) -> bool:
    """Whether all of several tiles have the same features."""
    return len(features) > 1 and bool((features == features[0]).all())


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max()
    normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalised
