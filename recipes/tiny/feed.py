"""Data made ahead of training, in worker processes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from typing import TYPE_CHECKING

from recipes.tiny.data import Encoder
from recipes.tiny.stages import ALL_STAGES, make_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recipes.tiny.data import Batch
    from recipes.tiny.stages import Stage, StepSize
    from recipes.tiny.tiles import LabelledTiles

AHEAD = 8  # steps, at least

_encoders: list[Encoder] = []  # of a worker


class Feed:
    """Steps of data, in order.

    Args:
        tokenizer: The ``tokenizer.json``.
        seed: Of the data.
        workers: Processes; 0 makes the data where it is used.
        size: Of a step.
    """

    def __init__(self, tokenizer: Path, seed: int, workers: int, size: StepSize) -> None:
        self._seed, self._size = seed, size
        self._ahead = max(AHEAD, 2 * workers)
        self.encoder = _load(tokenizer)
        self._pool = (
            ProcessPoolExecutor(workers, get_context("spawn"), _start, (tokenizer,)) if workers else None
        )

    def steps(self, stage: Stage, start: int) -> Iterator[list[Batch | LabelledTiles]]:
        """The steps of a stage from ``start`` on, without end."""
        if self._pool is None:
            yield from (make_step(self.encoder, stage, self._seed, step, self._size) for step in count(start))
            return
        index = ALL_STAGES.index(stage)
        first = range(start, start + self._ahead)
        ahead = deque(self._pool.submit(_make, index, self._seed, step, self._size) for step in first)
        try:
            for step in count(first.stop):
                done = ahead.popleft().result()
                ahead.append(self._pool.submit(_make, index, self._seed, step, self._size))
                yield done
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _load(tokenizer: Path) -> Encoder:
    from tokenizers import Tokenizer

    return Encoder(Tokenizer.from_file(str(tokenizer)))


def _start(tokenizer: Path) -> None:
    _encoders.append(_load(tokenizer))


def _make(stage: int, seed: int, step: int, size: StepSize) -> list[Batch | LabelledTiles]:
    return make_step(_encoders[0], ALL_STAGES[stage], seed, step, size)
