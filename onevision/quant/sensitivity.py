"""Which matmuls cannot be int8: as few as possible, the most harmful first.

In: calibration tiles, which run through a graph with additional outputs: ranges of activations, or the errors
of single matmuls, side by side in one pass. Out: a list of upgrades to a finer precision, sorted by the harm
that each undoes, and the shortest beginning of that list with which the image features pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import QuantError
from onevision.files import scratch_folder
from onevision.graphs.kernels import MatmulPrecision
from onevision.graphs.nodes import FEATURES, PIXELS
from onevision.graphs.siglip import EncoderPlan, Siglip, Watch, modules, write_siglip
from onevision.native.device import default_threads
from onevision.progress import Advance
from onevision.quant.smooth import Ranges

_TINY = 1e-300  # instead of a division by zero
#: Largest share of the error that may remain with a scale per token; otherwise fp32 is next.
_WORTH_A_SCALE = 0.5


@dataclass(frozen=True)
class Upgrade:
    """A matmul in a finer precision.

    Attributes:
        matmul: Its name, see :func:`~onevision.graphs.siglip.matmuls`.
        precision: The finer precision.
        harm: Error in the precision before: relative error of its output, times the share of its block in the
            residual stream.
    """

    matmul: str
    precision: MatmulPrecision
    harm: float


def upgrades(errors: Mapping[str, float], matmuls: Iterable[str]) -> list[Upgrade]:
    """All upgrades, worst first: from ``int8`` to ``int8-token`` where that helps, and to fp32.

    Args:
        errors: Sums of squares, see :func:`~onevision.graphs.siglip.write_siglip`.
        matmuls: Names of those in int8.
    """
    found = []
    for matmul in matmuls:
        harm = _harm(errors, matmul, "int8")
        if matmul.endswith(".attention"):
            found.append(Upgrade(matmul, "fp32", harm))
            continue
        by_token = _harm(errors, matmul, "int8-token")
        if by_token <= _WORTH_A_SCALE * harm:
            found.append(Upgrade(matmul, "int8-token", harm))
            harm = by_token
        found.append(Upgrade(matmul, "fp32", harm))
    return sorted(found, key=lambda upgrade: -upgrade.harm)


def fewest(
    upgrades: Sequence[Upgrade], passes: Callable[[dict[str, MatmulPrecision]], bool]
) -> tuple[Upgrade, ...] | None:
    """The shortest beginning of ``upgrades`` that passes, the last one of each matmul; None if all do not.

    1, 2, 4, … of them are tried, then a bisection between the last two.

    Args:
        upgrades: Of :func:`upgrades`.
        passes: Measures the image features with matmuls at these precisions, the others in int8.
    """
    fails, good = 0, 1
    while not passes(_precisions(upgrades[:good])):
        if good >= len(upgrades):
            return None
        fails, good = good, min(2 * good, len(upgrades))
    while good - fails > 1:
        middle = (fails + good) // 2
        if passes(_precisions(upgrades[:middle])):
            good = middle
        else:
            fails = middle
    last = {upgrade.matmul: upgrade for upgrade in upgrades[:good]}
    return tuple(last.values())


def _precisions(upgrades: Iterable[Upgrade]) -> dict[str, MatmulPrecision]:
    return {upgrade.matmul: upgrade.precision for upgrade in upgrades}


def _harm(errors: Mapping[str, float], matmul: str, precision: MatmulPrecision) -> float:
    parts = ["attention"] if matmul.endswith(".attention") else modules(matmul)
    error = max(
        errors[f"{matmul}/{part}:{precision}"] / max(errors[f"{matmul}/{part}:fp32"], _TINY) for part in parts
    )
    layer, _, part = matmul.rpartition(".")
    if layer == "projector":
        return sqrt(error)
    # The output of a block's last matmul is added to the stream.
    last = f"{layer}.fc2" if part in {"fc1", "fc2"} else f"{layer}.out_proj"
    added = errors[f"{last}/{modules(last)[0]}:fp32"] / max(errors[f"{last}:residual"], _TINY)
    return sqrt(error * added)


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
