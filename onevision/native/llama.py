"""llama.cpp's threads and its log.

Lines that llama.cpp logs, on any of its threads, do not reach the terminal: :func:`last_llama_error` has the
last error, :func:`llama_log` hands the lines to a listener. Import this module before ``llama_cpp``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import finalize

from onevision.errors import BundleError

T = TypeVar("T")

# llama.cpp's threads (GNU OpenMP) spin while they wait for each other. Where another program has a core, that
# keeps the late one from it: a short spin makes this case 1.4 times as fast, and costs nothing otherwise. The
# library reads the variable once, when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_ERROR = 4  # GGML_LOG_LEVEL_ERROR

_last_error: str | None = None
_listeners: list[Callable[[str], None]] = []


def silence_llama() -> None:
    """Keep llama.cpp's log off the terminal; call it before any other function of llama_cpp."""
    _log_callback()


def can_offload() -> bool:
    """Whether this build of llama.cpp can use GPUs. The first call makes it look for them, and log."""
    import llama_cpp

    silence_llama()
    return bool(llama_cpp.llama_supports_gpu_offload())


def last_llama_error() -> str | None:
    """The last line that llama.cpp logged as an error, or None."""
    return _last_error


@contextmanager
def llama_log(listener: Callable[[str], None]) -> Iterator[None]:
    """Hand the lines logged during the body to ``listener``; errors from before the body are forgotten.

    Args:
        listener: Called with each line, on the thread that logs it.
    """
    global _last_error  # noqa: PLW0603 - the log is one per process, so is its last error
    silence_llama()
    _last_error = None
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def call_apart(function: Callable[..., T], *arguments: object) -> T:
    """Call a function of llama.cpp that logs, on a thread of its own.

    On the main thread, a Ctrl-C that arrives while llama.cpp calls back to log would be lost.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


@cache
def _log_callback() -> object:
    """Install the callback, once; the cache keeps it alive for as long as llama.cpp may call it."""
    import llama_cpp

    def keep(level: int, text: bytes, _user_data: object) -> None:
        global _last_error  # noqa: PLW0603
        line = text.decode("utf-8", errors="replace").strip()
        if level == _ERROR and line:
            _last_error = line
        for listener in tuple(_listeners):
            listener(line)

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
