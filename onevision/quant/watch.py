"""Tiles through a graph with additional outputs.

In: an encoder, a plan and pixel values. Out: ranges of activations with the image features, or the errors of
single matmuls. The graph is a file in a scratch folder, as large as the encoder in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import QuantError
from onevision.files import scratch_folder
from onevision.graphs.names import FEATURES, PIXELS
from onevision.graphs.siglip import EncoderPlan, Siglip, Watch, write_siglip
from onevision.native.device import default_threads
from onevision.progress import Advance
from onevision.quant.smooth import Ranges

Array = npt.NDArray[np.float32]


def watch_ranges(
    siglip: Siglip, tiles: Array, folder: Path, threads: int | None, advance: Advance | None = None
) -> tuple[dict[str, Ranges], Array]:
    """Ranges by name (see :func:`~onevision.graphs.siglip.write_siglip`), and image features [T, P, H].

    Args:
        siglip: The encoder, computed in fp32.
        tiles: Pixel values, float32 [T, 3, S, S].
        folder: Where a scratch folder may be created.
        threads: CPU threads; None for all cores.
        advance: Receives the fraction of the tiles that is done.

    Raises:
        QuantError: Activations or features are not finite.
    """
    runs = []
    for done, outputs in enumerate(_run(siglip, EncoderPlan(), "ranges", tiles, folder, threads), 1):
        runs.append(outputs)
        if advance:
            advance(done / len(tiles))
    seen = {name: np.stack([outputs[name] for outputs in runs]) for name in runs[0]}  # [T, channels] each
    if not all(np.isfinite(values).all() for values in seen.values()):
        raise QuantError(
            "activations or image features of the encoder are not finite",
            hint="check the bundle with: onevision verify",
        )
    features = seen.pop(FEATURES)[:, 0]
    ranges = {}
    for name in dict.fromkeys(name.rpartition(":")[0] for name in seen):
        low, high, total, squares = (seen[f"{name}:{kind}"] for kind in ("min", "max", "sum", "squares"))
        ranges[name] = Ranges.of_tiles(low, high, total, squares, siglip.shape.patches)
    return ranges, features


def watch_errors(
    siglip: Siglip, plan: EncoderPlan, tiles: Array, folder: Path, threads: int | None
) -> dict[str, float]:
    """Sums of squares over all tiles, by the names of :func:`~onevision.graphs.siglip.write_siglip`."""
    sums: dict[str, float] = {}
    for outputs in _run(siglip, plan, "errors", tiles, folder, threads):
        del outputs[FEATURES]
        for name, value in outputs.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def _run(
    siglip: Siglip, plan: EncoderPlan, watch: Watch, tiles: Array, folder: Path, threads: int | None
) -> Iterator[dict[str, Any]]:
    """All outputs by name, tile by tile."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # maps weights instead of copying
    with scratch_folder(folder / "watched") as scratch:
        path = scratch / "watched.onnx"
        write_siglip(path, siglip, plan=plan, watch=watch)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for tile in tiles:
            yield dict(zip(names, session.run(None, {PIXELS: tile[None]}), strict=True))
        del session  # unmaps the files, which can then be deleted on Windows too
