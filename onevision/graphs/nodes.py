"""ONNX nodes and initializers in the making; values are called by their names.

In: operators and arrays. Out: a graph file, and beside it ``<name>.data`` with the matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from onevision.files import disk_space, scratch_folder

if TYPE_CHECKING:
    import onnx

# vision.onnx
PIXELS = "pixel_values"  # float32 [tiles, 3, S, S]
FEATURES = "image_features"  # float32 [tiles, P, H]
PRECISION = "onevision.precision"  # key of its metadata: fp32 or fp16

# prefill.onnx
EMBEDDINGS = "inputs_embeds"  # float32 [1, n, H]
SEQUENCE_LENGTHS = "seqlens_k"  # int32 [1], positions with this chunk, less one
TOTAL_LENGTH = "total_sequence_length"  # int32 [1], positions with this chunk
#: Keys or values ("key", "value") of a layer, float32 [1, kv_heads, positions, head_dim].
PAST, PRESENT = "past_{}.{}", "present_{}.{}"


CONTRIB = "com.microsoft"  # domain of ONNX Runtime's own operators

_OPSET = 21  # QuantizeLinear with a scale per block
_IR_VERSION = 10
_PAGE = 4096  # each matrix starts on a page, to be mapped


def write_graph(path: Path, needed: int, build: Callable[[BinaryIO, str], onnx.ModelProto]) -> None:
    """Write a graph and its data file; a failure leaves older files as they were.

    Args:
        path: The ONNX file to create or replace.
        needed: Bytes of all matrices.
        build: Makes the model, given the open data file and its name.

    Raises:
        ExportError: The disk is full.
    """
    data_path = path.with_name(f"{path.name}.data")
    with disk_space(path.absolute().parent, needed), scratch_folder(path) as scratch:
        part, data_part = scratch / path.name, scratch / data_path.name
        with data_part.open("wb") as data:
            model = build(data, data_path.name)
        part.write_bytes(model.SerializeToString(deterministic=True))
        data_part.replace(data_path)
        part.replace(path)


def float_value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A float32 input or output; without a shape, of any rank."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or None)


class Nodes:
    """Grows node by node.

    Attributes:
        nodes: In the order in which they run.
        initializers: Vectors with their values, matrices with their places in the data file.

    Args:
        data: The data file.
        location: Its name, as the graph will look for it.
    """

    def __init__(self, data: BinaryIO, location: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._data, self._location = data, location
        self._constants: set[str] = set()
        self._numbers = count()

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        properties: Mapping[str, str] | None = None,
    ) -> onnx.ModelProto:
        """The finished model; ``properties`` become its metadata."""
        from onnx import helper

        model = helper.make_model(
            helper.make_graph(self.nodes, name, inputs, outputs, self.initializers),
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)],
            ir_version=_IR_VERSION,
            producer_name="onevision",
        )
        helper.set_model_props(model, dict(properties or {}))
        return model

    def add(
        self,
        op: str,
        *inputs: str,
        output: str | None = None,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401
    ) -> str:
        """A node of one output, which has the node's name."""
        from onnx import helper

        output = output or f"{op}.{next(self._numbers)}"
        self.nodes.append(helper.make_node(op, inputs, [output], output, domain=domain, **attributes))
        return output

    def add_many(self, op: str, x: str, *, outputs: int, **attributes: Any) -> tuple[str, ...]:  # noqa: ANN401
        """A node of several outputs."""
        from onnx import helper

        stem = f"{op}.{next(self._numbers)}"
        names = tuple(f"{stem}.{index}" for index in range(outputs))
        self.nodes.append(helper.make_node(op, [x], names, stem, **attributes))
        return names

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"float32 {value:.9g}", np.array(value, np.float32))

    def byte(self, value: int) -> str:
        """A uint8 scalar."""
        return self.constant(f"uint8 {value}", np.array(value, np.uint8))

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        return self.constant(f"int64 {values}", np.array(values, np.int64))

    def has(self, name: str) -> bool:
        """Whether there is a constant of this name."""
        return name in self._constants

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """An initializer; a second one of the same name is assumed to be equal."""
        from onnx import TensorProto, helper, numpy_helper

        if name in self._constants:
            return name
        self._constants.add(name)
        if array.ndim < 2:
            self.initializers.append(numpy_helper.from_array(array, name))
            return name
        self._data.write(bytes(-self._data.tell() % _PAGE))
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self._location, "offset": self._data.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(np.ascontiguousarray(array).data)
        self.initializers.append(tensor)
        return name
