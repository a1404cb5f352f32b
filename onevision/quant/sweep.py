"""A sweep: many precisions of one model, each measured, a line of ``sweep.jsonl`` each.

In: a bundle in floats, and precisions. Out: rows, written as they come. A sweep that was stopped goes on
after the last of them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from onevision import __version__
from onevision.errors import ExportError, InputError, UsageError
from onevision.eval.jsonl import read_objects, to_line
from onevision.quant.trials import Candidate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onevision.bundle import Manifest
    from onevision.quant.gates import Quality

ROWS, TABLE, REPORT, PICTURE = "sweep.jsonl", "sweep.csv", "sweep.json", "sweep.png"


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


def sweep_id(manifest: Manifest, *, samples: int, questions: int, calibration: str) -> str:
    """Twelve hexadecimal digits of what the figures depend on besides the candidate and the machine."""
    facts = json.dumps([__version__, manifest.to_json(), samples, questions, calibration])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


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
