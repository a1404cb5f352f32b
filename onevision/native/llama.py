"""llama.cpp's threads and its log.

Lines that llama.cpp logs do not reach the terminal: :func:`last_llama_error` has the last error of the
calling thread, :func:`llama_log` hands its lines to a listener. Import this module before ``llama_cpp``.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import finalize

from onevision.errors import BundleError, DeviceError

T = TypeVar("T")

# llama.cpp's threads (GNU OpenMP) spin while they wait for each other. Where another program has a core, that
# keeps the late one from it: a short spin makes this case 1.4 times as fast, and costs nothing otherwise. The
# library reads the variable once, when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

CUDA_HINT = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall llama-cpp-python'

_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class _Log:
    """Where the lines of a call go."""

    def __init__(self, listener: Callable[[str], None] | None = None) -> None:
        self.listener = listener
        self.error: str | None = None


class _Thread(threading.local):
    """The log of each thread: llama.cpp logs on the thread that calls it."""

    def __init__(self) -> None:
        self.log = _Log()


_thread = _Thread()


def silence_llama() -> object:
    """Keep llama.cpp's log off the terminal; call it before any other function of llama_cpp.

    Returns:
        The callback that takes the log.
    """
    return _log_callback()


def can_offload() -> bool:
    """Whether this build of llama.cpp can use GPUs. The first call makes it look for them, and log."""
    import llama_cpp

    silence_llama()
    return bool(llama_cpp.llama_supports_gpu_offload())


def offloads(device: str) -> bool:
    """Whether the language model goes to a GPU.

    Raises:
        DeviceError: ``cuda``, and llama.cpp was built without it.
    """
    offload = can_offload()
    if device == "cuda" and not offload:
        raise DeviceError("llama.cpp was built without CUDA", hint=CUDA_HINT)
    return offload and device != "cpu"


def last_llama_error() -> str | None:
    """Last line that llama.cpp logged as an error in calls of this thread, or None."""
    return _thread.log.error


@contextmanager
def llama_log(listener: Callable[[str], None]) -> Iterator[None]:
    """Hand the lines that this thread's calls log during the body to ``listener``.

    Errors from before the body are forgotten.
    """
    silence_llama()
    before, _thread.log = _thread.log, _Log(listener)
    try:
        yield
    finally:
        before.error = _thread.log.error
        _thread.log.listener = None  # an interrupted call may still log
        _thread.log = before


def call_apart(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of llama.cpp that logs, on a thread of its own.

    On the main thread, a Ctrl-C that arrives while llama.cpp calls back to log would be lost.
    """
    log = _thread.log

    def apart() -> T:
        _thread.log = log
        return function(*arguments)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(apart).result()


@cache
def _log_callback() -> object:
    """Install the callback, once; the cache keeps it alive for as long as llama.cpp may call it."""
    import llama_cpp

    def keep(level: int, text: bytes, _user_data: object) -> None:
        line = text.decode("utf-8", errors="replace").strip()
        log = _thread.log
        if level == _ERROR and line:
            log.error = line
        if log.listener:
            log.listener(line)

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


class LlamaModel:
    """A GGUF file, loaded. Its memory is freed with the last reference, or at :meth:`close`.

    Args:
        path: The file.
        gpu_layers: Layers on the GPU; -1 for all.
        vocab_only: Load the tokenizer and no weights.

    Attributes:
        pointer: The ``llama_model``; None when it is closed.

    Raises:
        BundleError: The file cannot be loaded.
    """

    def __init__(self, path: Path, *, gpu_layers: int = 0, vocab_only: bool = False) -> None:
        import llama_cpp as api

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
                f"llama.cpp cannot load {path}: {reason}", hint="copy or export the bundle again"
            )
        self.pointer: Any = model
        self._free = free_with(self, api.llama_model_free, model)

    def close(self) -> None:
        """Free the memory; calling it again does nothing."""
        self.pointer = None
        self._free()


def free_with(owner: object, free: Callable[[int], object], memory: int) -> finalize[..., object]:
    """Free native memory with the last reference to ``owner``, or when the returned object is called.

    At the end of the process nothing is freed: other threads may still use it.
    """
    finalizer = finalize(owner, free, memory)
    finalizer.atexit = False
    return finalizer
