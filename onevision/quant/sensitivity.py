"""Which products cannot bear int8: those that hurt most, as few as will do.

In: the errors of single products, measured side by side in one pass, see
:func:`~onevision.quant.watch.watch_errors`. Out: what to keep finer, in the order of the harm that it undoes,
and the shortest beginning of that list with which the image features pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from onevision.graphs.siglip import modules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from onevision.graphs.kernels import Precision

_TINY = 1e-300  # instead of a division by zero
#: A step per token has to leave at most this share of the error, or fp32 is next.
_WORTH_A_STEP = 0.5


@dataclass(frozen=True)
class Upgrade:
    """A product made finer.

    Attributes:
        product: Its name, see :func:`~onevision.graphs.siglip.products`.
        precision: What it is kept in.
        harm: What it did before: the error of its output, by its size, times the share of the residual
            stream that its block makes up.
    """

    product: str
    precision: Precision
    harm: float


def upgrades(errors: Mapping[str, float], products: Iterable[str]) -> list[Upgrade]:
    """All that can be made finer, worst first: from ``int8`` to ``int8-token`` where that helps, and to fp32.

    Args:
        errors: Sums of squares, see :func:`~onevision.graphs.siglip.write_encoder`.
        products: Those in int8.
    """
    found = []
    for product in products:
        harm = _harm(errors, product, "int8")
        if product.endswith(".attention"):
            found.append(Upgrade(product, "fp32", harm))
            continue
        by_token = _harm(errors, product, "int8-token")
        if by_token <= _WORTH_A_STEP * harm:
            found.append(Upgrade(product, "int8-token", harm))
            harm = by_token
        found.append(Upgrade(product, "fp32", harm))
    return sorted(found, key=lambda upgrade: -upgrade.harm)


def fewest(
    upgrades: Sequence[Upgrade], passes: Callable[[dict[str, Precision]], bool]
) -> tuple[Upgrade, ...] | None:
    """The shortest beginning of ``upgrades`` that passes, one per product; None if all of them do not.

    Tried are 1, 2, 4, … of them, and then what lies between the last two.

    Args:
        upgrades: Of :func:`upgrades`.
        passes: Measures the image features with products at those precisions, the others in int8.
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
    last = {upgrade.product: upgrade for upgrade in upgrades[:good]}
    return tuple(last.values())


def _precisions(upgrades: Iterable[Upgrade]) -> dict[str, Precision]:
    return {upgrade.product: upgrade.precision for upgrade in upgrades}


def _harm(errors: Mapping[str, float], product: str, precision: Precision) -> float:
    parts = ["attention"] if product.endswith(".attention") else modules(product)
    error = max(
        errors[f"{product}/{part}:{precision}"] / max(errors[f"{product}/{part}:fp32"], _TINY)
        for part in parts
    )
    layer, _, part = product.rpartition(".")
    if layer == "projector":
        return sqrt(error)
    # What a block adds to the stream is the output of its last product.
    last = f"{layer}.fc2" if part in {"fc1", "fc2"} else f"{layer}.out_proj"
    added = errors[f"{last}/{modules(last)[0]}:fp32"] / max(errors[f"{last}:residual"], _TINY)
    return sqrt(error * added)
