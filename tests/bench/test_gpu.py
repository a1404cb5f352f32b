"""What NVML tells, from a library of its names: there is no GPU where the tests run."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from onevision.bench.gpu import Gpu, open_gpu
from onevision.bench.memory import MemoryWatch


class NVMLError(Exception):
    pass


def library(**changed: Any) -> SimpleNamespace:
    """Two GPUs; a name with an exception raises it."""
    calls: list[str] = []

    def handle(index: int) -> str:
        if index > 1:
            raise NVMLError("no such GPU")
        return f"gpu {index}"

    functions: dict[str, Any] = {
        "nvmlInit": lambda: calls.append("init"),
        "nvmlShutdown": lambda: calls.append("shutdown"),
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetHandleByUUID": lambda name: f"gpu {name}",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3 << 30, total=8 << 30),
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 12_500,
        "nvmlDeviceGetName": lambda handle: b"a GPU",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
    }
    for name, error in changed.items():

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        functions[name] = fail
    return SimpleNamespace(**functions, NVMLError=NVMLError, calls=calls)


@pytest.fixture(autouse=True)
def all_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_what_is_told(monkeypatch: pytest.MonkeyPatch):
    nvml = library()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with open_gpu() as gpu:
        assert gpu
        assert gpu.handle == "gpu 0"
        assert (gpu.memory(), gpu.energy()) == (3 << 30, 12.5)
        assert gpu.facts() == {"name": "a GPU", "memory_bytes": 8 << 30, "driver": "580.1"}
    assert nvml.calls == ["init", "shutdown"]


@pytest.mark.parametrize(("visible", "handle"), [("1,0", "gpu 1"), ("GPU-abc", "gpu GPU-abc"), ("7", None)])
def test_the_gpu_is_the_one_that_cuda_sees(monkeypatch: pytest.MonkeyPatch, visible: str, handle: str | None):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(sys.modules, "pynvml", library())
    with open_gpu() as gpu:
        assert (gpu and gpu.handle) == handle


@pytest.mark.parametrize("nvml", [None, library(nvmlInit=NVMLError("no driver"))])
def test_without_package_or_driver_there_is_none(monkeypatch: pytest.MonkeyPatch, nvml: Any):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with open_gpu() as gpu:
        assert gpu is None


def test_what_is_not_told_is_none_and_not_0():
    failing = library(
        nvmlDeviceGetMemoryInfo=NVMLError("not supported"),
        nvmlDeviceGetTotalEnergyConsumption=NVMLError("not supported"),
    )
    gpu = Gpu(failing, "gpu 0")
    assert (gpu.memory(), gpu.energy()) == (None, None)
    watch = MemoryWatch(gpu.memory, resident=lambda: 1)
    watch.sample()
    assert watch.memory.gpu_peak is None


def test_the_peak_of_a_gpu():
    used = iter([5, 9, None, 7])
    watch = MemoryWatch(lambda: next(used), resident=lambda: 1)
    for _ in range(4):
        watch.sample()
    assert watch.memory.gpu_peak == 9
