"""ONNX nodes and initializers in the making; values are called by their names.

In: operators and arrays. Out: the lists that a graph is made of, and a data file with the matrices.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import BinaryIO

    import numpy.typing as npt
    import onnx

CONTRIB = "com.microsoft"  # domain of ONNX Runtime's own operators

_PAGE = 4096  # each matrix starts on one, to be mapped


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
        """An initializer; a second one of the same name is taken to be the same."""
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
