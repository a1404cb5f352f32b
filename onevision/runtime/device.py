"""Devices by name, and how many threads to use."""

from __future__ import annotations

import os
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]

#: GGML_MAX_N_THREADS: with more, llama.cpp hangs or crashes.
MAX_THREADS = 512


def default_threads() -> int:
    """Cores that this process may use: its affinity mask where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
