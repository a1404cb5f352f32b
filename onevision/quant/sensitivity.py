"""Which matmuls cannot be int8: as few as possible, the most harmful first.

In: the errors of single matmuls, measured side by side in one pass, see
:func:`~onevision.quant.watch.watch_errors`. Out: a list of upgrades to a finer precision, sorted by the harm
that each undoes, and the shortest beginning of that list with which the image features pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from onevision.graphs.kernels import MatmulPrecision
from onevision.graphs.siglip import modules

_TINY = 1e-300  # instead of a division by zero
#: Largest share of the error that may remain with a scale per token; otherwise fp32 is next.
_WORTH_A_SCALE = 0.5


@dataclass(frozen=True)
class Upgrade:
    """A matmul in a finer precision.

    Attributes:
        matmul: Its name, see :func:`~onevision.graphs.siglip.matmuls`.
        precision: The finer precision.
        harm: Error in the precision before: relative error of its output, times the share of its block in the
            residual stream.
    """

    matmul: str
    precision: MatmulPrecision
    harm: float


def upgrades(errors: Mapping[str, float], matmuls: Iterable[str]) -> list[Upgrade]:
    """All upgrades, worst first: from ``int8`` to ``int8-token`` where that helps, and to fp32.

    Args:
        errors: Sums of squares, see :func:`~onevision.graphs.siglip.write_siglip`.
        matmuls: Names of those in int8.
    """
    found = []
    for matmul in matmuls:
        harm = _harm(errors, matmul, "int8")
        if matmul.endswith(".attention"):
            found.append(Upgrade(matmul, "fp32", harm))
            continue
        by_token = _harm(errors, matmul, "int8-token")
        if by_token <= _WORTH_A_SCALE * harm:
            found.append(Upgrade(matmul, "int8-token", harm))
            harm = by_token
        found.append(Upgrade(matmul, "fp32", harm))
    return sorted(found, key=lambda upgrade: -upgrade.harm)


def fewest(
    upgrades: Sequence[Upgrade], passes: Callable[[dict[str, MatmulPrecision]], bool]
) -> tuple[Upgrade, ...] | None:
    """The shortest beginning of ``upgrades`` that passes, the last one of each matmul; None if all do not.

    1, 2, 4, … of them are tried, then a bisection between the last two.

    Args:
        upgrades: Of :func:`upgrades`.
        passes: Measures the image features with matmuls at these precisions, the others in int8.
    """
    fails, good = 0, 1
    while not passes(_precisions(upgrades[:good])):
        if good >= len(upgrades):
            return None
        fails, good = good, min(2 * good, len(upgrades))
    while good - fails > 1:
        middle = (fails + good) // 2
        if passes(_precisions(upgrades[:middle])):
            good = middle
        else:
            fails = middle
    last = {upgrade.matmul: upgrade for upgrade in upgrades[:good]}
    return tuple(last.values())


def _precisions(upgrades: Iterable[Upgrade]) -> dict[str, MatmulPrecision]:
    return {upgrade.matmul: upgrade.precision for upgrade in upgrades}


def _harm(errors: Mapping[str, float], matmul: str, precision: MatmulPrecision) -> float:
    parts = ["attention"] if matmul.endswith(".attention") else modules(matmul)
    error = max(
        errors[f"{matmul}/{part}:{precision}"] / max(errors[f"{matmul}/{part}:fp32"], _TINY) for part in parts
    )
    layer, _, part = matmul.rpartition(".")
    if layer == "projector":
        return sqrt(error)
    # The output of a block's last matmul is added to the stream.
    last = f"{layer}.fc2" if part in {"fc1", "fc2"} else f"{layer}.out_proj"
    added = errors[f"{last}/{modules(last)[0]}:fp32"] / max(errors[f"{last}:residual"], _TINY)
    return sqrt(error * added)
