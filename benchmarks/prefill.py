"""Prefill: milliseconds of the prefill graph against llama.cpp's own, in turns in one process.

    python benchmarks/prefill.py BUNDLE [--tokens 730,2929,7290] [--rounds 5] [--threads N]

The bundle has a prefill graph. Prompts are random visual embeddings with one text token at the end. The
graph's time includes handing over its keys and values. Prints a JSON object: medians and all times, by number
of tokens.
"""

import json
import time
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
import numpy.typing as npt
import typer

from onevision.bundle import BACKBONE, PREFILL
from onevision.runtime.engine import OneVision
from onevision.runtime.options import Prefill


def main(bundle: Path, tokens: str = "730,2929,7290", rounds: int = 5, threads: int | None = None) -> None:
    """Measure, and print."""
    backends = [backend for backend in get_args(Prefill) if backend != "auto"]
    lengths = [int(length) for length in tokens.split(",")]
    result: dict[str, object] = {}
    with OneVision.load(bundle, device="cpu", threads=threads, prefill="onnx") as model:
        files, room = model.bundle.manifest.files, 1
        result["precisions"] = {name: files[name].precision for name in (BACKBONE, PREFILL)}
        runner = model.pipeline.prefill_runner
        started = time.perf_counter()
        runner.load(max(lengths))
        result["load_ms"] = (time.perf_counter() - started) * 1e3
        for length in lengths:
            rows = np.random.default_rng(0).standard_normal(
                (length - 1, model.pipeline.backbone.hidden), np.float32
            )
            parts: tuple[npt.NDArray[np.float32], tuple[int]] = (rows * np.float32(0.02), (0,))
            times: dict[str, list[float]] = {backend: [] for backend in backends}
            for _ in range(rounds):
                for backend in backends:
                    started = time.perf_counter()
                    runner.run(parts, room, choice=backend)
                    times[backend].append((time.perf_counter() - started) * 1e3)
            medians = {backend: round(median(taken), 1) for backend, taken in times.items()}
            ratio = round(medians["onnx"] / medians["llama"], 3)
            result[str(length)] = {"median_ms": medians, "onnx/llama": ratio, "ms": times}
        result["warnings"] = runner.warnings
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    typer.run(main)
