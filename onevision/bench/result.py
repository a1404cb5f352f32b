"""What a benchmark has measured, as a file that is there whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from onevision.errors import ResultError, UsageError
from onevision.files import whole_file
from onevision.typed import build

if TYPE_CHECKING:
    from pathlib import Path

#: Counts up when a file of before can no longer be read.
SCHEMA_VERSION = 1

_HINT = "measure again with: onevision bench --out FILE"


@dataclass(frozen=True)
class Counts:
    """How much there was to do. ``prompt_tokens`` include ``image_tokens``."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    tiles: int


@dataclass(frozen=True)
class Run:
    """One answer, in milliseconds.

    Attributes:
        stages: By stage of the engine; they do not overlap.
        prefill: Of that stage, by what was read: ``picture`` and ``text``.
        tiles: Of encode, each call.
        tokens: Of decode, each token: the latencies between tokens.
        ttft: From the bytes in hand to the first token; None of an engine that only encodes.
        total: To the last token.
        gauge: A fixed piece of work just before: how fast the machine was at that time.
        joules: Energy of the processor or the GPU; None where the system does not tell.
        output: Hash of the token ids.
    """

    stages: dict[str, float]
    prefill: dict[str, float]
    tiles: tuple[float, ...]
    tokens: tuple[float, ...]
    ttft: float | None
    total: float
    gauge: float | None
    joules: float | None
    output: str

    @property
    def tpot(self) -> float | None:
        """Milliseconds per output token after the first."""
        if self.ttft is None or not self.tokens:
            return None
        return (self.total - self.ttft) / len(self.tokens)


@dataclass(frozen=True)
class Memory:
    """Bytes, sampled in a run that is not timed: of the process, and by stage; of the whole GPU."""

    peak: int
    stages: dict[str, int]
    gpu_peak: int | None


@dataclass(frozen=True)
class Work:
    """What a stage has to do at least: operations, bytes of memory to read, and its arithmetic."""

    flops: int
    bytes: int
    precision: str
    per: str  # tile or token, of which there are ``units``
    units: int


@dataclass(frozen=True)
class Measured:
    """One scenario on one engine. ``skipped`` says why there are no runs."""

    scenario: str
    subject: str
    counts: Counts | None
    runs: tuple[Run, ...]
    memory: Memory | None
    work: dict[str, Work]
    skipped: str | None


@dataclass(frozen=True)
class Load:
    """Milliseconds to load the whole bundle: from the disk, where that can be had, and from memory."""

    cold: float | None
    warm: tuple[float, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What was measured."""

    name: str
    bytes: int
    vision: str
    backbone: str
    cache: str  # type of keys and values
    sha256: str  # of the manifest


@dataclass(frozen=True)
class Result:
    """A whole benchmark. ``started`` is in UTC; ``machine`` and ``rates`` are those of their modules."""

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
    rates: dict[str, Any] | None
    load: Load | None
    measured: tuple[Measured, ...]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def write_result(path: Path, result: Result) -> None:
    """Write a result, replacing one that is there.

    Raises:
        ExportError: The file cannot be written.
    """
    data = result.to_json().encode() + b"\n"
    with whole_file(path, len(data)) as part:
        part.write_bytes(data)


def read_result(path: Path) -> Result:
    """Read what :func:`write_result` wrote, or what ``onevision bench --json`` printed.

    Raises:
        UsageError: The file cannot be read.
        ResultError: It is damaged, or of another schema version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ResultError(f"{path} is no result of a benchmark: it is no text", hint=_HINT) from error
    return parse_result(text, str(path))


def parse_result(text: str, where: str) -> Result:
    """A result from its text; see :func:`read_result`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{where} is not valid JSON: {error}", hint=_HINT) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version is None:
        raise ResultError(f"{where} is no result of a benchmark: it has no schema version", hint=_HINT)
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{where} has schema version {version!r}, and this version of onevision reads {SCHEMA_VERSION}",
            hint=_HINT,
        )
    try:
        return build(Result, data)
    except ValueError as error:
        raise ResultError(f"{where} (schema version {version}): {error}", hint=_HINT) from error
