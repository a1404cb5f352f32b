"""Answers of a run: records, and the JSON Lines file that they are written to one by one.

Until the last answer is written the file is called ``FILE.part``; the next run with the same questions and
options resumes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice, zip_longest
from pathlib import Path

from onevision.errors import InputError, OneVisionError, UsageError
from onevision.eval.jsonl import read_as, to_line
from onevision.eval.suite import Sample, score
from onevision.eval.suite.sample import Form, InputKind
from onevision.files import os_errors
from onevision.runtime.answer import FinishReason


@dataclass(frozen=True)
class EvalReply:
    """A model's answer, or the reason why the question could not be asked."""

    text: str
    finish_reason: FinishReason | None = None
    ttft_ms: float | None = None
    image_tokens: int | None = None
    tiles: int | None = None  # passes of the encoder, without reused frames
    error: str | None = None


@dataclass(frozen=True)
class Record:
    """A question with its reply: one line of an answers file."""

    id: str
    family: str
    kind: InputKind
    form: Form
    prompt: str
    answers: tuple[str, ...]
    chance: float | None
    text: str
    right: bool
    finish_reason: FinishReason | None
    ttft_ms: float | None
    image_tokens: int | None
    tiles: int | None
    error: str | None  # why the question could not be asked; it counts as wrong
    run: str  # of :func:`onevision.eval.ask.run_id`

    @classmethod
    def of(cls, sample: Sample, reply: EvalReply, run: str) -> Record:
        """Score a reply."""
        return cls(
            id=sample.id,
            family=sample.family,
            kind=sample.kind,
            form=sample.form,
            prompt=sample.prompt,
            answers=sample.answers,
            chance=sample.chance,
            right=reply.error is None and score(sample, reply.text),
            run=run,
            **asdict(reply),
        )

    @property
    def reply(self) -> EvalReply:
        """The reply alone."""
        return EvalReply(**{item.name: getattr(self, item.name) for item in fields(EvalReply)})


def read_records(path: Path, *, unfinished: bool = False) -> list[Record]:
    """Read an answers file.

    Args:
        path: A file that ``onevision eval -o`` wrote.
        unfinished: The run was interrupted: leave out a last line that is cut off.

    Raises:
        InputError: The file cannot be read, or is not an answers file.
    """
    return read_as(Record, path, "an answer", unfinished=unfinished)


class AnswersFile:
    """The answers file of a run, written while the run goes on.

    Args:
        path: The file; ``part`` until all answers are there.
        force: Replace an existing file.

    Attributes:
        part: The unfinished file.
        kept: Records of an interrupted run that ``part`` already holds.

    Raises:
        UsageError: The file exists.
        InputError: ``part`` exists and is not an answers file.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not an answers file")
        if path.exists() and not force:
            raise UsageError(f"{path} exists", hint="choose another -o/--output, or --force to replace it")
        self._path = path
        self.part = path.with_name(f"{path.name}.part")
        try:
            self.kept = read_records(self.part, unfinished=True) if self.part.exists() else []
        except InputError as error:
            raise InputError(error.message, hint="delete it, or choose another -o/--output") from error

    def count(self) -> int:
        """Answers in ``part``; 0 when the file is finished."""
        return self.part.read_bytes().count(b"\n") if self.part.exists() else 0

    def check(self, samples: Iterable[Sample], run: str) -> None:
        """Check that ``part`` holds the beginning of this run.

        Raises:
            UsageError: It holds other questions, or answers of another bundle or with other options.
        """
        for record, sample in zip_longest(self.kept, islice(samples, len(self.kept))):
            if sample is None or Record.of(sample, record.reply, run) != record:
                raise UsageError(
                    f"{self.part} is of another run: its answer {record.id!r} is not one of these",
                    hint="delete it, or choose another -o/--output",
                )

    @contextmanager
    def writing(self) -> Iterator[Callable[[Record], None]]:
        """Append to ``part``, and give it its final name when the body ends without an error.

        Yields:
            A function that writes one record and hands it to the operating system.

        Raises:
            UsageError: The file cannot be written there.
            OneVisionError: The operating system refuses a write, for example because the disk is full.
        """
        with os_errors(f"write {self.part}", UsageError):
            file = self.part.open("a+b")

        def write(record: Record) -> None:
            file.write(to_line(asdict(record)))
            file.flush()

        try:
            with os_errors(f"write {self.part}", OneVisionError):
                with file:
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
                    yield write
                self.part.replace(self._path)
        finally:
            if self.part.exists() and not self.part.stat().st_size:
                self.part.unlink()
