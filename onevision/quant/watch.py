"""Tiles through a graph that tells what happens inside it.

In: a tower, a plan and pixel values. Out: ranges of activations with the image features, or the errors of
single products. The graph is a file in a scratch folder, as large as the tower in fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.errors import QuantError
from onevision.graphs.names import FEATURES, PIXELS
from onevision.graphs.siglip import Plan, write_encoder
from onevision.native.device import default_threads
from onevision.quant.smooth import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from onevision.graphs.siglip import Watch
    from onevision.graphs.tower import Tower

    Array = npt.NDArray[np.float32]
    from onevision.progress import Advance


def watch_ranges(
    tower: Tower, tiles: Array, scratch: Path, threads: int | None, advance: Advance | None = None
) -> tuple[dict[str, Ranges], Array]:
    """Ranges by name (see :func:`~onevision.graphs.siglip.write_encoder`), and image features [T, P, H].

    Args:
        tower: Computed in fp32.
        tiles: Pixel values, float32 [T, 3, S, S].
        scratch: An empty folder.
        threads: CPU threads; None for all cores.
        advance: Told the fraction of the tiles that are done.

    Raises:
        QuantError: Something is not finite.
    """
    runs = []
    for done, outputs in enumerate(_run(tower, Plan(), "ranges", tiles, scratch, threads), 1):
        runs.append(outputs)
        if advance:
            advance(done / len(tiles))
    seen = {name: np.stack([outputs[name] for outputs in runs]) for name in runs[0]}  # [T, channels] each
    if not all(np.isfinite(values).all() for values in seen.values()):
        raise QuantError(
            f"activations or image features of {tower.path} are not finite",
            hint="check the bundle with: onevision verify",
        )
    features = seen.pop(FEATURES)[:, 0]
    ranges = {}
    for name in dict.fromkeys(name.rpartition(":")[0] for name in seen):
        low, high, total, squares = (seen[f"{name}:{kind}"] for kind in ("min", "max", "sum", "squares"))
        ranges[name] = Ranges.of_tiles(low, high, total, squares, tower.patches)
    return ranges, features


def watch_errors(
    tower: Tower, plan: Plan, tiles: Array, scratch: Path, threads: int | None
) -> dict[str, float]:
    """What the output of each module, and the stream after each block, hold: sums of squares over all tiles.

    Keys are ``<product>/<module>:error`` and ``:signal``, and ``<product>:residual``.
    """
    sums: dict[str, float] = {}
    for outputs in _run(tower, plan, "errors", tiles, scratch, threads):
        del outputs[FEATURES]
        for name, value in outputs.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def _run(
    tower: Tower, plan: Plan, watch: Watch, tiles: Array, scratch: Path, threads: int | None
) -> Iterator[dict[str, Any]]:
    """All outputs by name, tile by tile."""
    import onnxruntime

    path = scratch / "watched.onnx"
    write_encoder(tower, plan, path, watch=watch)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")  # maps weights instead of copying
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for tile in tiles:
        yield dict(zip(names, session.run(None, {PIXELS: tile[None]}), strict=True))
