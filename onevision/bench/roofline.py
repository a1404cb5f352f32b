"""The machine's limits, and the least work of each stage.

Limits are the memory bandwidth, and operations per second by engine and arithmetic.

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
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import numpy.typing as npt
import psutil

from onevision.bench.matmul import Arithmetic, MatmulSize, Place, Probe, llama_matmul, onnxruntime_matmul
from onevision.bench.result import Counts, Rates, Work
from onevision.bundle import BACKBONE, PREFILL, PREFILL_DATA, VISION, Manifest
from onevision.native.device import default_threads
from onevision.planning.cost import Shape
from onevision.runtime.prefill.graph import chunk_tokens
from onevision.runtime.prefill.policy import choose_backend

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


_LLAMA_CHUNK = 512  # tokens of a prompt that llama.cpp multiplies with each weight it reads


def work(
    manifest: Manifest, counts: Counts, calls: int | None = None, *, place: str, threads: int
) -> dict[str, Work]:
    """Operations and bytes of the stages that take the time, for one answer.

    Bytes are the weights, each time they are read, and the keys and values before a decoded token; what stays
    in caches is not counted.

    Args:
        manifest: Of the bundle.
        counts: Of the answer.
        calls: Of the encoder: on a CPU one per tile, and equal tiles share one. None: no two are equal.
        place: ``cpu`` or ``cuda``.
        threads: CPU threads.
    """
    shape, files = Shape.of(manifest), manifest.files
    weights = shape.backbone_weights * manifest.backbone.bits_per_weight / 8
    backbone = _arithmetic(files[BACKBONE].precision, place)
    found: dict[str, Work] = {}
    if tiles := counts.tiles if calls is None or place != "cpu" else calls:
        read = tiles * sum(info.bytes for name, info in files.items() if name.startswith(VISION))
        vision = _arithmetic(files[VISION].precision, place)
        found["encode"] = Work(shape.encode_flops(tiles), read, vision, "tile", tiles)
    prompt, decoded = counts.prompt_tokens, counts.completion_tokens - 1
    if choose_backend("auto", prompt, has_graph=PREFILL in files, offloaded=place != "cpu") == "onnx":
        read = files[PREFILL_DATA].bytes * -(-prompt // chunk_tokens(threads))
        prefill = _arithmetic(files[PREFILL].precision, place)
    else:
        read, prefill = round(weights * -(-prompt // _LLAMA_CHUNK)), backbone
    found["prefill"] = Work(shape.prefill_flops(prompt), read, prefill, "token", prompt)
    if decoded > 0:
        pasts = range(prompt, prompt + decoded)
        read = round(weights * decoded) + sum(pasts) * shape.kv_bytes_per_token
        found["decode"] = Work(sum(map(shape.decode_flops, pasts)), read, backbone, "token", decoded)
    return found


def _arithmetic(stored: str | None, place: str) -> str:
    """Arithmetic of matmuls with a file's weights; llama.cpp's quantized types multiply int8 activations."""
    if stored in {"f32", "fp32", None} or (stored == "fp16" and place == "cpu"):  # computed in float32 there
        return "fp32"
    if stored == "f16":
        return "fp16"
    return stored if stored in get_args(Arithmetic) else "int8"


@dataclass(frozen=True)
class Utilization:
    """Shares of the machine's limits, 0 to 1; None without a rate. Caches can exceed the bandwidth."""

    flops: float | None
    bandwidth: float | None


def utilization(work: Work, ms: float, rates: Rates | None) -> Utilization:
    """How close a stage of so many milliseconds gets to the machine's limits."""
    if not rates or ms <= 0:
        return Utilization(None, None)
    limit, seconds = rates.flops(work.precision), ms / 1e3
    return Utilization(
        work.flops / seconds / limit if limit else None,
        work.bytes / seconds / rates.read if rates.read else None,
    )
