"""What this machine can do at most: bytes read a second, and operations a second by precision.

In: a device and a number of threads. Out: :class:`Rates`, in ten seconds.

Each rate is that of the fastest of many short runs: what else the machine does makes runs slower, never
faster. Measurements take turns, several times over, so that no disturbance of a second spoils one of them.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import psutil

from onevision.bench.ggml import llama_product
from onevision.bench.products import Place, Precision, Product, Size, onnxruntime_product
from onevision.native.device import default_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    import numpy.typing as npt

Engine = Literal["onnxruntime", "llama.cpp"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: Seconds of all measurements together, and the turns that they are cut into.
TIME_BOX = 10.0
TURNS = 4
#: What reading memory takes of the time, in products: it is the noisier.
_READ_SHARE = 2

#: Enough for all threads: 1 GFLOP on few of them, 10 ms of one in float32.
_SIDE, _ROWS_PER_THREAD, _LEAST_ROWS = 1024, 256, 512
#: A GPU's product: 275 GFLOP on 0.4 GB in float32.
_CUDA_SIZE = Size(4096, 8192, 4096)
#: A GPU reads a matrix of 1 GB to multiply one row with it.
_CUDA_READ = Size(1, 16384, 16384)

#: Memory to read, in last-level caches, and at least, so that starting the threads is no part of the time.
_CACHES = 4
_LEAST_BYTES, _LEAST_BYTES_PER_THREAD = 256 << 20, 32 << 20
#: Of what is free, at most.
_MEMORY_SHARE = 0.25
_UNKNOWN_CACHE = 64 << 20
_CPU_FOLDER = Path("/sys/devices/system/cpu")

Key = TypeVar("Key")


@dataclass(frozen=True)
class Rates:
    """What a device can do at most. None: not measured, or the engine has no such arithmetic.

    Attributes:
        place: ``cpu`` or ``cuda``.
        threads: CPU threads.
        read: Bytes of memory read a second.
        engines: Operations a second, by engine and precision. Those of ``int8`` are of integers.
    """

    place: Place
    threads: int
    read: float | None
    engines: dict[Engine, dict[Precision, float | None]]

    def flops(self, precision: Precision) -> float | None:
        """Operations a second in the engine that is best at it."""
        found = [rates[precision] for rates in self.engines.values()]
        return max((rate for rate in found if rate is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """Something to time: bytes or operations of a call, and its share of the time."""

    call: Callable[[], object]
    amount: float
    share: int = 1


def measure(
    *,
    place: Place = "cpu",
    threads: int | None = None,
    seconds: float = TIME_BOX,
    size: Size | None = None,
    memory: int | None = None,
) -> Rates:
    """Rates of this machine.

    Args:
        place: ``cuda`` needs onnxruntime's CUDA provider; llama.cpp is not measured there. It was never run
            on a GPU.
        threads: CPU threads; None for all cores that this process may use.
        seconds: For all measurements together.
        size: Of the products; None for what keeps the device busy.
        memory: Bytes to read on a CPU; None for several times its caches.

    Raises:
        DeviceError: ``cuda`` was asked for and cannot be used.
    """
    threads = threads or default_threads()
    size = size or product_size(place, threads)
    engines: tuple[Engine, ...] = ("onnxruntime", "llama.cpp") if place == "cpu" else ("onnxruntime",)
    probes: dict[tuple[Engine, Precision] | None, Probe] = {}
    with ExitStack() as stack:
        if read := stack.enter_context(reading(place, threads, memory)):
            probes[None] = read
        for engine in engines:
            for precision in PRECISIONS:
                product = stack.enter_context(_product(engine, precision, size, threads, place))
                if product:
                    probes[engine, precision] = Probe(product.multiply, product.count * size.flops)
        rates = rates_of(probes, seconds)
    by_engine = {
        engine: {precision: rates.get((engine, precision)) for precision in PRECISIONS} for engine in engines
    }
    return Rates(place, threads, rates.get(None), by_engine)


def rates_of(
    probes: Mapping[Key, Probe], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[Key, float]:
    """Amounts a second of the fastest calls, found in so many seconds."""
    unit = seconds / TURNS / sum(probe.share for probe in probes.values())
    best = dict.fromkeys(probes, inf)
    for _ in range(TURNS):
        for key, probe in probes.items():
            best[key] = min(best[key], _fastest(probe.call, unit * probe.share, clock))
    return {key: probe.amount / best[key] for key, probe in probes.items()}


def _fastest(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Seconds of the fastest call among those that fit into ``seconds``; one is made in any case."""
    started = before = clock()
    least = inf
    while True:
        call()
        now = clock()
        least, before = min(least, now - before), now
        if now - started >= seconds:
            return least


def product_size(place: Place, threads: int) -> Size:
    """A product that is large enough for the device."""
    if place == "cuda":
        return _CUDA_SIZE
    return Size(max(_LEAST_ROWS, threads * _ROWS_PER_THREAD), _SIDE, _SIDE)


def _product(
    engine: Engine, precision: Precision, size: Size, threads: int, place: Place
) -> AbstractContextManager[Product | None]:
    if engine == "llama.cpp":
        return llama_product(precision, size, threads=threads)
    return nullcontext(onnxruntime_product(precision, size, threads=threads, place=place))


@contextmanager
def reading(place: Place, threads: int, memory: int | None) -> Iterator[Probe | None]:
    """Memory read by all threads at once, a part each; on a GPU, by a product of one row."""
    if place == "cuda":
        product = onnxruntime_product("fp32", _CUDA_READ, threads=threads, place=place)
        size = 4 * _CUDA_READ.inner * _CUDA_READ.columns
        yield Probe(product.multiply, product.count * size, _READ_SHARE) if product else None
        return
    size = (memory or working_set(threads)) // threads // 8
    parts = [np.ones(size, np.int64) for _ in range(threads)]
    together = threading.Barrier(threads)

    def read(part: npt.NDArray[np.int64]) -> None:
        together.wait()  # so that no thread reads two parts
        np.bitwise_or.reduce(part)  # as fast as memory, and without the interpreter's lock

    with ThreadPoolExecutor(threads) as pool:
        yield Probe(lambda: list(pool.map(read, parts)), threads * size * 8, _READ_SHARE)


def working_set(threads: int, folder: Path = _CPU_FOLDER) -> int:
    """Bytes to read so that caches are of no help, as far as the free memory allows."""
    wanted = max(_CACHES * last_level_cache(folder), _LEAST_BYTES, threads * _LEAST_BYTES_PER_THREAD)
    return min(wanted, int(psutil.virtual_memory().available * _MEMORY_SHARE))


def last_level_cache(folder: Path = _CPU_FOLDER) -> int:
    """Bytes of all last-level caches of the machine; a guess where the system does not tell (not Linux)."""
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
