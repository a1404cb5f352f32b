"""The prefill graph: embeddings of a prompt to the keys and values of every layer, in ONNX Runtime.

In: float32 [n, H], in parts. Out: :class:`KeysValues`. The prompt goes through in chunks, which keeps what a
layer computes small; keys and values are written in their places as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import BundleError, GenerationError
from onevision.graphs.nodes import EMBEDDINGS, PAST, PRESENT, SEQUENCE_LENGTHS, TOTAL_LENGTH
from onevision.native.device import default_threads, l2_cache_bytes
from onevision.native.ort import EXPORT_HINT, first_line, open_session, ort_errors


def chunk_tokens(threads: int) -> int:
    """Tokens per call of the graph: as few as keep all threads busy.

    ONNX Runtime's attention has a task for each head and block of queries: 14 a layer for 128 tokens of the
    0.5b. With two threads, 256 tokens are 3 % faster and take 30 MB more; more threads were not measured.
    Without flash attention (see :func:`~onevision.native.device.l2_cache_bytes`) the scores of a whole chunk
    are held, heads · chunk · prompt floats, so that it stays small.
    """
    if threads <= 4 or l2_cache_bytes() == 0:
        return 128
    return 256 if threads <= 7 else 512


@dataclass(frozen=True, eq=False)
class KeysValues:
    """Keys (after RoPE) and values by layer, float32 [kv_heads, n, head_dim] each."""

    keys: list[npt.NDArray[np.float32]]
    values: list[npt.NDArray[np.float32]]


class PrefillGraph:
    """A session of a bundle's ``prefill.onnx``, on the CPU. Close it to give its memory back.

    Attributes:
        layers: Layers of the backbone.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        hidden: H, width of an embedding.

    Args:
        path: The ONNX file; its weights lie beside it in ``prefill.onnx.data``.
        threads: CPU threads; None for all cores that this process may use.
        chunk: Tokens per call; None for :func:`chunk_tokens`.

    Raises:
        BundleError: A file is missing or damaged, or is another model.
    """

    def __init__(self, path: Path, *, threads: int | None = None, chunk: int | None = None) -> None:
        threads = threads or default_threads()
        self._session, _, _ = open_session(path, "cpu", threads, "the prefill graph")
        self._chunk = chunk or chunk_tokens(threads)
        self.layers, self.kv_heads, self.head_dim, self.hidden = _sizes(self._session, path)

    def run(
        self, parts: Sequence[npt.NDArray[np.float32]], on_chunk: Callable[[int], None] | None = None
    ) -> KeysValues:
        """Keys and values of a prompt, from its first token on.

        Args:
            parts: Embeddings in order, float32 [n, H] each.
            on_chunk: Called after each chunk, with the number of tokens done.

        Raises:
            GenerationError: ONNX Runtime refused the work, or this is closed.
        """
        if self._session is None:
            raise GenerationError("the prefill graph is closed")
        total = sum(map(len, parts))
        shape = (1, self.kv_heads, total, self.head_dim)
        # Input and output are the same memory: the graph then adds to it, and copies nothing.
        buffers = {
            (part, layer): np.zeros(shape, np.float32)
            for layer in range(self.layers)
            for part in ("key", "value")
        }
        binding = self._session.io_binding()
        for place, buffer in buffers.items():
            where = ("cpu", 0, np.float32, shape, buffer.ctypes.data)
            binding.bind_input(PAST.format(*place), *where)
            binding.bind_output(PRESENT.format(*place), *where)
        done = 0
        for chunk in _cut(parts, self._chunk):
            done += len(chunk)
            binding.bind_cpu_input(EMBEDDINGS, chunk[None])
            binding.bind_cpu_input(SEQUENCE_LENGTHS, np.array([done - 1], np.int32))
            binding.bind_cpu_input(TOTAL_LENGTH, np.array([done], np.int32))
            try:
                self._session.run_with_iobinding(binding)
            except ort_errors() as error:
                raise GenerationError(
                    f"onnxruntime could not prefill {total:,} tokens: {first_line(error)}",
                    hint="free some memory, or use --prefill llama",
                ) from error
            if on_chunk:
                on_chunk(done)
        keys, values = (
            [buffers[part, layer][0] for layer in range(self.layers)] for part in ("key", "value")
        )
        return KeysValues(keys, values)

    def close(self) -> None:
        """Free the session; calling it again does nothing."""
        self._session = None


def _cut(parts: Sequence[npt.NDArray[np.float32]], size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Chunks of ``size`` rows; one chunk is copied at a time, never all rows at once."""
    waiting: list[npt.NDArray[np.float32]] = []
    room = size
    for part in parts:
        rest = part
        while len(rest) >= room:
            yield np.concatenate([*waiting, rest[:room]], dtype=np.float32)
            waiting, rest, room = [], rest[room:], size
        waiting.append(rest)
        room -= len(rest)
    if room < size:
        yield np.concatenate(waiting, dtype=np.float32)


def _sizes(session: Any, path: Path) -> tuple[int, int, int, int]:  # noqa: ANN401
    """Layers, KV heads, head width and H of a graph with this module's inputs and outputs.

    Raises:
        BundleError: It has others.
    """
    inputs = {end.name: end.shape for end in session.get_inputs()}
    outputs = {end.name for end in session.get_outputs()}
    layers = len(outputs) // 2
    places = [(part, layer) for layer in range(layers) for part in ("key", "value")]
    first = inputs.get(PAST.format("key", 0), [])
    caches = {PAST.format(*place) for place in places}
    if (
        layers
        and inputs.keys() == {EMBEDDINGS, SEQUENCE_LENGTHS, TOTAL_LENGTH, *caches}
        and outputs == {PRESENT.format(*place) for place in places}
        and len(first) == 4
        and len(inputs[EMBEDDINGS]) == 3
    ):
        sizes = (first[1], first[3], inputs[EMBEDDINGS][2])
        if all(isinstance(size, int) for size in sizes):
            return (layers, *sizes)
    raise BundleError(f"{path} is no prefill graph of this package", hint=EXPORT_HINT)
