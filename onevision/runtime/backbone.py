"""The language model: llama.cpp through its C API.

In: a prompt as stretches of token ids and visual embeddings (float32 [n, H]). Out: logits of the last
position, and tokens sampled from them one by one.

Embeddings go in as ``llama_batch.embd``, which takes the place of the embedding look-up and nothing else;
positions and attention are those of text. Logits are computed for the last position only.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import llama_cpp as api  # after native.llama, which sets its threads up
import numpy as np

from onevision.errors import BundleError, DeviceError, GenerationError, PromptError
from onevision.native.device import Device, default_threads
from onevision.native.llama import call_apart, can_offload, last_llama_error, llama_log, silence_llama

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from onevision.runtime.options import AnswerOptions

#: Tokens per call of llama_decode. Larger ones are not faster on a CPU, and Ctrl-C waits for the call's end.
CHUNK = 512
#: Contexts are sized in steps, so that one serves prompts of nearly the same length.
CONTEXT_STEP = 256

CUDA_HINT = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall llama-cpp-python'

CacheType = Literal["f32", "f16"]


class Vocabulary:
    """Text to token ids and back, with the tokenizer of a GGUF file."""

    def __init__(self, model: int) -> None:
        self._vocab: Any = api.llama_model_get_vocab(model)
        self.size = int(api.llama_vocab_n_tokens(self._vocab))

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any text without lone surrogates.
            control: Read control tokens such as ``<|im_end|>``; otherwise they are text like any other.

        Raises:
            PromptError: The text cannot be encoded as UTF-8.
            GenerationError: The model is closed.
        """
        if self._vocab is None:
            raise GenerationError("the language model is closed")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error.reason}") from error
        # A token stands for at least one byte.
        ids = (api.llama_token * max(1, len(data)))()
        count = api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, control)
        if count < 0:
            raise GenerationError(f"llama.cpp could not tokenise the text: {last_llama_error() or count}")
        return list(ids[:count])

    def control_id(self, token: str) -> int | None:
        """Id of a control token, or None if the vocabulary has no such token."""
        ids = self.encode(token, control=True)
        return ids[0] if len(ids) == 1 else None

    def piece(self, token: int) -> bytes:
        """Bytes of a token: a part of a UTF-8 text, empty for control tokens."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = api.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def ends(self, token: int) -> bool:
        """Whether a token ends the answer (``<|im_end|>``, ``<|endoftext|>``)."""
        return bool(api.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        """Forget the model, before its memory is freed."""
        self._vocab = None

    @property
    def unused(self) -> range:
        """Rows of the embedding that no token stands for; they are at the end."""
        first = self.size
        while first > 0 and api.llama_vocab_get_attr(self._vocab, first - 1) & api.LLAMA_TOKEN_ATTR_UNUSED:
            first -= 1
        return range(first, self.size)


class Sampler:
    """A llama.cpp sampler chain. Use as a context manager, or ``close()`` it."""

    def __init__(self, sampling: AnswerOptions, vocab_size: int, banned: Sequence[int]) -> None:
        self._chain: Any = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        biases = (api.llama_logit_bias * len(banned))()
        for bias, token in zip(biases, banned, strict=True):
            bias.token, bias.bias = token, -float("inf")
        self._add(api.llama_sampler_init_logit_bias(vocab_size, len(banned), biases))
        if sampling.repetition_penalty != 1:
            # The window is as long as any answer.
            self._add(
                api.llama_sampler_init_penalties(vocab_size, 2**15, sampling.repetition_penalty, 0.0, 0.0)
            )
        if sampling.temperature == 0:
            self._add(api.llama_sampler_init_greedy())
            return
        self._add(api.llama_sampler_init_temp(sampling.temperature))
        if sampling.top_k > 0:
            self._add(api.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            self._add(api.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            self._add(api.llama_sampler_init_min_p(sampling.min_p, 1))
        seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed
        self._add(api.llama_sampler_init_dist(seed))

    def _add(self, sampler: int) -> None:
        api.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it now

    def sample(self, backbone: Backbone) -> int:
        """Choose a token from the logits of the last position, and remember it for the penalty."""
        return int(api.llama_sampler_sample(self._chain, backbone.context, -1))

    def close(self) -> None:
        """Free the native memory."""
        if self._chain is not None:
            api.llama_sampler_free(self._chain)
            self._chain = None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backbone:
    """A GGUF model and, from the first :meth:`start` on, a context with its key-value cache.

    Args:
        path: GGUF file.
        device: ``cpu``, ``cuda``, or ``auto``: every layer on the GPU where llama.cpp was built for one.
        threads: CPU threads; None for all cores that this process may use.
        cache_type: Type of the keys and values. ``f16`` halves the memory; ``f32`` is for exact work.
        flash_attention: Where llama.cpp has it. On a CPU it rounds queries to f16 and sums values in f16, an
            error that grows with the prompt: not for exact work.

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
        self._model: Any = None
        self._context: Any = None
        self._capacity = 0
        self._observer: Any = None
        self.used = 0  # positions filled in the key-value cache
        offload = can_offload()
        if device == "cuda" and not offload:
            raise DeviceError(
                "llama.cpp was built without CUDA",
                hint=CUDA_HINT,
            )
        self.offloaded = offload and device != "cpu"
        self.threads = threads or default_threads()
        self.cache_type: CacheType = cache_type
        self._flash_attention = flash_attention
        self._model = _load_model(path, gpu_layers=-1 if self.offloaded else 0)
        self.vocabulary = Vocabulary(self._model)
        self.hidden = int(api.llama_model_n_embd(self._model))
        self.context_length = int(api.llama_model_n_ctx_train(self._model))

    @property
    def context(self) -> int:
        """The llama_context, for the sampler."""
        return self._context  # type: ignore[no-any-return]

    def observe(self, callback: Any) -> None:  # noqa: ANN401
        """Have llama.cpp call back for the nodes of its graph (``cb_eval``), from the next :meth:`start` on.

        Args:
            callback: A ``ggml_backend_sched_eval_callback``; it is called on another thread.
        """
        self._free_context()
        self._observer = callback

    def start(self, positions: int) -> None:
        """Begin an empty sequence with room for ``positions`` tokens.

        Raises:
            PromptError: More than the model's context length.
            GenerationError: No memory for the key-value cache, or the model is closed.
        """
        if self._model is None:
            raise GenerationError("the language model is closed")
        if positions > self.context_length:
            raise PromptError(
                f"{positions:,} tokens are more than the model's context of {self.context_length:,}"
            )
        if self._context is None or positions > self._capacity:
            self._free_context()
            capacity = min(self.context_length, -(-positions // CONTEXT_STEP) * CONTEXT_STEP)
            self._context = self._new_context(capacity)
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
            api.LLAMA_FLASH_ATTN_TYPE_AUTO if self._flash_attention else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.offload_kqv = self.offloaded
        params.no_perf = True
        if self._observer is not None:
            params.cb_eval = self._observer
        context = call_apart(api.llama_init_from_model, self._model, params)
        if not context:
            raise GenerationError(
                f"llama.cpp could not make a context of {capacity:,} tokens: {last_llama_error()}",
                hint="ask about fewer or smaller pictures, or free some memory",
            )
        return int(context)

    def prefill(
        self,
        parts: Sequence[Sequence[int] | npt.NDArray[np.float32]],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Read a prompt into the key-value cache; the logits of its last position are then ready.

        Args:
            parts: Token ids, or embeddings float32 [n, H], in order.
            on_progress: Called with the number of tokens that each step has added.

        Raises:
            GenerationError: llama.cpp refused a batch.
        """
        chunks = [part[start : start + CHUNK] for part in parts for start in range(0, len(part), CHUNK)]
        for index, chunk in enumerate(chunks):
            self._decode(chunk, logits=index == len(chunks) - 1)
            if on_progress:
                on_progress(len(chunk))
        self.synchronise()

    def synchronise(self) -> None:
        """Wait for what was begun: a GPU may still be at it; a CPU is not."""
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
        """Logits of the last position, float32 [vocabulary]. A copy."""
        pointer = api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary.size,)).copy()

    def save(self) -> bytes:
        """State of the sequence: its keys and values, in llama.cpp's own layout."""
        size = api.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = api.llama_state_seq_get_data(self._context, buffer, size, 0)
        return bytes(memoryview(buffer)[:written])

    def restore(self, state: npt.NDArray[np.uint8], positions: int) -> None:
        """Go on from a state instead of what was read so far. There are no logits yet.

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

    def resume(self, kept: int, positions: int) -> None:
        """Keep the first ``kept`` tokens that were read, drop the rest, and have room for ``positions``."""
        if positions > self._capacity:
            state, used = np.frombuffer(self.save(), np.uint8), self.used
            self.start(positions)
            self.restore(state, used)
        api.llama_memory_seq_rm(api.llama_get_memory(self._context), 0, kept, -1)
        self.used = kept

    def _free_context(self) -> None:
        if self._context is not None:
            api.llama_free(self._context)
            self._context = None
            self._capacity = self.used = 0

    def close(self) -> None:
        """Free model and context. Calling it again does nothing."""
        self._free_context()
        if self._model is not None:
            self.vocabulary.close()
            api.llama_model_free(self._model)
            self._model = None


def library_version() -> str:
    """Of llama.cpp and its binding: states of another one are not read."""
    return f"{api.__version__} {api.llama_version().decode()}"


def count_tokens(path: Path, texts: Sequence[str]) -> int:
    """Number of tokens of some texts, reading only the vocabulary of a GGUF file."""
    with vocabulary_of(path) as vocabulary:
        return sum(len(vocabulary.encode(text)) for text in texts)


@contextmanager
def vocabulary_of(path: Path) -> Iterator[Vocabulary]:
    """The vocabulary of a GGUF file, without its weights."""
    silence_llama()
    model = _load_model(path, vocab_only=True)
    try:
        yield Vocabulary(model)
    finally:
        api.llama_model_free(model)


def _load_model(path: Path, *, gpu_layers: int = 0, vocab_only: bool = False) -> int:
    params = api.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    # The last error only says that there was one; the first says which.
    lines: list[str] = []
    with llama_log(lines.append):
        model = call_apart(api.llama_model_load_from_file, os.fsencode(path), params)
    if not model:
        telling = (line for line in lines if line.startswith("gguf_") or "error loading model" in line)
        reason = next(telling, last_llama_error() or ": unknown error").partition(": ")[2]
        raise BundleError(
            f"llama.cpp cannot load {path}: {reason}",
            hint="copy or export the bundle again",
        )
    return int(model)
