"""The GPU's memory and energy by NVML, if nvidia-ml-py and a driver are installed. None if unknown, never 0."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onevision.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator


def require_cuda() -> None:
    """Check for GPU builds of both libraries before anything is measured.

    Raises:
        DeviceError: One or both are missing; the message names all that is missing.
    """
    from onevision.runtime import backbone, session
    from onevision.runtime.llama_log import can_offload

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
        return {
            "name": _text(self._ask("nvmlDeviceGetName", self.handle)),
            "memory_bytes": None if info is None else int(info.total),
            "driver": _text(self._ask("nvmlSystemGetDriverVersion")),
        }

    def _ask(self, function: str, *arguments: Any) -> Any:  # noqa: ANN401
        """None if the GPU does not report it, as boards that share the CPU's memory."""
        try:
            return getattr(self.nvml, function)(*arguments)
        except self.nvml.NVMLError:
            return None


@contextmanager
def open_gpu() -> Iterator[Gpu | None]:
    """CUDA's device 0: the first of ``CUDA_VISIBLE_DEVICES`` (indices or UUIDs), else NVML's; None without."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        yield None
        return
    except pynvml.NVMLError:
        yield None
        return
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    by_index = name.isdecimal()
    try:
        find = pynvml.nvmlDeviceGetHandleByIndex if by_index else pynvml.nvmlDeviceGetHandleByUUID
        handle = find(int(name) if by_index else name)
    except pynvml.NVMLError:
        handle = None
    try:
        yield handle and Gpu(pynvml, handle)
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes | None) -> str | None:
    """A string: versions of the library before 12 return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
