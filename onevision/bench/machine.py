"""What the machine is and does: what it has, and how warm and fast it was before and after.

Whatever a system does not tell is None, never 0.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from onevision.native.device import cpu_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_CPU = Path("/sys/devices/system/cpu")
_RAPL = Path("/sys/class/powercap")
_PACKAGES = ("onnxruntime", "llama-cpp-python", "numpy")


def facts(packages: Iterable[str] = ()) -> dict[str, Any]:
    """What stays as it is. ``packages`` are told of besides our own."""
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
    """What changes: MHz, degrees Celsius, throttlings since boot, and the load of all programs."""
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return {
        "mhz": frequency.current if frequency and frequency.current else None,
        "celsius": _hottest(),
        "throttled": _throttled(),
        "load": psutil.getloadavg()[0],
    }


def energy(folder: Path = _RAPL) -> float | None:
    """Joules of the processors since some moment (RAPL), which may start over."""
    with suppress(OSError, ValueError):
        zones = folder.glob("*-rapl:[0-9]")  # packages, not their parts
        readings = [int((zone / "energy_uj").read_text(encoding="ascii")) for zone in zones]
        return sum(readings) / 1e6 if readings else None
    return None


def energy_between(before: float | None, after: float | None) -> float | None:
    """Joules between two readings; None where one is missing, or the counter started over."""
    if before is None or after is None or after <= before:
        return None
    return after - before


def forget(paths: list[Path]) -> bool:
    """Have the system drop its copies of files in memory, so that they are read from the disk again."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _hottest() -> float | None:
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    sensors = psutil.sensors_temperatures()
    return max((one.current for each in sensors.values() for one in each), default=None)


def _throttled(folder: Path = _CPU) -> int | None:
    with suppress(OSError, ValueError):
        paths = folder.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        counts = [int(path.read_text(encoding="ascii")) for path in paths]
        return sum(counts) if counts else None
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
