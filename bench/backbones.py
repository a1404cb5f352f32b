"""Size and speed of a backbone in several precisions, by turns in one process.

    python bench/backbones.py BACKBONE.gguf [--types f16 q8_0 q4_0 iq4_nl q4_k_m] [--tokens 730] [--rounds 3]

The GGUF file is one in floats. Each precision reads a prompt of random visual embeddings and goes on with 24
tokens. Prints a line of JSON each: true bits per weight, bytes, tokens per second, seconds to read the
prompt; the fastest round counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from onevision.native.quantize import FLOAT_BYTES, RECIPES, quantize_gguf
from onevision.runtime.backbone import Backbone

TOKENS = 24  # that are timed, after two that warm up


def run_round(backbone: Backbone, tokens: int) -> tuple[float, float]:
    """Seconds to read the prompt, and seconds a token after it."""
    embeddings = np.random.default_rng(0).standard_normal((tokens, backbone.hidden)) * 0.02
    backbone.start(tokens + TOKENS + 8)
    started = time.perf_counter()
    backbone.prefill([(1, 2, 3), embeddings.astype(np.float32), (4,)])
    read = time.perf_counter()
    for token in range(2):
        backbone.append(100 + token)
    begun = time.perf_counter()
    for token in range(TOKENS):
        backbone.append(200 + token)
    return read - started, (time.perf_counter() - begun) / TOKENS


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--types", nargs="+", choices=tuple(RECIPES), metavar="TYPE")
    parser.add_argument("--tokens", type=int, default=730)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    types = arguments.types or ["f16", "q8_0", "q4_0", "iq4_nl", "q4_k_m"]
    with TemporaryDirectory() as folder, ExitStack() as opened:
        paths = {name: Path(folder) / f"{name}.gguf" for name in types}
        reports = {name: quantize_gguf(arguments.gguf, path, RECIPES[name]) for name, path in paths.items()}
        backbones = {
            name: opened.enter_context(
                closing(
                    Backbone(
                        path,
                        device="cpu",
                        threads=arguments.threads,
                        flash_attention=name not in FLOAT_BYTES,
                    )
                )
            )
            for name, path in paths.items()
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in types}
        for _ in range(arguments.rounds):
            for name, backbone in backbones.items():
                times[name].append(run_round(backbone, arguments.tokens))
        for name in types:
            read, token = (min(column) for column in zip(*times[name], strict=True))
            row = {
                "type": name,
                "bits_per_weight": reports[name].bits_per_weight,
                "bytes": paths[name].stat().st_size,
                "tokens_per_second": 1 / token,
                "prompt_seconds": read,
            }
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
