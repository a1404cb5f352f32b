"""What NVML tells, from a library of its names: there is no GPU where the tests run."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import llama_cpp
import pytest

from onevision.bench import matmul, roofline
from onevision.bench.machine import Gpu, open_gpu
from onevision.bench.report import rows, unaccounted
from onevision.bench.result import read_result
from onevision.bench.target import MemoryWatch
from onevision.cli import _run
from onevision.native import ort as session

if TYPE_CHECKING:
    from pathlib import Path


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
    assert gpu.facts() == {"name": "a GPU", "memory_bytes": None, "driver": "580.1"}
    watch = MemoryWatch(gpu.memory, resident=lambda: 1)
    watch.sample()
    assert watch.memory.gpu_peak is None


def test_the_peak_of_a_gpu():
    used = iter([5, 9, None, 7])
    watch = MemoryWatch(lambda: next(used), resident=lambda: 1)
    for _ in range(4):
        watch.sample()
    assert watch.memory.gpu_peak == 9


@pytest.mark.filterwarnings("ignore:Duplicate provider")
def test_a_bench_on_a_gpu(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the CPU in the GPU's place: the way is the same, and so is the answer."""
    joules = itertools.count(1000, 500)
    nvml = library()
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(joules)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(session, "_CUDA", "CPUExecutionProvider")
    monkeypatch.setitem(matmul._NAMES, "cuda", matmul._NAMES["cpu"])
    measure, size = roofline.measure, matmul.MatmulSize(4, 32, 4)
    monkeypatch.setattr(roofline, "_CUDA_READ", matmul.MatmulSize(1, 64, 64))
    monkeypatch.setattr(
        roofline, "measure", lambda **options: measure(**options | {"seconds": 0.0, "size": size})
    )
    waits: list[object] = []
    wait = llama_cpp.llama_synchronize
    monkeypatch.setattr(
        llama_cpp, "llama_synchronize", lambda context: (waits.append(context), wait(context))
    )
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    words = ["bench", "-m", toy_bundle, "--scenario", "photo-384", "--runs", 2, "--threads", 1]
    results = []
    for device in ("cpu", "cuda"):
        before, out = len(waits), tmp_path / f"{device}.json"
        assert _run([*map(str, words), "--device", device, "--output", str(out)]) == 0
        results.append((read_result(out), len(waits) - before))
    (on_cpu, few), (on_gpu, many) = results
    assert many > few + 2 * 16  # once for each token of each run, and more
    assert on_gpu.rates
    assert on_gpu.device == on_gpu.rates.place == "cuda"
    assert on_gpu.machine["gpu"] == {"name": "a GPU", "memory_bytes": 8 << 30, "driver": "580.1"}
    assert {row["gpu_info"] for row in rows(on_gpu)} == {"a GPU"}
    (mine,), (theirs,) = on_cpu.measured, on_gpu.measured
    assert (mine.counts, mine.runs[0].output) == (theirs.counts, theirs.runs[0].output)
    assert theirs.memory
    assert theirs.memory.gpu_peak == 3 << 30
    assert [run.joules for run in theirs.runs] == [0.5, 0.5]
    assert all(0 <= unaccounted(run) < 1 for run in theirs.runs)
    assert mine.memory
    assert mine.memory.gpu_peak is None
    assert nvml.calls == ["init", "shutdown"]


@pytest.mark.parametrize(
    ("provider", "offload", "named"),
    [
        (False, False, ("onnxruntime-gpu", "GGML_CUDA")),
        (True, False, ("GGML_CUDA",)),
        (False, True, ("onnxruntime-gpu",)),
    ],
)
def test_all_that_a_gpu_needs_is_named_at_once(
    toy_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    provider: bool,
    offload: bool,
    named: tuple[str, ...],
):
    monkeypatch.setattr(session, "_CUDA", "CPUExecutionProvider" if provider else "NoSuchProvider")
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: offload)
    assert _run(["bench", "-m", str(toy_bundle), "--scenario", "text", "--device", "cuda"]) == 1
    told = capfd.readouterr().err
    assert {name for name in ("onnxruntime-gpu", "GGML_CUDA") if name in told} == set(named)
    assert told.startswith("error: --device cuda needs ")


def test_a_missing_gpu_is_told_before_a_bundle_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path))
    assert _run(["bench", "--synthetic", "7b", "--device", "cuda"]) == 1
    assert capfd.readouterr().err.startswith("error: --device cuda needs ")
    assert not list(tmp_path.iterdir())
