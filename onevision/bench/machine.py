"""The machine: its hardware and packages, and how warm and busy it was. None where unknown, never 0."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from onevision.doctor import cpu_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_CPU = Path("/sys/devices/system/cpu")
_RAPL = Path("/sys/class/powercap")
_PACKAGES = ("onnxruntime", "llama-cpp-python", "numpy")


def facts(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Hardware, system, and versions of our packages and of ``packages``."""
    return {
        "cpu": cpu_name(),
        "cores": {"physical": psutil.cpu_count(logical=False), "logical": os.cpu_count()},
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*_PACKAGES, *packages)},
    }


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
    if before is None or after is None or after <= before:
        return None
    return after - before


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
