"""llama.cpp's log, kept off the terminal: the last error is remembered, other lines go to whoever listens.

In: lines that llama.cpp writes from any of its threads. Out: nothing on stderr, and
:func:`last_llama_error` for the message of an exception.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_ERROR = 4  # GGML_LOG_LEVEL_ERROR

_last_error: str | None = None
_listeners: list[Callable[[str], None]] = []


def silence_llama() -> None:
    """Take llama.cpp's log away from the terminal; call it before anything else of llama_cpp."""
    _log_callback()


def can_offload() -> bool:
    """Whether this build of llama.cpp can use GPUs. The first question makes it look for some, and log."""
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
