"""Size and speed of a language model in several precisions, in turns in one process.

    python benchmarks/backbones.py BACKBONE.gguf [--types f16,q8_0,q4_0,iq4_nl,q4_k_m] [--rounds 3]
    python benchmarks/backbones.py BACKBONE.gguf --types q4_0,q4_0-pure --genai FOLDER

The GGUF file is one in floats. Each precision reads a prompt of random visual embeddings and decodes 24
tokens. Prints a line of JSON each: true bits per weight, bytes, tokens per second, seconds of the prefill; of
the fastest round. FOLDER is the same model by ``python -m onnxruntime_genai.models.builder``; it gets as many
tokens of text.
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


class GenAi:
    """A model folder of onnxruntime-genai."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        import onnxruntime_genai

        self.api, config = onnxruntime_genai, onnxruntime_genai.Config(str(folder))
        session = {"intra_op_num_threads": threads or 0}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)

    def run_round(self, tokens: int) -> tuple[float, float]:
        """As :func:`run_round`; the prefill includes the first token."""
        length = tokens + 4 + TOKENS + 8
        parameters = self.api.GeneratorParams(self.model)
        parameters.set_search_options(max_length=length, min_length=length)
        generator = self.api.Generator(self.model, parameters)
        started = time.perf_counter()
        generator.append_tokens(np.arange(100, 104 + tokens, dtype=np.int32))
        generator.generate_next_token()
        read = time.perf_counter()
        for _ in range(2):
            generator.generate_next_token()
        begun = time.perf_counter()
        for _ in range(TOKENS):
            generator.generate_next_token()
        return read - started, (time.perf_counter() - begun) / TOKENS


def main(
    gguf: Path,
    types: str = "f16,q8_0,q4_0,iq4_nl,q4_k_m",
    tokens: int = 730,
    rounds: int = 3,
    threads: int | None = None,
    genai: Path | None = None,
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
        other = GenAi(genai, threads) if genai else None
        other_times = []
        for _ in range(rounds):
            for name, (backbone, _, _) in backbones.items():
                times[name].append(run_round(backbone, tokens))
            if other:
                other_times.append(other.run_round(tokens))
        for name, (_, report, size) in backbones.items():
            read, token = (min(column) for column in zip(*times[name], strict=True))
            bits = report.bits_per_weight
            row = {"type": name, "bits_per_weight": bits, "bytes": size, "tokens_per_second": 1 / token}
            print(json.dumps(row | {"prompt_seconds": read}))
        if genai:
            read, token = (min(column) for column in zip(*other_times, strict=True))
            size = sum(path.stat().st_size for path in genai.glob("*.onnx*"))
            row = {"type": "onnxruntime-genai", "bytes": size, "tokens_per_second": 1 / token}
            print(json.dumps(row | {"prompt_seconds": read}))


if __name__ == "__main__":
    typer.run(main)
