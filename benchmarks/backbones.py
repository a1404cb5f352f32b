"""Size and speed of a language model in several precisions, in turns in one process.

    python benchmarks/backbones.py BACKBONE.gguf [--types f16,q8_0,q4_0,iq4_nl,q4_k_m] [--rounds 3]

The GGUF file is one in floats. Each precision reads a prompt of random visual embeddings and decodes 24
tokens. Prints a line of JSON each: true bits per weight, bytes, tokens per second, seconds of the prefill; of
the fastest round.
"""

import json
import time
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import numpy as np
import typer

from onevision.native.quantize import FLOAT_BYTES, RECIPES, quantize_gguf
from onevision.runtime.backbone import Backbone

if TYPE_CHECKING:
    from onevision.precisions import BackbonePrecision

TOKENS = 24  # that are timed, after two that warm up


def run_round(backbone: Backbone, tokens: int) -> tuple[float, float]:
    """Seconds of the prefill, and seconds per token after it."""
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


def main(
    gguf: Path,
    types: str = "f16,q8_0,q4_0,iq4_nl,q4_k_m",
    tokens: int = 730,
    rounds: int = 3,
    threads: int | None = None,
) -> None:
    """Measure, and print a line of JSON per type."""
    names = [cast("BackbonePrecision", name) for name in types.split(",")]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        backbones, times = {}, {name: list[tuple[float, float]]() for name in names}
        for name in names:
            path = Path(folder, f"{name}.gguf")
            report = quantize_gguf(gguf, path, RECIPES[name])
            backbone = Backbone(path, device="cpu", threads=threads, flash_attention=name not in FLOAT_BYTES)
            backbones[name] = stack.enter_context(closing(backbone)), report, path.stat().st_size
        for _ in range(rounds):
            for name, (backbone, _, _) in backbones.items():
                times[name].append(run_round(backbone, tokens))
        for name, (_, report, size) in backbones.items():
            read, token = (min(column) for column in zip(*times[name], strict=True))
            bits = report.bits_per_weight
            row = {"type": name, "bits_per_weight": bits, "bytes": size, "tokens_per_second": 1 / token}
            print(json.dumps(row | {"prompt_seconds": read}))


if __name__ == "__main__":
    typer.run(main)
