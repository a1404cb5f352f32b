"""How fast the machine is just now: a fixed piece of work, timed between the runs.

Two results that were measured at different times differ by what else the machine did. The gauge tells by how
much, and the comparison allows for it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onevision.bench.ggml import llama_product
from onevision.bench.roofline import product_size, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PRODUCTS = 3
_MEMORY = 64 << 20  # bytes to read


@contextmanager
def gauge(threads: int, now: Callable[[], float] = time.perf_counter) -> Iterator[Callable[[], float]]:
    """A function that does the work and returns its milliseconds: some 50 on a usual machine.

    The engine is llama.cpp, whose threads do not go on spinning into what is timed next.
    """
    with (
        llama_product("fp32", product_size("cpu", threads), threads=threads) as product,
        reading("cpu", threads, _MEMORY) as probe,
    ):

        def measure() -> float:
            started = now()
            for _ in range(_PRODUCTS if product else 0):
                product and product.multiply()
            if probe:
                probe.call()
            return (now() - started) * 1e3

        yield measure
