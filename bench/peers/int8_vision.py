"""A tile through the vision encoder in fp32, and in int8 by three quantizers, in one process.

    pip install openvino nncf
    python bench/peers/int8_vision.py fp32/vision.onnx int8/vision.onnx --threads 2

ONNX Runtime's own ``quantize_dynamic`` and OpenVINO get the fp32 graph. ``quantize_dynamic`` is run
with one scale per weight matrix, its default, and with one per channel. OpenVINO's graph is quantized by NNCF
(activations per tensor, weights per channel, SmoothQuant on, as its documentation has it for transformers) on
the same tiles, and computes the rest in bf16 where the CPU can. Runs are interleaved, so that other load on
the machine affects all of them alike. Without OpenVINO its row is missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onevision.graphs.names import PIXELS
from onevision.proof.reference import synthetic_image
from onevision.quant.gates import compare_features
from onevision.runtime.anyres import normalize
from onevision.runtime.vision import VisionEncoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[np.float32]
    Encode = Callable[[Array], Array]

CALIBRATION_TILES = 8


def synthetic_tiles(side: int, number: int) -> Array:
    """Pixel values of generated images, float32 [number, 3, side, side]."""
    levels = np.stack([synthetic_image(side, side, seed=seed) for seed in range(number)])
    return normalize(levels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def dynamic_int8(source: Path, target: Path, *, per_channel: bool) -> None:
    """Quantize an fp32 graph by ONNX Runtime: int8 weights, activations' scales at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def openvino_int8(path: Path, tiles: Array, threads: int) -> Encode:
    """OpenVINO's int8 encoder, from an fp32 graph and calibration tiles."""
    import nncf
    import openvino

    model = nncf.quantize(
        openvino.Core().read_model(path),
        nncf.Dataset([{PIXELS: tile[None]} for tile in tiles]),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
    )
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(model, "CPU", options)
    return lambda pixels: np.asarray(compiled({PIXELS: pixels})[0])


def main() -> None:
    """Print a table: median and minimum milliseconds, times fp32, cosine of the worst tile with fp32."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fp32", type=Path, help="vision.onnx of an fp32 bundle")
    parser.add_argument("int8", type=Path, help="vision.onnx of an int8 bundle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--tiles", type=int, default=4, help="tiles whose features are compared")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        graphs = {"fp32": arguments.fp32, "onevision int8": arguments.int8}
        for name, per_channel in (("dynamic, tensor", False), ("dynamic, channel", True)):
            graphs[name] = scratch / name / "vision.onnx"
            graphs[name].parent.mkdir()
            dynamic_int8(arguments.fp32, graphs[name], per_channel=per_channel)
        encoders = {
            name: stack.enter_context(closing(VisionEncoder(path, device="cpu", threads=arguments.threads)))
            for name, path in graphs.items()
        }
        side = encoders["fp32"].image_size
        calibration = synthetic_tiles(side, CALIBRATION_TILES)
        tiles = synthetic_tiles(side, CALIBRATION_TILES + arguments.tiles)[CALIBRATION_TILES:]
        runs: dict[str, Encode] = {name: encoder.encode for name, encoder in encoders.items()}
        if find_spec("openvino") and find_spec("nncf"):
            runs["OpenVINO int8"] = openvino_int8(arguments.fp32, calibration, arguments.threads)
        features = {name: np.concatenate([run(tile[None]) for tile in tiles]) for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.runs):
            for name, run in runs.items():
                start = time.perf_counter()
                run(tiles[:1])
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["fp32"])
    sys.stdout.write(f"{'':16} {'median ms':>9} {'min ms':>9} {'x fp32':>7} {'cosine':>9}\n")
    for name, times in seconds.items():
        median, cosine = statistics.median(times), compare_features(features[name], features["fp32"]).cosine
        sys.stdout.write(
            f"{name:16} {median * 1e3:9.1f} {min(times) * 1e3:9.1f} {median / base:7.3f} {cosine or 0:9.6f}\n"
        )


if __name__ == "__main__":
    main()
