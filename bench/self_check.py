"""What measuring costs, and how well the machine's limits repeat.

    python bench/self_check.py BUNDLE [--rounds 30] [--threads N]

Prints a JSON object:

* ``overhead``: an answer of 64 tokens about a picture with the benchmark's clock, over the same without any
  laps, by turns; the median of the rounds' ratios, and its quartiles;
* ``rates``: a second measurement of the limits over the first, one each;
* ``read``: the bandwidth of memory by a C program (``cc -O3``, a thread per part) over the benchmark's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which
from statistics import quantiles
from typing import Any

import numpy as np

from onevision.bench import roofline
from onevision.native.device import default_threads
from onevision.proof.reference import synthetic_image
from onevision.runtime.clock import StageClock
from onevision.runtime.engine import OneVision

_TURNS = 12
_SOURCE = """
#include <stddef.h>
#include <stdint.h>
uint64_t read_all(const uint64_t *part, size_t count) {
    uint64_t seen = 0;
    for (size_t at = 0; at < count; at++) seen |= part[at];
    return seen;
}
"""


class _Lapless(StageClock):
    """Knows the stages, but not each tile and token."""

    def lap(self, of: str | None = None) -> None:
        """Nothing."""


def overhead(bundle: Path, rounds: int, threads: int | None) -> dict[str, Any]:
    """Ratios of total times, with laps over without."""
    from PIL import Image

    seen = Image.fromarray(synthetic_image(320, 240, seed=1))
    ratios = []
    with OneVision.load(bundle, device="cpu", threads=threads) as model:

        def ask(clock: StageClock) -> float:
            started = time.perf_counter()
            model.generate("What is it?", images=[seen], max_tokens=64, ignore_end=True, clock=clock)
            return time.perf_counter() - started

        ask(StageClock())
        for number in range(rounds):
            kinds = (StageClock, _Lapless) if number % 2 else (_Lapless, StageClock)
            taken = {kind: ask(kind()) for kind in kinds}
            ratios.append(taken[StageClock] / taken[_Lapless])
    low, middle, high = quantiles(ratios, n=4)
    return {"median": middle, "quartiles": [low, high], "rounds": rounds}


def c_read(threads: int) -> float | None:
    """Bytes a second that a C program reads; None without a compiler."""
    compiler = which("cc") or which("gcc") or which("clang")
    if compiler is None:
        return None
    count = roofline.working_set(threads) // threads // 8
    parts = [np.ones(count, np.uint64) for _ in range(threads)]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "read.c"), Path(folder, "read.so")
        source.write_text(_SOURCE, encoding="ascii")
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        read = ctypes.CDLL(str(library)).read_all
        read.argtypes, read.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint64

        def once() -> float:
            started = time.perf_counter()
            list(pool.map(lambda part: read(part.ctypes.data, count), parts))
            return time.perf_counter() - started

        with ThreadPoolExecutor(threads) as pool:
            return threads * count * 8 / min(once() for _ in range(_TURNS))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    threads = chosen.threads or default_threads()
    first, second = (roofline.measure(threads=threads) for _ in range(2))
    plain = c_read(threads)
    rates = {
        f"{engine} {precision}": after / before
        for engine, by_precision in first.engines.items()
        for precision, before in by_precision.items()
        if before and (after := second.engines[engine][precision])
    }
    result = {
        "threads": threads,
        "overhead": overhead(chosen.bundle, chosen.rounds, chosen.threads),
        "rates": rates | {"read": second.read / first.read if first.read and second.read else None},
        "read": plain / first.read if plain and first.read else None,
        "first": first.to_dict(),
    }
    print(json.dumps(result, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
