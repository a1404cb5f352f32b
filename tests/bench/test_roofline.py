"""What a machine can do at most. No test here looks at how fast this one is."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from onevision.bench import matmul, roofline
from onevision.bench.matmul import MatmulSize, Probe
from onevision.bench.result import Counts, Rates
from onevision.bench.roofline import (
    ARITHMETICS,
    TURNS,
    last_level_cache,
    matmul_size,
    measure,
    rates_of,
    work,
    working_set,
)
from onevision.bundle import PREFILL, PREFILL_DATA, VISION, VISION_DATA, open_bundle
from onevision.errors import DeviceError

if TYPE_CHECKING:
    from pathlib import Path

SIZE = MatmulSize(4, 32, 4)


class Clock:
    """A clock that only stands where calls have put it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def probe(self, name: str, *seconds: float, amount: float = 1.0, share: int = 1) -> Probe:
        """Its calls take so long, in turn, and the last of them from then on."""
        times = list(seconds)

        def call() -> None:
            self.calls.append(name)
            self.now += times.pop(0) if len(times) > 1 else times[0]

        return Probe(call, amount, share)


def test_the_fastest_call_counts():
    clock = Clock()
    probes = {"a": clock.probe("a", 5.0, 0.25, 0.5, amount=100), "b": clock.probe("b", 1.0, amount=3)}
    assert rates_of(probes, 16.0, clock) == {"a": 400.0, "b": 3.0}


def test_measurements_take_turns_and_keep_their_time():
    clock = Clock()
    probes = {"a": clock.probe("a", 0.5), "b": clock.probe("b", 0.5, share=3)}
    rates_of(probes, 16.0, clock)
    assert clock.now == 116.0
    turn = ["a"] * 2 + ["b"] * 6
    assert clock.calls == turn * TURNS


def test_a_disturbance_of_one_turn_spoils_nothing():
    clock = Clock()
    probes = {"a": clock.probe("a", 9.0, 9.0, 0.5)}
    assert rates_of(probes, 8.0, clock) == {"a": 2.0}


def test_what_is_slower_than_its_share_runs_once_a_turn():
    clock = Clock()
    assert rates_of({"a": clock.probe("a", 50.0, amount=100)}, 1.0, clock) == {"a": 2.0}
    assert len(clock.calls) == TURNS


@pytest.mark.parametrize("threads", [1, 2])
def test_rates_of_this_machine(threads: int):
    rates = measure(threads=threads, seconds=0.0, size=SIZE, memory=1 << 16)
    assert (rates.place, rates.threads) == ("cpu", threads)
    assert rates.read is not None
    assert rates.read > 0
    assert rates.engines.keys() == {"onnxruntime", "llama.cpp"}
    for known in rates.engines.values():
        assert known.keys() == set(ARITHMETICS)
        assert all(rate is None or rate > 0 for rate in known.values())
    assert rates.engines["onnxruntime"]["fp32"]
    assert rates.engines["onnxruntime"]["int8"]
    assert json.loads(json.dumps(asdict(rates))) == asdict(rates)


def test_equal_tiles_are_work_once(toy_bundle: Path):
    manifest, counts = open_bundle(toy_bundle).manifest, Counts(100, 50, 4, 5)
    whole = work(manifest, counts, place="cpu", threads=2)["encode"]
    some = work(manifest, counts, 3, place="cpu", threads=2)["encode"]
    assert (some.flops * 5, some.bytes * 5, some.units) == (whole.flops * 3, whole.bytes * 3, 3)
    assert work(manifest, counts, 1, place="cuda", threads=2)["encode"].units == 5, "a call has several there"


def test_long_prompts_are_the_graphs_work(toy_bundle: Path):
    without = open_bundle(toy_bundle).manifest
    graph = {
        PREFILL: replace(without.files[VISION], precision="int8"),
        PREFILL_DATA: replace(without.files[VISION_DATA], bytes=1000),
    }
    manifest = replace(without, files={**without.files, **graph})
    long, short = Counts(300, 200, 4, 5), Counts(100, 50, 4, 5)
    read = work(manifest, long, place="cpu", threads=2)["prefill"]
    assert (read.precision, read.bytes) == ("int8", 3 * 1000)
    for counts, place in ((short, "cpu"), (long, "cuda")):
        read, of_llama = (work(one, counts, place=place, threads=2)["prefill"] for one in (manifest, without))
        assert read == of_llama


def test_the_limit_is_that_of_the_better_engine():
    engines = {
        "onnxruntime": {"fp32": 2.0, "fp16": 1.0, "bf16": None, "int8": None},
        "llama.cpp": {"fp32": 1.0, "fp16": 3.0, "bf16": 4.0, "int8": None},
    }
    rates = Rates("cpu", 1, None, engines)
    assert [rates.flops(precision) for precision in ARITHMETICS] == [2.0, 3.0, 4.0, None]


def test_llama_that_cannot_be_asked_leaves_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matmul, "library", lambda: SimpleNamespace(ggml_init=None))
    rates = measure(threads=1, seconds=0.0, size=SIZE, memory=1 << 16)
    assert set(rates.engines["llama.cpp"].values()) == {None}
    assert rates.flops("fp32")


def test_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """With the CPU's provider in the place of CUDA's."""
    monkeypatch.setitem(matmul._NAMES, "cuda", matmul._NAMES["cpu"])
    monkeypatch.setattr(roofline, "_CUDA_READ", MatmulSize(1, 64, 64))
    rates = measure(place="cuda", threads=1, seconds=0.0, size=SIZE)
    assert rates.place == "cuda"
    assert rates.engines.keys() == {"onnxruntime"}
    assert rates.read
    assert rates.flops("fp16")


def test_without_cuda_the_device_is_missing():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    with pytest.raises(DeviceError, match="CUDAExecutionProvider"):
        measure(place="cuda", seconds=0.0, size=SIZE)


def test_matmuls_grow_with_the_threads():
    assert matmul_size("cpu", 1) == MatmulSize(512, 1024, 1024)
    assert matmul_size("cpu", 64) == MatmulSize(16384, 1024, 1024)
    assert matmul_size("cuda", 64).flops > matmul_size("cpu", 2).flops


# Caches


def cache(folder: Path, core: int, index: int, level: int, shared: str, size: str) -> None:
    place = folder / f"cpu{core}" / "cache" / f"index{index}"
    place.mkdir(parents=True)
    for name, text in (("level", str(level)), ("shared_cpu_list", shared), ("size", size)):
        (place / name).write_text(f"{text}\n", encoding="ascii")


def test_the_last_level_of_all_caches(tmp_path: Path):
    for core in range(4):
        cache(tmp_path, core, 0, 1, str(core), "32K")
        cache(tmp_path, core, 2, 2, str(core), "1024K")
        cache(tmp_path, core, 3, 3, "0-1" if core < 2 else "2-3", "32768K")
    assert last_level_cache(tmp_path) == 2 * (32 << 20)
    assert working_set(1, tmp_path) == 4 * 2 * (32 << 20)


def test_caches_that_the_system_does_not_tell(tmp_path: Path):
    assert last_level_cache(tmp_path) == 64 << 20
    cache(tmp_path, 0, 0, 1, "0", "")
    assert last_level_cache(tmp_path) == 64 << 20


def test_the_working_set_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert working_set(64, tmp_path) == 64 * (32 << 20)

    class Memory:
        available = 400 << 20

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert working_set(1, tmp_path) == 100 << 20
