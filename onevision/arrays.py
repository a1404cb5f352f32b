"""Arrays as NumPy writes them (``.npy``, version 1.0), read from bytes without evaluating their header."""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|](?:f[48]|[iu][1248]|U\d{1,8}))', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,12},? ?)*)\), \} *\n",
    re.DOTALL,
)


def parse_array(data: bytes) -> npt.NDArray[Any]:
    """An array of numbers or text from the contents of an ``.npy`` file; it is read-only.

    Raises:
        ValueError: Another form, or another length than the header gives.
    """
    if header := _HEADER.match(data):
        kind = np.dtype(header[1].decode())
        shape = tuple(map(int, re.findall(rb"\d+", header[2])))
        if prod(shape) * kind.itemsize == len(data) - header.end():
            return np.frombuffer(data, kind, offset=header.end()).reshape(shape)
    raise ValueError("it is not an array as NumPy writes it")
