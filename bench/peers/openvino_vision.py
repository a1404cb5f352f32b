"""A tile through the vision encoder: ONNX Runtime in fp32 and int8, and OpenVINO in int8, in one process.

    pip install openvino nncf
    python bench/peers/openvino_vision.py fp32/vision.onnx int8/vision.onnx --threads 2

OpenVINO gets the fp32 graph, quantised by NNCF (activations per tensor, weights per channel, SmoothQuant on,
as its documentation has it for transformers) on the same tiles, and computes the rest in bf16 where the CPU
can. Runs are interleaved: what else the machine does hits all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onevision.proof.reference import synthetic_image
from onevision.quant.gates import compare_features
from onevision.runtime.anyres import normalize
from onevision.runtime.vision import INPUT, VisionEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[np.float32]
    Encode = Callable[[Array], Array]

CALIBRATION_TILES = 8


def pictures(side: int, number: int) -> Array:
    """Pixel values of generated pictures, float32 [number, 3, side, side]."""
    levels = np.stack([synthetic_image(side, side, seed=seed) for seed in range(number)])
    return normalize(levels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def openvino_int8(path: Path, tiles: Array, threads: int) -> Encode:
    """OpenVINO's int8 encoder, made of an fp32 graph and calibration tiles."""
    import nncf
    import openvino

    model = nncf.quantize(
        openvino.Core().read_model(path),
        nncf.Dataset([{INPUT: tile[None]} for tile in tiles]),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
    )
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(model, "CPU", options)
    return lambda pixels: np.asarray(compiled({INPUT: pixels})[0])


def main() -> None:
    """Print a table: median and least milliseconds, times fp32, cosine with fp32."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fp32", type=Path, help="vision.onnx of an fp32 bundle")
    parser.add_argument("int8", type=Path, help="vision.onnx of an int8 bundle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        encoders = {
            name: stack.enter_context(closing(VisionEncoder(path, device="cpu", threads=arguments.threads)))
            for name, path in {"fp32": arguments.fp32, "int8": arguments.int8}.items()
        }
        side = encoders["fp32"].image_size
        runs: dict[str, Encode] = {name: encoder.encode for name, encoder in encoders.items()}
        if find_spec("openvino") and find_spec("nncf"):
            calibration = pictures(side, CALIBRATION_TILES)
            runs["OpenVINO int8"] = openvino_int8(arguments.fp32, calibration, arguments.threads)
        else:
            sys.stderr.write("without OpenVINO: pip install openvino nncf\n")
        tile = pictures(side, CALIBRATION_TILES + 1)[-1:]
        features = {name: run(tile) for name, run in runs.items()}  # and warm
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.runs):
            for name, run in runs.items():
                start = time.perf_counter()
                run(tile)
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["fp32"])
    sys.stdout.write(f"{'':14} {'median ms':>9} {'least ms':>9} {'x fp32':>7} {'cosine':>9}\n")
    for name, times in seconds.items():
        median, cosine = statistics.median(times), compare_features(features[name], features["fp32"]).cosine
        sys.stdout.write(
            f"{name:14} {median * 1e3:9.0f} {min(times) * 1e3:9.0f} {median / base:7.3f} {cosine or 0:9.6f}\n"
        )


if __name__ == "__main__":
    main()
