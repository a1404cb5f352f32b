"""Ours against each peer that was measured beside us: ratios, with what chance may have made of them.

A ratio below 1 says that ours takes less. It is of medians, with the bootstrap interval of
:mod:`onevision.bench.statistics`; peak memory was read once and has none. Only the same work is compared: a
prompt of as many tokens, and of what answers, an answer of as many.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.bench.statistics import bootstrap_ratio, samples
from onevision.bench.subject import OURS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onevision.bench.result import Measured, Result

#: What is compared, of what both have: milliseconds, and bytes.
TIMES = ("encode", "prefill", "ttft", "tpot", "total")
PEAK = "peak"
#: What an engine that only encodes has in common with the others.
_OF_ENCODERS = ("encode",)


@dataclass(frozen=True)
class Ratio:
    """Ours and a peer's: medians in milliseconds, or bytes for ``peak``, and ours divided by theirs."""

    scenario: str
    peer: str
    what: str
    ours: float
    theirs: float
    ratio: float
    interval: tuple[float, float] | None


def ratios(result: Result) -> tuple[Ratio, ...]:
    """All that can be compared."""
    return tuple(
        one for ours, peer in _pairs(result) if not _difference(ours, peer) for one in _of(ours, peer)
    )


def unequal(result: Result) -> tuple[str, ...]:
    """What was measured and is not compared, and why; a sentence each."""
    found = ((peer, _difference(ours, peer)) for ours, peer in _pairs(result))
    return tuple(f"{peer.scenario} {peer.subject}: not compared, {why}" for peer, why in found if why)


def to_dict(result: Result) -> dict[str, Any]:
    """For JSON."""
    return {"ratios": [asdict(one) for one in ratios(result)], "not_compared": list(unequal(result))}


def _pairs(result: Result) -> Iterator[tuple[Measured, Measured]]:
    ours = {one.scenario: one for one in result.measured if one.subject == OURS and one.runs}
    for peer in result.measured:
        if peer.subject != OURS and peer.runs and peer.scenario in ours:
            yield ours[peer.scenario], peer


def _difference(ours: Measured, peer: Measured) -> str | None:
    """Why two are not the same work; None if they are."""
    mine, theirs = ours.counts, peer.counts
    if mine is None or theirs is None:
        return "its tokens were not counted"
    if mine.prompt_tokens != theirs.prompt_tokens:
        return f"its prompt has {theirs.prompt_tokens:,} tokens, and ours has {mine.prompt_tokens:,}"
    if theirs.completion_tokens not in {0, mine.completion_tokens}:
        return f"its answer has {theirs.completion_tokens} tokens, and ours has {mine.completion_tokens}"
    return None


def _of(ours: Measured, peer: Measured) -> Iterator[Ratio]:
    mine, theirs = samples(ours), samples(peer)
    answers = peer.counts is not None and peer.counts.completion_tokens > 0
    for what in TIMES if answers else _OF_ENCODERS:
        if what in mine and what in theirs:
            our, their = float(np.median(mine[what])), float(np.median(theirs[what]))
            interval = bootstrap_ratio(theirs[what], mine[what])
            yield Ratio(ours.scenario, peer.subject, what, our, their, our / their, interval)
    if answers and ours.memory and peer.memory:
        our, their = ours.memory.peak, peer.memory.peak
        yield Ratio(ours.scenario, peer.subject, PEAK, our, their, our / their, None)
