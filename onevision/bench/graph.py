"""An ONNX graph of one product, written without the onnx package, which the base install does not have.

A model is a protobuf message, and one of a single node needs two of its wire types. Field numbers are those
of ``onnx.proto``, where they never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

FACTOR, PRODUCT = "factor", "product"

#: Values of ``onnx.TensorProto.DataType``.
FLOAT, UINT8, INT8, INT32, FLOAT16, BFLOAT16 = 1, 2, 3, 6, 10, 16

_IR_VERSION, _OPSET = 8, 13  # the first with a MatMul of bfloat16
_WEIGHT = "weight"
_VARINT, _BYTES = 0, 2  # wire types


def product_model(
    operator: str, weight: npt.NDArray[Any], rows: int, *, kinds: tuple[int, int, int]
) -> bytes:
    """``product [rows, N] = operator(factor [rows, K], weight [K, N])`` as a serialised ModelProto.

    The weight is a constant, so that an engine can pack it once, as it packs a model's.

    Args:
        operator: An operator of two matrices: ``MatMul``, ``MatMulInteger``.
        weight: [K, N], in any type that has the size of its kind: bfloat16 comes as uint16.
        rows: Of the factor.
        kinds: Data types of factor, weight and product.
    """
    inner, columns = weight.shape
    factor_kind, weight_kind, product_kind = kinds
    node = _text(1, FACTOR) + _text(1, _WEIGHT) + _text(2, PRODUCT) + _text(4, operator)
    dims = _integer(1, inner) + _integer(1, columns)
    initializer = dims + _integer(2, weight_kind) + _text(8, _WEIGHT) + _bytes(9, weight.tobytes())
    graph = (
        _bytes(1, node)
        + _text(2, "one product")
        + _bytes(5, initializer)
        + _bytes(11, _value(FACTOR, factor_kind, rows, inner))
        + _bytes(12, _value(PRODUCT, product_kind, rows, columns))
    )
    return _integer(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _integer(2, _OPSET))


def _value(name: str, kind: int, *shape: int) -> bytes:
    """A ValueInfoProto: a tensor of known shape."""
    dims = b"".join(_bytes(1, _integer(1, size)) for size in shape)
    tensor = _integer(1, kind) + _bytes(2, dims)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)
