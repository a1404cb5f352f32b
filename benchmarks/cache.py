"""TTFT of a first and a second question about an image: in memory, and in new processes with ``--cache DIR``.

The last row is of first questions, with a cache on a disk that takes a second to write, against none.

    python benchmarks/cache.py BUNDLE [--rounds 3] [--pairs 30] [--threads N]

Prints medians in seconds as JSON. Loading is in neither.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import typer

from onevision.bench.scenarios import QUESTION, SECOND_QUESTION, photograph
from onevision.runtime.cache import Cache
from onevision.runtime.engine import OneVision

PHOTO = photograph((640, 480))


def in_memory(bundle: Path, threads: int | None) -> list[float]:
    """Milliseconds to the first token of both questions, asked of one loaded model."""
    with OneVision.load(bundle, device="cpu", threads=threads, cache=Cache()) as model:
        asked = (QUESTION, SECOND_QUESTION)
        return [model.generate(text, images=[PHOTO], max_tokens=1).timings.ttft for text in asked]


def in_processes(bundle: Path, threads: int | None) -> list[float]:
    """The same, each question asked by an ``onevision run`` of its own."""
    times = []
    with TemporaryDirectory() as folder:
        image, cache = Path(folder, "photo.jpg"), Path(folder, "cache")
        image.write_bytes(PHOTO)
        for text in (QUESTION, SECOND_QUESTION):
            words = ["run", text, "-i", image, "-m", bundle, "--cache", cache, "-n", 1, "--device", "cpu"]
            words += ["--threads", threads] if threads else []
            command = [sys.executable, "-m", "onevision", *map(str, words), "--json"]
            out = subprocess.run(command, check=True, capture_output=True).stdout
            times.append(json.loads(out)["timings_ms"]["ttft"])
    return times


def on_slow_disk(bundle: Path, pairs: int, threads: int | None) -> dict[str, float]:
    """Time to the first piece with a slow cache, over that without: medians of pairs, by clock and by CPU."""
    write = Cache._write
    Cache._write = lambda *batch: time.sleep(1) or write(*batch)
    ratios: list[list[float]] = [[], []]
    with (
        TemporaryDirectory() as folder,
        OneVision.load(bundle, device="cpu", threads=threads) as without,
        OneVision.load(bundle, device="cpu", threads=threads, cache=folder) as slow,
    ):
        for number in range(pairs):
            photo = np.random.default_rng(number).integers(0, 256, (480, 640, 3), np.uint8)
            clocks: dict[str, tuple[float, float]] = {}
            pair = {"slow": slow, "without": without}
            for name in sorted(pair, reverse=number % 2 == 1):
                started = time.perf_counter(), time.process_time()
                with pair[name].stream(QUESTION, images=[photo], max_tokens=4) as stream:
                    next(iter(stream))
                    clocks[name] = time.perf_counter() - started[0], time.process_time() - started[1]
                    stream.read()
            for ratio, with_cache, alone in zip(ratios, clocks["slow"], clocks["without"], strict=True):
                ratio.append(with_cache / alone)
    Cache._write = write
    return {name: round(median(ratio), 3) for name, ratio in zip(("clock", "cpu"), ratios, strict=True)}


def main(bundle: Path, rounds: int = 3, pairs: int = 30, threads: int | None = None) -> None:
    """Measure, and print."""
    result: dict[str, Any] = {}
    for name, measure in (("in memory", in_memory), ("new process, --cache DIR", in_processes)):
        times = [measure(bundle, threads) for _ in range(rounds)]
        first, second = (round(median(column) / 1e3, 3) for column in zip(*times, strict=True))
        result[name] = {"first": first, "second": second, "ratio": round(second / first, 3)}
    result["a disk that takes a second, over none"] = on_slow_disk(bundle, pairs, threads)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
