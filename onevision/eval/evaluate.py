"""Evaluation of a bundle: choose questions, ask, resume, score, compare.

``questions -> ask -> records -> report``; with another bundle, checkpoint or answers file to compare with,
the same questions are asked there afterwards: two models are never loaded at once.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from onevision.bundle import MANIFEST, open_bundle
from onevision.errors import UsageError
from onevision.eval.ask import EvalSettings, ask, of_bundle, run_id
from onevision.eval.compare import EvalComparison, compare, matched
from onevision.eval.records import AnswersFile, Record, read_records
from onevision.eval.report import EvalReport, report
from onevision.extras import require
from onevision.models import default_bundle
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from onevision.bundle import Bundle
    from onevision.eval.ask import Answerer
    from onevision.eval.questions import QuestionSet
    from onevision.native.device import Device
    from onevision.progress import Progress
    from onevision.runtime.options import Prefill

    #: Context that loads a model: its name, the model, and pixels per side of its tiles.
    Loading = AbstractContextManager[tuple[str, Answerer, int]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a bundle and, if it was compared, the comparison."""

    bundle: Bundle
    questions: QuestionSet
    settings: EvalSettings
    prefill: Prefill
    records: tuple[Record, ...]
    report: EvalReport
    against: str | None = None  # name of what it was compared with
    comparison: EvalComparison | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentence about questions that could not be asked."""
        bad = [record for record in self.records if record.error is not None]
        if not bad:
            return ()
        count = "1 question" if len(bad) == 1 else f"{len(bad):,} questions"
        return (f"{count} could not be asked, and count as wrong; {bad[0].id}: {bad[0].error}",)

    def to_dict(self) -> dict[str, Any]:
        """JSON object of ``onevision eval --json``."""
        data = {"bundle": str(self.bundle.folder), **self.questions.source, **asdict(self.settings)}
        data |= {"prefill": self.prefill, **self.report.to_dict()}
        if self.comparison is not None:
            data["against"] = {"name": self.against, **self.comparison.to_dict()}
        return data


def evaluate(
    folder: Path | None,
    questions: QuestionSet,
    settings: EvalSettings,
    progress: Progress,
    *,
    answers: AnswersFile | None = None,
    against: Path | None = None,
    prefill: Prefill = "auto",
    device: Device = "auto",
    threads: int | None = None,
    check: bool = False,
) -> Evaluation:
    """Ask a bundle questions and score its answers.

    Args:
        folder: The bundle; None for the tiny model.
        questions: Questions to ask, see :func:`onevision.eval.questions.choose_questions`.
        settings: Options of all questions.
        progress: Reports each model's progress and share of right answers.
        answers: File that takes the answers; an interrupted run is resumed.
        against: Also compare with this bundle, checkpoint or answers file.
        prefill: Prefill backend of the bundle; the other one is read by llama.cpp.
        device: See :meth:`onevision.runtime.engine.OneVision.load`.
        threads: CPU threads; None for all cores.
        check: Compare checksums of all files of the bundles, not only their sizes.

    Raises:
        UsageError: Options that exclude each other, or the answers file is of another run.
        InputError: Questions, or an answers file, that cannot be used.
        BundleError, CheckpointError, DeviceError: A model cannot be loaded.
    """
    if settings.frames is not None and "suite" in questions.source:
        raise UsageError("--frames needs --questions: the videos of a suite are used whole")
    load = partial(_loaded, device=device, threads=threads)
    other = None if against is None else _other(against, questions, load, settings, progress, check=check)
    bundle = open_bundle(folder or default_bundle(), check=check)
    run = run_id(bundle.manifest, settings, prefill)
    if answers:
        answers.check(questions, run)
    asked = partial(_run, questions=questions, settings=settings, progress=progress)
    records = asked(partial(load, bundle, prefill=prefill), run=run, file=answers)
    comparison = None
    if other is not None:
        others = other if isinstance(other, list) else asked(other, run=str(against))
        comparison = compare(records, others)
    name = None if against is None else str(against)
    return Evaluation(bundle, questions, settings, prefill, tuple(records), report(records), name, comparison)


def _other(
    against: Path,
    questions: QuestionSet,
    load: Callable[[Bundle], Loading],
    settings: EvalSettings,
    progress: Progress,
    *,
    check: bool,
) -> Callable[[], Loading] | list[Record]:
    """Model to compare with, or the records of another run."""
    if against.is_file():
        return matched(questions, read_records(against), against)
    if (against / "config.json").is_file() and not (against / MANIFEST).is_file():
        if not settings.is_reference:
            raise UsageError(
                "a checkpoint in transformers takes no --max-tiles, --detail or --dedup",
                hint="compare with a bundle, or with the answers file of another run",
            )
        require("proof", "a checkpoint in transformers")
        return partial(_reference, against, progress)
    return partial(load, open_bundle(against, check=check))


@contextmanager
def _loaded(
    bundle: Bundle, *, device: Device, threads: int | None, prefill: Prefill = "llama"
) -> Iterator[tuple[str, Answerer, int]]:
    """A bundle, loaded and closed again."""
    with OneVision(bundle, device=device, threads=threads, prefill=prefill) as model:
        yield bundle.manifest.name, of_bundle(model), model.pipeline.preparer.anyres.tile


@contextmanager
def _reference(folder: Path, progress: Progress) -> Iterator[tuple[str, Answerer, int]]:
    """A checkpoint in transformers."""
    from onevision.eval.reference import ReferenceModel

    progress.note("loading the reference")
    reference = ReferenceModel(folder)
    yield "reference", reference, reference.tile


def _run(
    load: Callable[[], Loading],
    *,
    questions: QuestionSet,
    settings: EvalSettings,
    progress: Progress,
    run: str,
    file: AnswersFile | None = None,
) -> list[Record]:
    """Load a model and ask it all questions; with a file, resume after the answers in it."""
    records = list(file.kept) if file else []
    right = sum(record.right for record in records)
    if file and records:
        progress.note(f"resuming after {len(records):,} answers in {file.part}")
    try:
        with (
            file.writing() if file else nullcontext() as write,
            load() as (name, answerer, tile),
            progress.step(name) as advance,
        ):
            for record in ask(answerer, islice(questions, len(records), None), settings, tile=tile, run=run):
                if write:
                    write(record)
                records.append(record)
                right += record.right
                done, total = len(records), len(questions)
                advance(done / total, f"{done:,}/{total:,}, {right / done:.0%} right")
    finally:
        if file and (kept := file.count()):
            progress.note(
                f"{kept:,} of {len(questions):,} answers are in {file.part}; run the same command to resume"
            )
    return records
