"""The GPU as NVML tells of it: memory in use and energy, where nvidia-ml-py and a driver are there.

Whatever is not told is None, never 0. The tests bring a library of the same names.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onevision.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator


def require_cuda() -> None:
    """Say all that is missing for a GPU, before anything is measured.

    Raises:
        DeviceError: A library was built without CUDA.
    """
    from onevision.native import ort as session
    from onevision.native.llama import can_offload
    from onevision.runtime import backbone

    missing = {
        "ONNX Runtime's CUDA provider": None if session.has_cuda() else session.CUDA_HINT,
        "llama.cpp built with CUDA": None if can_offload() else backbone.CUDA_HINT,
    }
    hints = {name: hint for name, hint in missing.items() if hint}
    if hints:
        raise DeviceError(f"--device cuda needs {' and '.join(hints)}", hint="; ".join(hints.values()))


@dataclass(frozen=True)
class Gpu:
    """The first GPU that this process may use."""

    nvml: Any
    handle: Any

    def memory(self) -> int | None:
        """Bytes in use, by all processes."""
        info = self._ask("nvmlDeviceGetMemoryInfo", self.handle)
        return None if info is None else int(info.used)

    def energy(self) -> float | None:
        """Joules since the driver was loaded; GPUs before Volta do not tell."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", self.handle)
        return None if millijoules is None else millijoules / 1e3

    def facts(self) -> dict[str, Any]:
        """Name, bytes of memory, and the driver's version."""
        info = self._ask("nvmlDeviceGetMemoryInfo", self.handle)
        return {
            "name": _text(self._ask("nvmlDeviceGetName", self.handle)),
            "memory_bytes": None if info is None else int(info.total),
            "driver": _text(self._ask("nvmlSystemGetDriverVersion")),
        }

    def _ask(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        """None where the GPU does not tell: boards that share the CPU's memory do not tell of theirs."""
        try:
            return getattr(self.nvml, function)(*arguments)
        except self.nvml.NVMLError:
            return None


@contextmanager
def open_gpu() -> Iterator[Gpu | None]:
    """The GPU; None without the package, a driver or a GPU."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _first(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _first(nvml: Any) -> Gpu | None:  # noqa: ANN401
    """CUDA's device 0: the first of ``CUDA_VISIBLE_DEVICES``, which has indices or UUIDs, else NVML's."""
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    try:
        if name.isdecimal():
            return Gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(int(name)))
        return Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(name))
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    """Versions of the library before 12 give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
