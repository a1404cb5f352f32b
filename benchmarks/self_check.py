"""The overhead of measuring, and how well the machine's limits repeat.

    python benchmarks/self_check.py BUNDLE [--rounds 30] [--threads N]

Prints a JSON object:

* ``overhead``: time of an answer of 64 tokens about an image with the benchmark's clock, divided by the same
  without laps, in turns: median and quartiles of the rounds' ratios;
* ``rates``: a second measurement of the limits divided by the first;
* ``read``: memory bandwidth of a C program (``cc -O3``, a thread per part) divided by the benchmark's.
"""

import ctypes
import json
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from shutil import which
from statistics import quantiles
from typing import Any

import numpy as np
import typer

from onevision.bench import roofline
from onevision.bench.scenarios import photograph
from onevision.native.device import default_threads
from onevision.runtime import generate
from onevision.runtime.clock import StageClock
from onevision.runtime.engine import OneVision
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions

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
    """Times stages, but not each tile and token."""

    def lap(self, of: str | None = None) -> None:
        """Nothing."""


def overhead(bundle: Path, rounds: int, threads: int | None) -> dict[str, Any]:
    """Ratios of total times, with laps over without."""
    question = conversation_of("What is it?", [photograph((320, 240), seed=1)], None, None)
    options = AnswerOptions(max_tokens=64, ignore_end=True)
    ratios = []
    with OneVision.load(bundle, device="cpu", threads=threads) as model:

        def ask(clock: StageClock) -> float:
            started = time.perf_counter()
            model.run(generate.answer(model.pipeline, question, options, clock=clock)).read()
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


def main(bundle: Path, rounds: int = 30, threads: int | None = None) -> None:
    """Measure, and print."""
    count = threads or default_threads()
    first, second = (roofline.measure(threads=count) for _ in range(2))
    plain = c_read(count)
    rates = {
        f"{engine} {arithmetic}": after / before
        for engine, rates in first.engines.items()
        for arithmetic, before in rates.items()
        if before and (after := second.engines[engine][arithmetic])
    }
    result = {
        "threads": count,
        "overhead": overhead(bundle, rounds, threads),
        "rates": rates | {"read": second.read / first.read if first.read and second.read else None},
        "read": plain / first.read if plain and first.read else None,
        "first": asdict(first),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
