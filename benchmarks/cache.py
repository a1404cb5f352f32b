"""TTFT of a first and a second question about an image: in memory, and in new processes with ``--cache DIR``.

    python benchmarks/cache.py BUNDLE [--rounds 3] [--threads N]

Prints medians in seconds as JSON. Loading is in neither.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

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


def main(bundle: Path, rounds: int = 3, threads: int | None = None) -> None:
    """Measure, and print."""
    result: dict[str, Any] = {}
    for name, measure in (("in memory", in_memory), ("new process, --cache DIR", in_processes)):
        times = [measure(bundle, threads) for _ in range(rounds)]
        first, second = (round(median(column) / 1e3, 3) for column in zip(*times, strict=True))
        result[name] = {"first": first, "second": second, "ratio": round(second / first, 3)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
