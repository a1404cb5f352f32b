"""What came of each question, and the file of it: JSON Lines, written as the answers come.

Until the last answer is there the file is called ``FILE.part``, and a run that finds one of its own goes on
after it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from onevision.errors import InputError, OneVisionError, UsageError
from onevision.eval.jsonl import read_objects, to_line
from onevision.eval.suite import score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from onevision.eval.suite import Sample
    from onevision.eval.suite.sample import Form, Kind
    from onevision.runtime.answer import FinishReason


@dataclass(frozen=True)
class Reply:
    """What a model said, or why it could not be asked."""

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
    kind: Kind
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
    def of(cls, sample: Sample, reply: Reply, run: str) -> Record:
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
    def reply(self) -> Reply:
        """Without the question."""
        return Reply(**{item.name: getattr(self, item.name) for item in fields(Reply)})


#: Types of the keys of a line.
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "family": (str,),
    "kind": (str,),
    "form": (str,),
    "prompt": (str,),
    "answers": (list,),
    "chance": (float, int, type(None)),
    "text": (str,),
    "right": (bool,),
    "finish_reason": (str, type(None)),
    "ttft_ms": (float, int, type(None)),
    "image_tokens": (int, type(None)),
    "tiles": (int, type(None)),
    "error": (str, type(None)),
    "run": (str,),
}


def read_records(path: Path, *, unfinished: bool = False) -> list[Record]:
    """An answers file.

    Args:
        path: Of a run with ``-o``.
        unfinished: The run was stopped: what it wrote of its last line is left out.

    Raises:
        InputError: The file cannot be read, or is no answers file.
    """
    return [
        _record(data, f"{path}, line {number}")
        for number, data in read_objects(path, unfinished=unfinished).items()
    ]


def _record(data: dict[str, Any], where: str) -> Record:
    for key, types in _TYPES.items():
        if key not in data or not isinstance(data[key], types):
            raise InputError(f"{where} is no answer: it has no {key}, or a wrong one")
    return Record(**{key: data[key] for key in _TYPES} | {"answers": tuple(data["answers"])})


class AnswersFile:
    """Where the answers of a run go, as they come.

    Args:
        path: The file; ``part`` until all answers are there.
        force: Replace a file of that name.

    Attributes:
        part: What is written to.
        kept: Records in it, of the same run when it was stopped.

    Raises:
        UsageError: The file exists.
        InputError: ``part`` exists and is no answers file.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not a file of answers")
        if path.exists() and not force:
            raise UsageError(f"{path} exists", hint="choose another -o/--answers, or --force to replace it")
        self._path = path
        self.part = path.with_name(f"{path.name}.part")
        try:
            self.kept = read_records(self.part, unfinished=True) if self.part.exists() else []
        except InputError as error:
            raise InputError(error.message, hint="remove it, or choose another -o/--answers") from error

    def count(self) -> int:
        """Answers in ``part``; 0 when the file is finished."""
        return self.part.read_bytes().count(b"\n") if self.part.exists() else 0

    def check(self, samples: Iterable[Sample], run: str) -> None:
        """Whether what is kept is the beginning of this run.

        Raises:
            UsageError: It is of other questions, another bundle or other options.
        """
        for record, sample in zip_longest(self.kept, islice(samples, len(self.kept))):
            if sample is None or Record.of(sample, record.reply, run) != record:
                raise UsageError(
                    f"{self.part} is of another run: its answer {record.id!r} is not one of these",
                    hint="remove it, or choose another -o/--answers",
                )

    @contextmanager
    def writing(self) -> Iterator[Callable[[Record], None]]:
        """Open the file behind what is kept, and give it its name when the body has ended well.

        Yields:
            What adds a record, and hands it to the operating system.

        Raises:
            UsageError: The file cannot be written there.
            OneVisionError: The operating system refuses a write: the disk is full, say.
        """
        try:
            file = self.part.open("a+b")
        except OSError as error:
            raise UsageError(f"cannot write {self.part}: {error.strerror or error}") from error

        def write(record: Record) -> None:
            file.write(to_line(asdict(record)))
            file.flush()

        try:
            with file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                yield write
            self.part.replace(self._path)
        except OSError as error:
            raise OneVisionError(f"cannot write {self.part}: {error.strerror or error}") from error
        finally:
            if self.part.exists() and not self.part.stat().st_size:
                self.part.unlink()
