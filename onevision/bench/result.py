"""The result of a benchmark: what was run, on what, and every measurement, as one JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from onevision.errors import ResultError, UsageError
from onevision.export.disk import whole_file
from onevision.typed import build

if TYPE_CHECKING:
    from pathlib import Path

#: Raised when files of earlier versions can no longer be read.
SCHEMA_VERSION = 2

_HINT = "measure again with: onevision bench --out FILE"


@dataclass(frozen=True)
class Counts:
    """Amount of work. ``prompt_tokens`` include ``image_tokens``."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    tiles: int


@dataclass(frozen=True)
class Run:
    """One timed answer.

    Attributes:
        stages_ms: By stage of the engine; stages do not overlap.
        prefill_ms: Parts of that stage: images and text.
        tiles_ms: Each call of the encoder.
        tokens_ms: Each decoded token: the latencies between tokens.
        ttft_ms: From the bytes in hand to the first token; None of an engine that only encodes.
        total_ms: To the last token.
        gauge_ms: A fixed piece of work just before the run: how fast the machine was.
        joules: Energy of the processor or the GPU; None if the system does not report it.
        output: Hash of the token ids.
    """

    stages_ms: dict[str, float]
    prefill_ms: dict[str, float]
    tiles_ms: tuple[float, ...]
    tokens_ms: tuple[float, ...]
    ttft_ms: float | None
    total_ms: float
    gauge_ms: float | None
    joules: float | None
    output: str

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
    """Least work of a stage: operations, bytes to read, arithmetic; for ``units`` tiles or tokens (``per``)."""

    flops: int
    bytes: int
    precision: str
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
    """Times to load the bundle: from the disk (None if the cache cannot be dropped), and from memory."""

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
    """Limits of a device. None: not measured, or the engine has no such arithmetic.

    Attributes:
        place: ``cpu`` or ``cuda``.
        threads: CPU threads.
        read: Bytes of memory read per second.
        engines: Operations per second by engine and arithmetic; integer operations for ``int8``.
    """

    place: str
    threads: int
    read: float | None
    engines: dict[str, dict[str, float | None]]

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
        UsageError: The file cannot be read.
        ResultError: It is damaged or has another schema version.
    """
    try:
        return parse_result(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ResultError(f"{path} is not a benchmark result: it is not text", hint=_HINT) from error


def parse_result(text: str, where: str) -> Result:
    """A result from its JSON; ``where`` is its name in errors. See :func:`read_result`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{where} is not valid JSON: {error}", hint=_HINT) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version is None:
        raise ResultError(f"{where} is not a benchmark result: it has no schema version", hint=_HINT)
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{where} has schema version {version!r}; this version of onevision reads {SCHEMA_VERSION}",
            hint=_HINT,
        )
    try:
        return build(Result, data)
    except ValueError as error:
        raise ResultError(f"{where} (schema version {version}): {error}", hint=_HINT) from error
