"""A tile through the vision encoder: ours in fp32 and int8, other int8 encoders, in turns in one process.

    python benchmarks/encoder.py FLOATS INT8 [--threads 2] [--runs 7] [--tiles 8]

FLOATS and INT8 are bundles. ONNX Runtime's ``quantize_dynamic`` quantizes the fp32 graph with one scale per
matrix (its default) and with one per channel; OpenVINO with NNCF (``pip install openvino nncf``).
Prints median and min milliseconds per tile, the cosine of the worst tile, and the peak memory of a process
that encodes one tile (Linux and macOS).
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, redirect_stdout
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from onevision.bench.peers import TargetSetup
from onevision.bench.report import BenchTable
from onevision.bench.scenarios import photograph
from onevision.bundle import VISION, open_bundle
from onevision.quant.gates import compare_features
from onevision.runtime.anyres import normalize
from onevision.runtime.vision import VisionEncoder

Encode = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

ONE_TILE = """
import sys, numpy, pathlib, onevision.runtime.vision as vision
encoder = vision.VisionEncoder(pathlib.Path(sys.argv[1]), device="cpu", threads=int(sys.argv[2]))
encoder.encode(numpy.zeros((1, 3, encoder.image_size, encoder.image_size), "float32"))
"""


def peak_megabytes(bundle: Path, threads: int) -> float:
    """Peak memory of a process that encodes one tile; the largest child of this process so far."""
    subprocess.run([sys.executable, "-c", ONE_TILE, bundle / VISION, str(threads)], check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6


def dynamic_int8(bundle: Path, folder: Path, *, per_channel: bool) -> Path:
    """The fp32 graph of a bundle in ONNX Runtime's own int8: its path in an empty folder."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        bundle / VISION,
        folder / VISION,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        # Shapes end at the fused attention, an operator of ONNX Runtime's own.
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    return folder / VISION


def openvino_int8(bundle: Path, threads: int) -> Encode:
    """OpenVINO's int8 encoder, from the fp32 graph of a bundle."""
    from onevision.bench.peers.openvino import OpenVinoTarget

    setup = TargetSetup(bundle, None, "cpu", threads)
    with redirect_stdout(sys.stderr):  # NNCF shows progress
        return OpenVinoTarget("openvino-int8", open_bundle(bundle), setup).features


def pixels(side: int, count: int) -> npt.NDArray[np.float32]:
    """Pixel values [count, 3, side, side] of generated photos."""
    photos = [Image.open(BytesIO(photograph((side, side), seed))) for seed in range(count)]
    return normalize(np.stack([np.asarray(photo) for photo in photos]), (0.5,) * 3, (0.5,) * 3)


def main(floats: Path, int8: Path, threads: int = 2, runs: int = 7, tiles: int = 8) -> None:
    """Measure, and print a Markdown table."""
    paths = {"onevision int8": int8, "onevision fp32": floats}  # the smaller first: peaks only grow
    peaks = {name: peak_megabytes(path, threads) for name, path in paths.items()}
    with ExitStack() as stack:
        encoders: dict[str, Encode] = {}
        graphs = {name: path / VISION for name, path in sorted(paths.items())}
        for name, per_channel in (("matrix", False), ("channel", True)):
            folder = Path(stack.enter_context(TemporaryDirectory()))
            graphs[f"dynamic int8 per {name}"] = dynamic_int8(floats, folder, per_channel=per_channel)
        for name, graph in graphs.items():
            encoder = VisionEncoder(graph, device="cpu", threads=threads)
            encoders[name] = stack.enter_context(closing(encoder)).encode
        if find_spec("openvino") and find_spec("nncf"):
            encoders["OpenVINO int8"] = openvino_int8(floats, threads)
        inputs = np.split(pixels(encoder.image_size, tiles), tiles)
        features = {name: np.concatenate([run(one) for one in inputs]) for name, run in encoders.items()}
        seconds: dict[str, list[float]] = {name: [] for name in encoders}
        for _ in range(runs):
            for name, run in encoders.items():
                started = time.perf_counter()
                run(inputs[0])
                seconds[name].append(time.perf_counter() - started)
    base, exact, rows = median(seconds["onevision fp32"]), features["onevision fp32"], []
    for name, times in seconds.items():
        cosine, peak = compare_features(features[name], exact).cosine or 0.0, peaks.get(name)
        cells = (f"{median(times) * 1e3:.1f}", f"{min(times) * 1e3:.1f}", f"{median(times) / base:.3f}")
        rows.append((name, *cells, f"{cosine:.5f}", f"{peak:,.0f}" if peak else "–"))
    columns = ("encoder", "ms per tile, median", "min", "x fp32", "cosine of the worst tile", "peak MB")
    print(BenchTable(columns, tuple(rows)).markdown())


if __name__ == "__main__":
    typer.run(main)
