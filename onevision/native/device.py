"""Device names, and this machine's processor and threads."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from shutil import which
from typing import Literal, get_args

from onevision.errors import UsageError, suggest

Device = Literal["auto", "cpu", "cuda"]

#: GGML_MAX_N_THREADS: with more, llama.cpp hangs or crashes.
MAX_THREADS = 512

#: Instruction sets that quantized kernels of llama.cpp and ONNX Runtime gain from, as Linux names them.
_CPU_FLAGS = (
    "avx", "avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def check_device(device: str, threads: int | None) -> None:
    """Check names and ranges before anything is loaded.

    Raises:
        UsageError: An unknown device, or threads out of range.
    """
    if device not in get_args(Device):
        raise UsageError(f"unknown device {device!r}", hint=suggest(device, get_args(Device)))
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
        raise UsageError(f"threads is {threads!r}, it must be from 1 to {MAX_THREADS}")


def has_nvidia_gpu() -> bool:
    """Whether this machine seems to have an NVIDIA GPU and its driver."""
    return Path("/dev/nvidiactl").exists() or which("nvidia-smi") is not None


def default_threads() -> int:
    """Number of threads for heavy work: cores in the affinity mask, within the container's CPU quota."""
    quota = cpu_quota()
    return affinity() if quota is None else max(1, min(affinity(), int(quota)))


def affinity() -> int:
    """Number of cores that this process may be scheduled on; all where the system has no affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that Linux control groups allow, the least of all ancestors; None: no limit.

    Args:
        root: Folder in which ``proc`` and ``sys`` are looked for.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    limits = []
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            names = ("", "unified")  # version 2, alone or beside version 1
        elif "cpu" in controllers.split(","):
            names = (controllers, "cpu")
        else:
            continue
        for name in names:
            mount = root / "sys/fs/cgroup" / name
            group = mount / path.lstrip("/")
            # In a container the path may be the host's: then only the mount itself is there.
            for folder in (group, *group.parents):
                if (limit := _quota_of(folder)) is not None:
                    limits.append(limit)
                if folder == mount:
                    break
    return min(limits, default=None)


def _quota_of(group: Path) -> float | None:
    """Quota of one control group over its period, in cores: ``cpu.max`` or ``cpu.cfs_quota_us``."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip()
                for name in ("quota", "period")
            )
        limit = float(quota) / float(period)  # "max" in version 2
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return limit if limit > 0 else None  # -1 in version 1


def load_average() -> float | None:
    """Processes that ran or waited for a core, over the last minute; None on Windows."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def l2_cache_bytes() -> int | None:
    """Size of the L2 cache as the C library gives it; 0 where it does not know; None on other systems.

    ONNX Runtime asks the same function on Linux, and without an answer does without its flash attention
    (onnxruntime issues 29613 and 33196): glibc has none on aarch64, nor in some containers.
    """
    if not sys.platform.startswith("linux") or "SC_LEVEL2_CACHE_SIZE" not in os.sysconf_names:
        return None
    try:
        return max(0, os.sysconf("SC_LEVEL2_CACHE_SIZE"))
    except (OSError, ValueError):
        return 0


def flash_attention_costs_prefill() -> bool:
    """Whether llama.cpp's flash attention slows prefill down on this processor: Arm with i8mm and SVE.

    Reported for Neoverse V1 and V2: prefill takes 1.55 and 1.99 times as long with it, decoding gains
    (llama.cpp issues 27086 and 26559). Not measured here.
    """
    return platform.machine().lower() in {"aarch64", "arm64"} and {"i8mm", "sve"} <= set(cpu_flags())


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
