"""A bundle's vision encoder, read back: sizes, and weights by their names in the checkpoint.

In: ``vision.onnx`` and its data file in fp32 or fp16, as :mod:`onevision.graphs.siglip` writes them. Out: a
:class:`~onevision.graphs.siglip.Siglip` that maps a matrix when it is read; the checkpoint is not needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onevision.errors import QuantError
from onevision.graphs.siglip import POSITIONS, SIZES, Siglip
from onevision.models.shapes import VisionConfig
from onevision.typed import build

if TYPE_CHECKING:
    import onnx


def read_siglip(path: Path) -> Siglip:
    """Read the graph, and leave the matrices where they are.

    Raises:
        QuantError: No file, not an ONNX file, or another graph.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise QuantError(f"cannot read {path}: {error}", hint="copy or export the bundle again") from error
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    try:
        sizes = json.loads(next(entry.value for entry in model.metadata_props if entry.key == SIZES))
        shape, features = build(VisionConfig, sizes), int(sizes["features"])
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        raise _not_ours(path) from error

    def tensor(name: str) -> npt.NDArray[np.float32]:
        """A weight in float32, mapped from the file where it is stored so."""
        if name not in tensors:
            raise _not_ours(path)
        stored = _stored(tensors[name], path)
        if not np.isfinite(stored).all():
            raise QuantError(
                f"{path} is damaged: {name} is not finite", hint="fetch the checkpoint and export again"
            )
        weight = stored.astype(np.float32, copy=False)
        # Matrices that a graph multiplies by are stored [in, out].
        return weight.T if weight.ndim == 2 and name != POSITIONS else weight

    return Siglip(shape, features, tensor)


def _stored(tensor: onnx.TensorProto, path: Path) -> npt.NDArray[Any]:
    """An initializer, mapped from the data file where it lies there."""
    from onnx import helper, numpy_helper

    if not tensor.external_data:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = path.with_name(place["location"])
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    try:
        return np.memmap(data, dtype, "r", int(place["offset"]), tuple(tensor.dims))
    except (OSError, ValueError) as error:
        raise QuantError(
            f"cannot read {tensor.name} from {data}: {error}", hint="copy or export the bundle again"
        ) from error


def _not_ours(path: Path) -> QuantError:
    return QuantError(
        f"{path} is not a vision encoder in fp32 or fp16 as this version exports it",
        hint="export the bundle again with --vision fp32 or fp16",
    )
