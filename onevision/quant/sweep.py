"""A sweep: many precisions of one model, each measured, a line of ``sweep.jsonl`` each.

In: a bundle in floats, and candidates. Out: rows, written as they come, and at the end tables and a picture
of them all. A sweep that was stopped goes on after the last row.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onevision._version import __version__
from onevision.errors import ExportError, InputError, UsageError
from onevision.eval.jsonl import read_objects, to_line
from onevision.eval.questions import TinySuite
from onevision.files import scratch_folder, whole_file
from onevision.quant.calibration import files_in
from onevision.quant.pareto import plot
from onevision.quant.requantise import check_floats, precisions_of
from onevision.quant.speed import milliseconds_per_tile, milliseconds_per_token
from onevision.quant.trials import Candidate, Trials, with_and_without
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.bundle import Bundle
    from onevision.native.quantize import BackbonePrecision
    from onevision.progress import Progress
    from onevision.quant.gates import Quality
    from onevision.quant.requantise import EncoderPrecision
    from onevision.quant.trials import Yardstick

ROWS, TABLE, REPORT, PICTURE = "sweep.jsonl", "sweep.csv", "sweep.json", "sweep.png"
_SCRATCH = "trial"
#: What is compared unless something else is asked for.
VISIONS: tuple[EncoderPrecision, ...] = ("fp32", "int8")
BACKBONES: tuple[BackbonePrecision, ...] = ("f16", "q8_0", "q4_k_m", "iq4_nl", "q4_0")


def candidates_of(
    visions: Sequence[EncoderPrecision],
    backbones: Sequence[BackbonePrecision],
    imatrix: bool | None = None,
) -> list[Candidate]:
    """All pairs, with and without an importance matrix where that changes anything, or as told."""
    return [
        Candidate(vision, backbone, weighed)
        for vision in dict.fromkeys(visions)
        for backbone in dict.fromkeys(backbones)
        for weighed in with_and_without(backbone, imatrix)
    ]


@dataclass(frozen=True)
class Row(Candidate):
    """A candidate with what was measured of it. None: not measured, or not finite."""

    bytes: int = 0  # of the bundle
    bits_per_weight: float = 0.0  # of the backbone
    tile_ms: float = 0.0
    token_ms: float = 0.0
    cosine: float | None = None  # image features of the worst tile
    mean_kl: float | None = None
    p99_kl: float | None = None
    top1: float | None = None
    accuracy: float | None = None
    passed: bool = False
    reasons: tuple[str, ...] = ()
    run: str = ""  # see :func:`sweep_id`

    @property
    def candidate(self) -> Candidate:
        """Without the figures."""
        return Candidate(self.vision, self.backbone, self.imatrix)


def row_of(candidate: Candidate, quality: Quality, figures: dict[str, Any], run: str) -> Row:
    """A row from the gate's figures and the others: bytes, bits per weight, milliseconds."""
    features, tokens, answers = quality.features, quality.tokens, quality.answers
    return Row(
        **asdict(candidate),
        **figures,
        cosine=features.cosine if features else None,
        mean_kl=tokens.mean_kl if tokens else None,
        p99_kl=tokens.p99_kl if tokens else None,
        top1=tokens.top1 if tokens else None,
        accuracy=answers.accuracy if answers else None,
        passed=quality.passed,
        reasons=quality.reasons,
        run=run,
    )


def sweep(
    source: Bundle,
    folder: Path,
    candidates: Sequence[Candidate],
    yardstick: Yardstick,
    progress: Progress,
    *,
    force: bool = False,
) -> list[Row]:
    """Measure candidates, but for those that have a row already, and draw all rows.

    Args:
        source: A bundle in floats.
        folder: For :data:`ROWS`, :data:`TABLE`, :data:`REPORT` and :data:`PICTURE`; made if it is not there.
        candidates: What to measure.
        yardstick: What to measure with.
        progress: Told what goes on.
        force: Begin anew if the folder has rows of another sweep.

    Returns:
        The rows of the candidates, in their order.

    Raises:
        UsageError: See :class:`SweepFile`.
        QuantError: The source is quantised already, or cannot be.
        OneVisionError: Something cannot be made or measured. The rows that are there stay, as after Ctrl-C.
    """
    check_floats(source)
    run = sweep_id(source, yardstick)
    file = SweepFile(folder, run, force=force)
    for left in folder.glob(f".{_SCRATCH}.*"):  # by a sweep that was killed
        shutil.rmtree(left, ignore_errors=True)
    missing = [candidate for candidate in candidates if candidate not in file.measured]
    if len(missing) < len(candidates):
        progress.note(f"{len(candidates) - len(missing)} of {len(candidates)} rows are there already")
    try:
        with (
            scratch_folder(folder / _SCRATCH) as scratch,
            Trials(source, scratch, yardstick, progress) as trials,
        ):
            for number, candidate in enumerate(missing, 1):
                progress.note(f"{number} of {len(missing)}: {candidate.name}")
                file.add(_measured(trials, candidate, scratch, run))
    finally:
        if missing and missing[-1] not in file.measured:
            kept = f"{len(file.rows)} of {len(candidates)} rows are kept in {folder / ROWS}"
            progress.note(f"{kept}: the same command goes on after them")
    rows = [file.measured[candidate] for candidate in candidates]
    _write(rows, source, folder, run)
    return rows


def _measured(trials: Trials, candidate: Candidate, scratch: Path, run: str) -> Row:
    threads = trials.yardstick.threads
    with TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as place:
        draft = trials.make(candidate, Path(place))
        quality = trials.measure(draft)
        with OneVision(draft.bundle, device="cpu", threads=threads) as model:
            figures = {
                "bytes": draft.bundle.bytes,
                "bits_per_weight": draft.backbone.bits_per_weight,
                "tile_ms": milliseconds_per_tile(model),
                "token_ms": milliseconds_per_token(model),
            }
    return row_of(candidate, quality, figures, run)


def _write(rows: Sequence[Row], source: Bundle, folder: Path, run: str) -> None:
    """Tables and picture."""
    facts = {"bundle": source.manifest.name, "precisions": precisions_of(source), "run": run}
    report = facts | {"rows": [asdict(row) for row in rows]}
    texts = {TABLE: to_csv(rows), REPORT: json.dumps(report, indent=2, ensure_ascii=False) + "\n"}
    for name, text in texts.items():
        with whole_file(folder / name, len(text)) as part:
            part.write_text(text, encoding="utf-8")
    with whole_file(folder / PICTURE, 0) as part:
        plot(rows, part)


def sweep_id(source: Bundle, yardstick: Yardstick) -> str:
    """Twelve hexadecimal digits of what the figures depend on besides the candidate and the machine."""
    questions = yardstick.asked(source)
    asked = questions if isinstance(questions, TinySuite) else [(each.id, each.prompt) for each in questions]
    folder = yardstick.calibration
    pictures = None if folder is None else [(path.name, path.stat().st_size) for path in files_in(folder)]
    weighed = yardstick.imatrix and {name: seen.sums.sum() for name, seen in yardstick.imatrix.inputs.items()}
    facts = (__version__, source.manifest.to_json(), asked, pictures, weighed, yardstick.thresholds)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


class SweepFile:
    """The rows of a sweep on disk.

    Args:
        folder: Made if it is not there.
        run: Of :func:`sweep_id`.
        force: Begin anew if there are rows of another sweep.

    Attributes:
        rows: What is there.

    Raises:
        UsageError: Rows of another sweep, or the folder cannot be made.
        InputError: The file is damaged.
    """

    def __init__(self, folder: Path, run: str, *, force: bool = False) -> None:
        self._path, self._run = folder / ROWS, run
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {folder}: {error.strerror or error}") from error
        self.rows = read_rows(self._path) if self._path.exists() else []
        if others := [row for row in self.rows if row.run != run]:
            if not force:
                raise UsageError(
                    f"{self._path} is of another sweep: its {others[0].name} was measured against another "
                    "bundle, or by other questions",
                    hint="choose another folder, or --force to begin anew",
                )
            self.rows = [row for row in self.rows if row.run == run]
        self._rewrite()

    @property
    def measured(self) -> dict[Candidate, Row]:
        """Rows by candidate."""
        return {row.candidate: row for row in self.rows}

    def add(self, row: Row) -> None:
        """Write a row, and hand it to the operating system.

        Raises:
            ExportError: The operating system refuses.
        """
        try:
            with self._path.open("ab") as file:
                file.write(to_line(asdict(row)))
        except OSError as error:
            raise ExportError(f"cannot write {self._path}: {error.strerror or error}") from error
        self.rows.append(row)

    def _rewrite(self) -> None:
        """Leave out a line that was cut off, and rows of another sweep."""
        part = self._path.with_name(f".{self._path.name}.part")
        try:
            part.write_bytes(b"".join(to_line(asdict(row)) for row in self.rows))
            part.replace(self._path)
        except OSError as error:
            raise UsageError(f"cannot write in {self._path.parent}: {error.strerror or error}") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off is left out.

    Raises:
        InputError: The file cannot be read, or is no sweep.
    """
    return [
        _row(data, f"{path}, line {number}") for number, data in read_objects(path, unfinished=True).items()
    ]


def _row(data: dict[str, Any], where: str) -> Row:
    names = {item.name for item in fields(Row)}
    if data.keys() != names or not isinstance(data["reasons"], list):
        raise InputError(f"{where} is no row of a sweep", hint="remove the file, or choose another folder")
    return Row(**data | {"reasons": tuple(data["reasons"])})


def to_csv(rows: Sequence[Row]) -> str:
    """A table with a header; reasons are joined by semicolons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) | {"reasons": "; ".join(row.reasons)} for row in rows)
    return text.getvalue()
