"""The machine's limits: memory bandwidth, and operations per second by engine and arithmetic.

In: a device and a number of threads. Out: :class:`~onevision.bench.result.Rates`, after ten seconds.

Each rate is that of the fastest of many short calls: other work slows calls down and never speeds them up.
Measurements take several turns, so that a disturbance of a second spoils none of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import numpy.typing as npt
import psutil

from onevision.bench.matmul import Arithmetic, MatmulSize, Place, Probe, llama_matmul, onnxruntime_matmul
from onevision.bench.result import Rates
from onevision.native.device import default_threads

ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)

#: Seconds of all measurements together, and the turns that they are cut into.
TIME_BOX = 10.0
TURNS = 4
#: Time to read memory, in matmuls: it is the noisier.
_READ_SHARE = 2

#: Enough for all threads: 1 GFLOP on few of them, 10 ms of one in float32.
_SIDE, _ROWS_PER_THREAD, _MIN_ROWS = 1024, 256, 512
#: 275 GFLOP on 0.4 GB in float32.
_CUDA_SIZE = MatmulSize(4096, 8192, 4096)
#: One row times 1 GB: reads the GPU's memory.
_CUDA_READ = MatmulSize(1, 16384, 16384)

#: Memory to read: several times the caches, and at least so much that starting threads takes no time.
_CACHES = 4
_MIN_BYTES, _MIN_BYTES_PER_THREAD = 256 << 20, 32 << 20
_MEMORY_SHARE = 0.25  # at most, of what is free
_UNKNOWN_CACHE = 64 << 20
_CPU_FOLDER = Path("/sys/devices/system/cpu")

_GAUGE_MATMULS, _GAUGE_BYTES = 3, 64 << 20

Key = TypeVar("Key")


def measure(
    *,
    place: Place = "cpu",
    threads: int | None = None,
    seconds: float = TIME_BOX,
    size: MatmulSize | None = None,
    memory: int | None = None,
) -> Rates:
    """Measure this machine.

    Args:
        place: ``cuda`` needs onnxruntime's CUDA provider; llama.cpp is not measured there.
        threads: CPU threads; None for all cores that this process may use.
        seconds: Time for all measurements.
        size: Of the matmuls; None for one that keeps the device busy.
        memory: Bytes to read on a CPU; None for several times its caches.

    Raises:
        DeviceError: ``cuda`` cannot be used.
    """
    threads = threads or default_threads()
    size = size or matmul_size(place, threads)
    engines = ("onnxruntime", "llama.cpp") if place == "cpu" else ("onnxruntime",)
    probes: dict[tuple[str, str], Probe] = {}
    with ExitStack() as stack:
        if read := stack.enter_context(reading(place, threads, memory)):
            probes["memory", "read"] = read
        for engine in engines:
            for arithmetic in ARITHMETICS:
                if engine == "llama.cpp":
                    probe = stack.enter_context(llama_matmul(arithmetic, size, threads=threads))
                else:
                    probe = onnxruntime_matmul(arithmetic, size, threads=threads, place=place)
                if probe:
                    probes[engine, arithmetic] = probe
        rates = rates_of(probes, seconds)
    by_engine: dict[str, dict[str, float | None]] = {
        name: {kind: rates.get((name, kind)) for kind in ARITHMETICS} for name in engines
    }
    return Rates(place, threads, rates.get(("memory", "read")), by_engine)


def rates_of(
    probes: Mapping[Key, Probe], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[Key, float]:
    """Amounts per second of the fastest calls, found within so many seconds."""
    unit = seconds / TURNS / sum(probe.share for probe in probes.values())
    best = dict.fromkeys(probes, inf)
    for _ in range(TURNS):
        for key, probe in probes.items():
            best[key] = min(best[key], _fastest(probe.call, unit * probe.share, clock))
    return {key: probe.amount / best[key] for key, probe in probes.items()}


def _fastest(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Seconds of the fastest call among those that fit into ``seconds``, one at least."""
    started = before = clock()
    fastest = inf
    while True:
        call()
        now = clock()
        fastest, before = min(fastest, now - before), now
        if now - started >= seconds:
            return fastest


def matmul_size(place: Place, threads: int) -> MatmulSize:
    """A matmul large enough for the device."""
    if place == "cuda":
        return _CUDA_SIZE
    return MatmulSize(max(_MIN_ROWS, threads * _ROWS_PER_THREAD), _SIDE, _SIDE)


@contextmanager
def reading(place: Place, threads: int, memory: int | None) -> Iterator[Probe | None]:
    """Memory read by all threads at once, a part each; on a GPU, by a matmul of one row."""
    if place == "cuda":
        matmul = onnxruntime_matmul("fp32", _CUDA_READ, threads=threads, place=place)
        # Two operations per weight, which has four bytes.
        yield matmul and Probe(matmul.call, 2 * matmul.amount, _READ_SHARE)
        return
    size = (memory or working_set(threads)) // threads // 8
    parts = [np.ones(size, np.int64) for _ in range(threads)]
    together = threading.Barrier(threads)

    def read(part: npt.NDArray[np.int64]) -> None:
        together.wait()  # so that no thread reads two parts
        np.bitwise_or.reduce(part)  # as fast as memory, and without the interpreter's lock

    with ThreadPoolExecutor(threads) as pool:
        yield Probe(lambda: list(pool.map(read, parts)), threads * size * 8, _READ_SHARE)


@contextmanager
def gauge(threads: int, now: Callable[[], float] = time.perf_counter) -> Iterator[Callable[[], float]]:
    """A fixed piece of work that returns its milliseconds, about 50: how fast the machine is just now.

    The engine is llama.cpp, whose threads do not spin on into the run that is timed next.
    """
    with (
        llama_matmul("fp32", matmul_size("cpu", threads), threads=threads) as matmul,
        reading("cpu", threads, _GAUGE_BYTES) as read,
    ):
        calls = [matmul.call] * _GAUGE_MATMULS if matmul else []
        calls += [read.call] if read else []

        def work() -> float:
            started = now()
            for call in calls:
                call()
            return (now() - started) * 1e3

        yield work


def working_set(threads: int, folder: Path = _CPU_FOLDER) -> int:
    """Bytes to read so that caches do not help, as far as the free memory allows."""
    wanted = max(_CACHES * last_level_cache(folder), _MIN_BYTES, threads * _MIN_BYTES_PER_THREAD)
    return min(wanted, int(psutil.virtual_memory().available * _MEMORY_SHARE))


def last_level_cache(folder: Path = _CPU_FOLDER) -> int:
    """Bytes of all last-level caches; a guess where the system does not report them (not Linux)."""
    caches: dict[tuple[int, str], int] = {}  # level and the cores that share it
    with suppress(OSError, ValueError):
        for cache in folder.glob("cpu[0-9]*/cache/index*"):
            level, shared, size = (
                (cache / name).read_text(encoding="ascii").strip()
                for name in ("level", "shared_cpu_list", "size")
            )
            caches[int(level), shared] = int(size.removesuffix("K")) << 10
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or _UNKNOWN_CACHE
