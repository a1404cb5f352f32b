"""The machine while it is measured: clock, heat, load, energy, GPU. None if unknown, never 0."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from onevision.errors import DeviceError

_CPU = Path("/sys/devices/system/cpu")
_RAPL = Path("/sys/class/powercap")


def condition() -> dict[str, Any]:
    """MHz, degrees Celsius, throttlings since boot, and the load of all programs."""
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return {
        "mhz": frequency.current if frequency and frequency.current else None,
        "celsius": max((one.current for each in sensors.values() for one in each), default=None),
        "throttled": _sum(_CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")),
        "load": psutil.getloadavg()[0],
    }


def energy(folder: Path = _RAPL) -> float | None:
    """Joules of the processors (RAPL); the counter may start over."""
    microjoules = _sum(folder.glob("*-rapl:[0-9]/energy_uj"))  # packages, not their parts
    return None if microjoules is None else microjoules / 1e6


def energy_between(before: float | None, after: float | None) -> float | None:
    """Joules between two readings; None if one is missing or the counter started over."""
    return None if before is None or after is None or after <= before else after - before


def drop_file_cache(paths: list[Path]) -> bool:
    """Have the system drop cached files, so that they are read from the disk; False if it cannot."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _sum(paths: Iterable[Path]) -> int | None:
    """Sum of files that hold a number each; None if there are none, or one cannot be read."""
    with suppress(OSError, ValueError):
        numbers = [int(path.read_text(encoding="ascii")) for path in paths]
        return sum(numbers) if numbers else None
    return None


def require_cuda() -> None:
    """Check that both libraries are GPU builds.

    Raises:
        DeviceError: One or both are not; the message names all that is missing.
    """
    from onevision.native import ort
    from onevision.native.llama import CUDA_HINT, can_offload

    missing = {} if ort.has_cuda() else {"ONNX Runtime's CUDA provider": ort.CUDA_HINT}
    missing |= {} if can_offload() else {"llama.cpp built with CUDA": CUDA_HINT}
    if missing:
        raise DeviceError(f"--device cuda needs {' and '.join(missing)}", hint="; ".join(missing.values()))


@dataclass(frozen=True)
class Gpu:
    """The first GPU that this process may use."""

    nvml: Any
    handle: Any

    def memory(self) -> int | None:
        """Bytes in use by all processes."""
        info = self._ask("nvmlDeviceGetMemoryInfo", self.handle)
        return None if info is None else int(info.used)

    def energy(self) -> float | None:
        """Joules since the driver was loaded; GPUs before Volta do not report them."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", self.handle)
        return None if millijoules is None else millijoules / 1e3

    def facts(self) -> dict[str, Any]:
        """Name, bytes of memory, driver version."""
        info = self._ask("nvmlDeviceGetMemoryInfo", self.handle)
        name, driver = self._ask("nvmlDeviceGetName", self.handle), self._ask("nvmlSystemGetDriverVersion")
        return {
            "name": name.decode() if isinstance(name, bytes) else name,  # bytes before version 12
            "memory_bytes": None if info is None else int(info.total),
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
        }

    def _ask(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        """None if the GPU does not report it, as boards that share the CPU's memory."""
        try:
            return getattr(self.nvml, function)(*arguments)
        except self.nvml.NVMLError:
            return None


@contextmanager
def open_gpu() -> Iterator[Gpu | None]:
    """CUDA's device 0: first of ``CUDA_VISIBLE_DEVICES`` (index or UUID), else NVML's. None without NVML."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    started, name = False, os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    gpu = None
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        started = True
        by_index = name.isdecimal()
        find = pynvml.nvmlDeviceGetHandleByIndex if by_index else pynvml.nvmlDeviceGetHandleByUUID
        gpu = Gpu(pynvml, find(int(name) if by_index else name))
    try:
        yield gpu
    finally:
        if started:
            pynvml.nvmlShutdown()
