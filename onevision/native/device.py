"""Devices by name, and how many threads to use."""

from __future__ import annotations

import os
from typing import Literal

from onevision.native.ort import has_cuda

Device = Literal["auto", "cpu", "cuda"]

#: GGML_MAX_N_THREADS: with more, llama.cpp hangs or crashes.
MAX_THREADS = 512


def default_threads() -> int:
    """Cores that this process may use: its affinity mask where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def expected(device: Device) -> tuple[str, bool]:
    """Device of the encoder, and whether the backbone is offloaded, before either is loaded."""
    from onevision.native.llama import can_offload

    encoder = "cuda" if device != "cpu" and has_cuda() else "cpu"
    return encoder, device != "cpu" and can_offload()


def placement(encoder: str, *, offloaded: bool) -> str:
    """Where a bundle runs, as a calibration is kept under.

    Args:
        encoder: Device of the encoder, ``cpu`` or ``cuda``.
        offloaded: The backbone runs on a GPU.
    """
    return f"encoder {encoder}, backbone {'gpu' if offloaded else 'cpu'}"
