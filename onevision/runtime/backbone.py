"""The language model, in llama.cpp.

In: a prompt as parts of token ids and visual tokens (float32 [n, H]). Out: logits of the last position.

Visual tokens go in as ``llama_batch.embd``, which takes the place of the embedding look-up and nothing else;
positions and attention are those of text. Logits are computed for the last position only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp as api  # after native.llama, which sets its threads up
import numpy as np
import numpy.typing as npt

from onevision.errors import GenerationError, PromptError
from onevision.native.device import Device, default_threads
from onevision.native.llama import LlamaModel, call_apart, free_with, last_llama_error, offloads
from onevision.runtime.tokenizer import GgufTokenizer

#: Tokens per call of llama_decode. More are not faster on a CPU, and Ctrl-C waits for the end of a call.
CHUNK = 512
#: Contexts are made in multiples of this, so that one serves prompts of nearly the same length.
CONTEXT_STEP = 256


CacheType = Literal["f32", "f16"]


class Backbone:
    """A GGUF model and, from the first :meth:`start` on, a context with its KV cache.

    Native memory is freed with the last reference, or at :meth:`close`.

    Args:
        path: GGUF file.
        device: ``cpu``, ``cuda``, or ``auto``: every layer on the GPU where llama.cpp was built for one.
        threads: CPU threads; None for all cores that this process may use.
        cache_type: Type of the keys and values. ``f16`` halves the memory; ``f32`` is for exact work.
        flash_attention: Where llama.cpp has it. On a CPU it rounds queries to f16 and sums values in f16, an
            error that grows with the prompt: not for exact work.

    Attributes:
        tokenizer: Of the same file.
        hidden: H, width of an embedding.
        context_length: Positions that the model was trained for.
        offloaded: The layers run on a GPU.
        used: Positions filled in the KV cache.

    Raises:
        BundleError: The file cannot be loaded.
        DeviceError: ``cuda`` with a llama.cpp that was built without it.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        cache_type: CacheType = "f16",
        flash_attention: bool = True,
    ) -> None:
        self._context: Any = None
        self._capacity = 0
        self._observer: Any = None
        self.used = 0
        self.offloaded = offloads(device)
        self.threads = threads or default_threads()
        self.cache_type: CacheType = cache_type
        self.flash_attention = flash_attention
        self._model = LlamaModel(path, gpu_layers=-1 if self.offloaded else 0)
        self.tokenizer = GgufTokenizer(self._model)
        self.hidden = int(api.llama_model_n_embd(self._model.pointer))
        self.context_length = int(api.llama_model_n_ctx_train(self._model.pointer))

    @property
    def context(self) -> int:
        """The ``llama_context``, for the sampler."""
        return self._context  # type: ignore[no-any-return]

    def observe(self, callback: Any) -> None:  # noqa: ANN401
        """Have llama.cpp call back for the nodes of its graph (``cb_eval``), from the next :meth:`start` on.

        Args:
            callback: A ``ggml_backend_sched_eval_callback``, called on another thread; None to stop.
        """
        self._drop_context()
        self._observer = callback

    def start(self, positions: int) -> None:
        """Begin an empty sequence with room for ``positions`` tokens.

        Raises:
            PromptError: More than the model's context length.
            GenerationError: No memory for the KV cache, or the model is closed.
        """
        if self._model.pointer is None:
            raise GenerationError("the language model is closed")
        if positions > self.context_length:
            raise PromptError(
                f"{positions:,} tokens are more than the model's context of {self.context_length:,}"
            )
        if self._context is None or positions > self._capacity:
            self._drop_context()
            capacity = min(self.context_length, -(-positions // CONTEXT_STEP) * CONTEXT_STEP)
            self._context = self._new_context(capacity)
            self._free_context = free_with(self, api.llama_free, self._context)
            self._capacity = capacity
        api.llama_memory_clear(api.llama_get_memory(self._context), False)
        self.used = 0

    def _new_context(self, capacity: int) -> int:
        params = api.llama_context_default_params()
        params.n_ctx = capacity
        params.n_batch = params.n_ubatch = min(CHUNK, capacity)
        params.n_threads = params.n_threads_batch = self.threads
        cache = api.GGML_TYPE_F32 if self.cache_type == "f32" else api.GGML_TYPE_F16
        params.type_k = params.type_v = cache
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_AUTO if self.flash_attention else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.offload_kqv = self.offloaded
        params.no_perf = True
        if self._observer is not None:
            params.cb_eval = self._observer
        context = call_apart(api.llama_init_from_model, self._model.pointer, params)
        if not context:
            raise GenerationError(
                f"llama.cpp could not make a context of {capacity:,} tokens: {last_llama_error()}",
                hint="use fewer or smaller images, or free some memory",
            )
        return int(context)

    def prefill(
        self,
        parts: Sequence[Sequence[int] | npt.NDArray[np.float32]],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Add a prompt to the KV cache; the logits of its last position are then ready.

        Args:
            parts: Token ids, or embeddings float32 [n, H], in order.
            on_progress: Called after each chunk with its number of tokens.

        Raises:
            GenerationError: llama.cpp refused a batch.
        """
        chunks = [part[start : start + CHUNK] for part in parts for start in range(0, len(part), CHUNK)]
        for index, chunk in enumerate(chunks):
            self._decode(chunk, logits=index == len(chunks) - 1)
            if on_progress:
                on_progress(len(chunk))
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for work that was begun: a GPU may still be busy; a CPU is not."""
        if self._context is not None:
            api.llama_synchronize(self._context)

    def append(self, token: int) -> None:
        """Add one token; the logits after it are then ready."""
        self._decode((token,), logits=True)

    def _decode(self, chunk: Sequence[int] | npt.NDArray[np.float32], *, logits: bool) -> None:
        count = len(chunk)
        batch = api.llama_batch()  # positions and sequence ids left NULL: llama.cpp goes on where it was
        batch.n_tokens = count
        if isinstance(chunk, np.ndarray):
            embeddings = np.ascontiguousarray(chunk, dtype=np.float32)
            if embeddings.shape != (count, self.hidden):
                raise GenerationError(f"embeddings of shape {embeddings.shape}, not [n, {self.hidden}]")
            batch.embd = ctypes.cast(embeddings.ctypes.data, ctypes.POINTER(ctypes.c_float))  # type: ignore[assignment]
        else:
            batch.token = (api.llama_token * count)(*chunk)
        wanted = (ctypes.c_int8 * count)()
        wanted[count - 1] = int(logits)
        batch.logits = wanted
        if self._observer is None:
            status = api.llama_decode(self._context, batch)
        else:  # on this thread, a Ctrl-C that arrives in a callback would be lost
            status = call_apart(api.llama_decode, self._context, batch)
        if status != 0:
            reason = "the context is full" if status == 1 else last_llama_error() or f"status {status}"
            raise GenerationError(f"llama.cpp could not process {count} tokens: {reason}")
        self.used += count

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits of the last position, float32 [tokenizer.size]. A copy."""
        pointer = api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.tokenizer.size,)).copy()

    def save(self, before: int = 0) -> memoryview:
        """State of the sequence: its keys and values, in llama.cpp's own layout, after some free bytes."""
        size = api.llama_state_seq_get_size(self._context, 0)
        buffer = np.empty(before + size, np.uint8)
        start = buffer[before:].ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = api.llama_state_seq_get_data(self._context, start, size, 0)
        return buffer[: before + written].data

    def restore(self, state: npt.NDArray[np.uint8], positions: int) -> None:
        """Replace the sequence by a saved state. There are no logits yet.

        Args:
            state: As :meth:`save` gives it, for a context of the same settings.
            positions: Tokens in it.

        Raises:
            GenerationError: llama.cpp refused it.
        """
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if api.llama_state_seq_set_data(self._context, pointer, state.nbytes, 0) != state.nbytes:
            reason = last_llama_error() or "no reason given"
            raise GenerationError(f"llama.cpp could not take {positions:,} tokens over: {reason}")
        self.used = positions

    def resume(self, known: int, positions: int) -> None:
        """Keep the first ``known`` tokens of the sequence, drop the rest, and have room for ``positions``."""
        if positions > self._capacity:
            state, used = np.frombuffer(self.save(), np.uint8), self.used
            self.start(positions)
            self.restore(state, used)
        api.llama_memory_seq_rm(api.llama_get_memory(self._context), 0, known, -1)
        self.used = known

    def _drop_context(self) -> None:
        if self._context is not None:
            self._free_context()
            self._context = None
            self._capacity = self.used = 0

    def close(self) -> None:
        """Free model and context; calling it again does nothing."""
        self._drop_context()
        self._model.close()


def library_version() -> str:
    """Versions of llama.cpp and its binding: states of other versions are not read."""
    return f"{api.__version__} {api.llama_version().decode()}"
