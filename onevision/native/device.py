"""Device names, and this machine's processor and threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]

#: GGML_MAX_N_THREADS: with more, llama.cpp hangs or crashes.
MAX_THREADS = 512

#: Instruction sets that quantized kernels of llama.cpp and ONNX Runtime gain from, as Linux names them.
_CPU_FLAGS = (
    "avx", "avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def default_threads() -> int:
    """Number of cores that this process may use: its affinity mask where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    return _cpuinfo("model name", "Model", "Hardware") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Instruction sets of this processor that matter here; empty where the system does not list them."""
    present = (_cpuinfo("flags", "Features") or "").split()
    return [flag for flag in _CPU_FLAGS if flag in present]


def _cpuinfo(*keys: str) -> str | None:
    """First value of one of the keys in Linux' ``/proc/cpuinfo``."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(keys):
                return line.split(":", 1)[1].strip()
    return None
