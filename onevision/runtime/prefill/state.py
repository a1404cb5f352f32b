"""KV import: the state of a llama.cpp sequence, read and written.

In: a state that the running library saved, and :class:`~onevision.runtime.prefill.graph.KeysValues`.
Out: a state that it accepts. The library promises no layout, so it is learned from a saved state: magic,
types, and whether the values are transposed, as they are without flash attention. A state is

* ``u32 magic, i32 sequence, u32 streams, u32 cells``, per cell ``i32 position, u32 sequences, i32 sequence``,
  and ``u32 transposed, u32 layers``;
* the keys of each layer: ``i32 type, u64 row bytes``, rows [cells, kv_heads · head_dim];
* the values of each layer: the same, or ``i32 type, u32 element bytes, u32 rows``, rows
  [kv_heads · head_dim, cells].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.runtime.prefill.graph import KeysValues

_HEAD, _LAYERS = struct.Struct("<IiII"), struct.Struct("<II")
_ROWS, _TURNED = struct.Struct("<iQ"), struct.Struct("<iII")
_TYPE = struct.Struct("<i")
_CELL_BYTES = 12

#: ggml's types of keys and values that are known here.
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


class LayoutError(Exception):
    """llama.cpp's states have an unknown layout."""


@dataclass(frozen=True)
class StateLayout:
    """Layout of the state of a context's only sequence.

    Attributes:
        magic: First number of a state.
        sequence: Number of the sequence.
        transposed: Whether the values are transposed.
        key_type: ggml's type of the keys.
        value_type: ggml's type of the values.
        layers: Layers of the backbone.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
    """

    magic: int
    sequence: int
    transposed: bool
    key_type: int
    value_type: int
    layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def learn(cls, state: bytes, *, layers: int, kv_heads: int, head_dim: int) -> StateLayout:
        """The layout of a state that the library saved after a few tokens.

        Raises:
            LayoutError: The state is not, byte for byte, what this layout would write.
        """
        try:
            magic, sequence, streams, cells = _HEAD.unpack_from(state)
            offset = _HEAD.size + cells * _CELL_BYTES
            transposed, found = _LAYERS.unpack_from(state, offset)
            (key_type,) = _TYPE.unpack_from(state, offset + _LAYERS.size)
            if streams != 1 or transposed > 1 or found != layers or key_type not in _TYPES:
                raise LayoutError(f"{streams} streams, {found} layers, keys of type {key_type}")
            key_bytes = _ROWS.size + cells * kv_heads * head_dim * _TYPES[key_type].itemsize
            (value_type,) = _TYPE.unpack_from(state, offset + _LAYERS.size + layers * key_bytes)
        except struct.error as error:
            raise LayoutError("a state that is too short") from error
        if value_type not in _TYPES:
            raise LayoutError(f"values of type {value_type}")
        layout = cls(magic, sequence, bool(transposed), key_type, value_type, layers, kv_heads, head_dim)
        if len(state) != layout.size(cells) or layout.pack(layout.unpack(state)).tobytes() != state:
            raise LayoutError("a state of another form")
        return layout

    def size(self, cells: int) -> int:
        """Bytes of the state of ``cells`` tokens."""
        key, value = (_TYPES[kind].itemsize for kind in (self.key_type, self.value_type))
        heads = _ROWS.size + (_TURNED if self.transposed else _ROWS).size
        per_layer = heads + cells * self.kv_heads * self.head_dim * (key + value)
        return _HEAD.size + cells * _CELL_BYTES + _LAYERS.size + self.layers * per_layer

    def pack(self, filled: KeysValues) -> npt.NDArray[np.uint8]:
        """The state of a sequence with these keys and values, from position 0 on.

        ``filled`` is emptied as it goes: a long prompt's would not fit twice.
        """
        cells = filled.keys[0].shape[1]
        state = np.empty(self.size(cells), np.uint8)
        _HEAD.pack_into(state.data, 0, self.magic, self.sequence, 1, cells)
        cell = np.ndarray((cells, 3), "<i4", state, _HEAD.size)
        cell[:, 0], cell[:, 1], cell[:, 2] = np.arange(cells), 1, self.sequence
        _LAYERS.pack_into(state.data, _HEAD.size + cells * _CELL_BYTES, self.transposed, self.layers)
        for number, (offset, head, rows) in enumerate(self._blocks(state, cells)):
            state[offset : offset + len(head)] = np.frombuffer(head, np.uint8)
            rows[...] = (filled.keys if number < self.layers else filled.values).pop(0)
        return state

    def unpack(self, state: bytes) -> KeysValues:
        """Keys and values of a state of this layout, as float32."""
        cells = _HEAD.unpack_from(state)[3]
        blocks = self._blocks(np.frombuffer(state, np.uint8), cells)
        arrays = [rows.astype(np.float32) for _, _, rows in blocks]
        return KeysValues(arrays[: self.layers], arrays[self.layers :])

    def _blocks(
        self, state: npt.NDArray[np.uint8], cells: int
    ) -> Iterator[tuple[int, bytes, npt.NDArray[Any]]]:
        """Of each layer's keys, then values: offset, header, and the rest [kv_heads, cells, head_dim]."""
        offset = _HEAD.size + cells * _CELL_BYTES + _LAYERS.size
        heads, width = (self.kv_heads, self.head_dim), self.kv_heads * self.head_dim
        keys, values = (self.key_type, False), (self.value_type, self.transposed)
        for kind, turned in (*[keys] * self.layers, *[values] * self.layers):
            item = _TYPES[kind]
            if turned:
                head, shape, order = _TURNED.pack(kind, item.itemsize, width), (*heads, cells), (0, 2, 1)
            else:
                head, shape, order = _ROWS.pack(kind, width * item.itemsize), (cells, *heads), (1, 0, 2)
            stored: npt.NDArray[Any] = np.ndarray(shape, item, state, offset + len(head))
            yield offset, head, stored.transpose(order)
            offset += len(head) + stored.nbytes
