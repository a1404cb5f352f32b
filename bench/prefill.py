"""Milliseconds to read a prompt: the prefill graph against llama.cpp, by turns in one process.

    python bench/prefill.py BUNDLE [--tokens 730 2929 7290] [--rounds 5] [--threads N]

The bundle is one with a prefill graph. Prompts are random visual embeddings with one token of text behind.
The graph's time includes handing over. Prints a JSON object: medians and all times, by number of tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np

from onevision.bundle import BACKBONE, PREFILL
from onevision.runtime.engine import OneVision
from onevision.runtime.options import Prefill


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[730, 2929, 7290])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    ways = [way for way in get_args(Prefill) if way != "auto"]
    result: dict[str, object] = {}
    with OneVision.load(chosen.bundle, device="cpu", threads=chosen.threads, prefill="onnx") as model:
        files, room = model.bundle.manifest.files, 1
        result["precisions"] = {name: files[name].precision for name in (BACKBONE, PREFILL)}
        result["load_ms"] = model.pipeline.prefill_runner.load(max(chosen.tokens))
        for tokens in chosen.tokens:
            rows = np.random.default_rng(0).standard_normal((tokens - 1, model.pipeline.backbone.hidden))
            parts = [rows.astype(np.float32) * 0.02, (0,)]
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(chosen.rounds):
                for way in ways:
                    started = time.perf_counter()
                    model.pipeline.prefill_runner.read(parts, room, lambda _: None, choice=way)
                    times[way].append((time.perf_counter() - started) * 1e3)
            medians = {way: round(median(taken), 1) for way, taken in times.items()}
            ratio = round(medians["onnx"] / medians["llama"], 3)
            result[str(tokens)] = {"median_ms": medians, "onnx/llama": ratio, "ms": times}
        result["warnings"] = model.pipeline.prefill_runner.warnings
    print(json.dumps(result, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
