"""The result of a benchmark as one JSON file, and statistics over its runs. Times are in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onevision.errors import ResultError
from onevision.files import whole_file
from onevision.runtime.clock import STAGES
from onevision.typed import build, read_json

#: Raised when files of earlier versions can no longer be read.
SCHEMA_VERSION = 2
_HINT = "measure again with: onevision bench --output FILE"


@dataclass(frozen=True)
class Counts:
    """Amount of work of an answer. ``prompt_tokens`` include ``image_tokens``."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    tiles: int


@dataclass(frozen=True)
class Run:
    """One timed answer."""

    stages_ms: dict[str, float]  # by stage of the engine; stages do not overlap
    prefill_ms: dict[str, float]  # parts of that stage: images and text
    tiles_ms: tuple[float, ...]  # each call of the encoder
    tokens_ms: tuple[float, ...]  # each decoded token: the latencies between tokens
    ttft_ms: float | None  # from the bytes in hand to the first token; None of engines that only encode
    total_ms: float  # to the last token
    gauge_ms: float | None  # a fixed piece of work just before: how fast the machine was
    joules: float | None  # of the processor or the GPU; None if the system does not report it
    output: str  # hash of the token ids

    @property
    def tpot(self) -> float | None:
        """Milliseconds per output token after the first."""
        if self.ttft_ms is None or not self.tokens_ms:
            return None
        return (self.total_ms - self.ttft_ms) / len(self.tokens_ms)


@dataclass(frozen=True)
class Memory:
    """Peak bytes in a run that is not timed: of the process, by stage, and of the whole GPU."""

    peak: int
    stages: dict[str, int]
    gpu_peak: int | None


@dataclass(frozen=True)
class Work:
    """Least work of a stage: operations and bytes to read, for ``units`` tiles or tokens (``per``)."""

    flops: int
    bytes: int
    precision: str  # arithmetic
    per: str
    units: int


@dataclass(frozen=True)
class Measured:
    """One scenario on one engine. ``skipped`` says why there are no (more) runs."""

    scenario: str
    engine: str
    counts: Counts | None
    runs: tuple[Run, ...]
    memory: Memory | None
    work: dict[str, Work]
    skipped: str | None


@dataclass(frozen=True)
class Load:
    """Times to load the bundle: from the disk (None if the system keeps files cached), and from memory."""

    cold_ms: float | None
    warm_ms: tuple[float, ...]


@dataclass(frozen=True)
class ModelFacts:
    """The measured bundle. ``cache`` is the type of keys and values, ``sha256`` the manifest's."""

    name: str
    bytes: int
    vision: str
    backbone: str
    cache: str
    sha256: str


@dataclass(frozen=True)
class Rates:
    """Limits of a device: bytes read and operations per second. None: not measured, or no such arithmetic."""

    place: str  # cpu or cuda
    threads: int
    read: float | None
    engines: dict[str, dict[str, float | None]]  # by engine and arithmetic

    def flops(self, precision: str) -> float | None:
        """Operations per second of the fastest engine."""
        found = [rates.get(precision) for rates in self.engines.values()]
        return max((rate for rate in found if rate), default=None)


@dataclass(frozen=True)
class Result:
    """A benchmark. ``started`` is in UTC; ``machine`` comes from :mod:`onevision.bench.machine`."""

    schema_version: int
    onevision: str
    started: str
    model: ModelFacts
    device: str
    threads: int
    runs: int
    isolated: bool
    interrupted: bool
    machine: dict[str, Any]
    rates: Rates | None
    load: Load | None
    measured: tuple[Measured, ...]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def write_result(path: Path, result: Result) -> None:
    """Write a result atomically, replacing an earlier one.

    Raises:
        ExportError: The file cannot be written.
    """
    data = result.to_json().encode() + b"\n"
    with whole_file(path, len(data)) as part:
        part.write_bytes(data)


def read_result(path: Path) -> Result:
    """Read a file of :func:`write_result` or of ``onevision bench --json``.

    Raises:
        ResultError: It cannot be read, is damaged or has another schema version.
    """
    try:
        data = read_json(path)
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ResultError(f"{path} is not a benchmark result: it is not valid JSON", hint=_HINT) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version is None:
        raise ResultError(f"{path} is not a benchmark result: it has no schema version", hint=_HINT)
    if version != SCHEMA_VERSION:
        reads = f"this version of onevision reads {SCHEMA_VERSION}"
        raise ResultError(f"{path} has schema version {version!r}; {reads}", hint=_HINT)
    try:
        return build(Result, data)
    except ValueError as error:
        raise ResultError(f"{path} (schema version {version}): {error}", hint=_HINT) from error


#: Bootstrap resamples, and the probability outside an interval: dozens of stages are compared.
DRAWS, LEFT_OUT = 4000, 0.002


@dataclass(frozen=True)
class Summary:
    """Summary of ``n`` values in their unit; ``sd`` is the sample's, 0 for one value."""

    n: int
    min: float
    median: float
    p90: float
    p99: float
    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary | None:
        """None without values."""
        if not values:
            return None
        median, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99)).tolist()
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(len(values), min(values), median, p90, p99, float(np.mean(values)), sd)


def samples(measured: Measured) -> dict[str, list[float]]:
    """Times of each run by quantity: stages that were entered, ``ttft``, ``tpot``, ``total``."""
    runs = measured.runs
    found: dict[str, list[float]] = {
        **{stage: [run.stages_ms[stage] for run in runs if stage in run.stages_ms] for stage in STAGES},
        "ttft": [run.ttft_ms for run in runs if run.ttft_ms is not None],
        "tpot": [run.tpot for run in runs if run.tpot is not None],
        "total": [run.total_ms for run in runs],
    }
    return {name: values for name, values in found.items() if any(values)}


def details(measured: Measured) -> dict[str, list[float]]:
    """Times of parts of stages, all runs together: tiles, tokens, and prefill of images and text."""
    found: dict[str, list[float]] = {}
    for run in measured.runs:
        parts = {f"prefill {part}": (ms,) for part, ms in run.prefill_ms.items()}
        for name, times in ({"tile": run.tiles_ms, "token": run.tokens_ms} | parts).items():
            found.setdefault(name, []).extend(times)
    return {name: values for name, values in found.items() if values}


def median(measured: Measured, quantity: str) -> float | None:
    """Median of a quantity of :func:`samples`; None if there is none."""
    values = samples(measured).get(quantity)
    return float(np.median(values)) if values else None


def typical(measured: Measured) -> Run:
    """Run of the median total, the faster of two: its stages add up, medians of stages do not."""
    runs = sorted(measured.runs, key=lambda run: run.total_ms)
    return runs[(len(runs) - 1) // 2]


def unaccounted(run: Run) -> float:
    """Share of a run outside all stages, 0 to 1."""
    return 1 - sum(run.stages_ms.values()) / run.total_ms if run.total_ms else 0.0


def drifted(measured: Measured) -> bool:
    """Whether runs gave different tokens."""
    return len({run.output for run in measured.runs}) > 1


def bootstrap_ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Interval of the ratio of medians, ``after`` to ``before``; the same for the same numbers."""
    generator = np.random.default_rng(0)
    old, new = (
        np.median(generator.choice(values, (DRAWS, len(values))), axis=1) for values in (before, after)
    )
    low, high = np.quantile(new / old, (LEFT_OUT / 2, 1 - LEFT_OUT / 2)).tolist()
    return low, high
