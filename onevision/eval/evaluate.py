"""Evaluation of a bundle: choose questions, ask, resume, score, compare.

``questions -> ask -> records -> report``; with another bundle, checkpoint or answers file to compare with,
the same questions are asked there afterwards: two models are never loaded at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from onevision.bundle import MANIFEST, Bundle, open_bundle
from onevision.errors import UsageError
from onevision.eval import See
from onevision.eval.ask import Answerer, EvalSettings, ask, of_bundle, run_id
from onevision.eval.compare import EvalComparison, compare, matched
from onevision.eval.questions import Questions, choose_questions
from onevision.eval.records import AnswersFile, Record, read_records
from onevision.eval.report import EvalReport, report
from onevision.extras import require
from onevision.models import default_bundle
from onevision.native.device import Device
from onevision.progress import LogProgress, Progress
from onevision.runtime.engine import OneVision
from onevision.runtime.options import AnswerOptions, Prefill

#: Context that loads a model: its name, the model, and pixels per side of its tiles.
Loading = AbstractContextManager[tuple[str, Answerer, int]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a bundle and, if it was compared, the comparison."""

    bundle: Bundle
    source: dict[str, Any]  # where the questions come from
    settings: EvalSettings
    prefill: Prefill
    records: tuple[Record, ...]
    report: EvalReport
    against: str | None = None  # name of what it was compared with
    comparison: EvalComparison | None = None
    fallbacks: tuple[str, ...] = ()  # of the models, see Pipeline.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """Fallbacks of the models, and a sentence about questions that could not be asked."""
        bad = [record for record in self.records if record.error is not None]
        if not bad:
            return self.fallbacks
        count = "1 question" if len(bad) == 1 else f"{len(bad):,} questions"
        failed = f"{count} could not be asked, and count as wrong; {bad[0].id}: {bad[0].error}"
        return (*self.fallbacks, failed)

    def to_dict(self) -> dict[str, Any]:
        """JSON object of ``onevision eval --json``."""
        data = {"bundle": str(self.bundle.folder), **self.source, **self.settings.to_dict()}
        data |= {"prefill": self.prefill, "warnings": list(self.warnings), **self.report.to_dict()}
        if self.comparison is not None:
            data["against"] = {"name": self.against, **self.comparison.to_dict()}
        return data


def evaluate(
    bundle: str | os.PathLike[str] | None = None,
    *,
    suite: str | None = None,
    questions: str | os.PathLike[str] | None = None,
    families: Sequence[str] = (),
    limit: int | None = None,
    seed: int | None = None,
    see: See = "all",
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    against: str | os.PathLike[str] | None = None,
    options: AnswerOptions | None = None,
    prefill: Prefill = "auto",
    device: Device = "auto",
    threads: int | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask a bundle questions, score its answers, and compare them with another run.

    Args:
        bundle: Folder of the bundle; None for the tiny model.
        suite: Name of a suite of generated questions; None for ``tiny``.
        questions: Instead of a suite: a JSONL file, or a folder with ``questions.jsonl``.
        families: Families of questions to ask; empty for all.
        limit: Number of questions; None for 100 of each family of a suite, or the whole file.
        seed: Seed of a suite; None for 0.
        see: Visual input that the model gets, see :data:`onevision.eval.See`.
        output: File for the answers, as JSONL; an interrupted run is resumed.
        force: Replace ``output``.
        against: Also compare with this bundle, checkpoint or answers file.
        options: Options of all answers; None for greedy ones of up to 64 tokens.
        prefill: Prefill backend; the other bundle's is llama.cpp.
        device: See :func:`onevision.load`.
        threads: CPU threads; None for all cores.
        check: Compare checksums of all files of the bundles, not only sizes.
        progress: Receives each model's progress and share of right answers; None for the log.

    Raises:
        UsageError: Options that exclude each other, or ``output`` exists or is of another run.
        InputError: Questions, or an answers file, that cannot be used.
        BundleError, CheckpointError, DeviceError: A model cannot be loaded.
    """
    progress = progress or LogProgress()
    settings = EvalSettings(see) if options is None else EvalSettings(see, options)
    # Everything is checked before a model is loaded.
    chosen, source = choose_questions(suite, _path(questions), families=families, limit=limit, seed=seed)
    if settings.options.frames is not None and questions is None:
        raise UsageError("--frames needs --questions: the videos of a suite are used whole")
    if force and output is None:
        raise UsageError("--force needs -o/--output: no other file is written")
    answers = None if output is None else AnswersFile(Path(output), force=force)
    noted: dict[str, None] = {}
    load = partial(_loaded, device=device, threads=threads, noted=noted)
    opened = open_bundle(default_bundle() if bundle is None else bundle, check=check)
    template = settings.options.template or opened.manifest.prompt.template
    other = None
    if against is not None:
        other = _other(Path(against), chosen, load, settings, progress, template=template, check=check)
    run = run_id(opened.manifest, settings, prefill)
    if answers:
        answers.check(chosen, run)
    asked = partial(_run, questions=chosen, settings=settings, progress=progress)
    records = asked(partial(load, opened, prefill=prefill), run=run, file=answers)
    comparison = None
    if other is not None:
        others = other if isinstance(other, list) else asked(other, run=str(against))
        comparison = compare(records, others)
    name = None if against is None else str(against)
    scores = report(records)
    return Evaluation(
        opened, source, settings, prefill, tuple(records), scores, name, comparison, tuple(noted)
    )


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _other(
    against: Path,
    questions: Questions,
    load: Callable[[Bundle], Loading],
    settings: EvalSettings,
    progress: Progress,
    *,
    template: str,
    check: bool,
) -> Callable[[], Loading] | list[Record]:
    """Model to compare with, or the records of another run."""
    if against.is_file():
        return matched(questions, read_records(against), against)
    if (against / "config.json").is_file() and not (against / MANIFEST).is_file():
        if not settings.is_reference:
            raise UsageError(
                "a checkpoint in transformers takes no --max-tiles, --detail, --dedup, --no-exif, "
                "--template, --system or form",
                hint="compare with a bundle, or with the answers file of another run",
            )
        if template != "training":
            raise UsageError(
                f"a checkpoint in transformers is asked in the format of training, the bundle in {template}",
                hint="--template training",
            )
        require("proof", "a checkpoint in transformers")
        return partial(_reference, against, progress)
    return partial(load, open_bundle(against, check=check))


@contextmanager
def _loaded(
    bundle: Bundle, *, device: Device, threads: int | None, noted: dict[str, None], prefill: Prefill = "llama"
) -> Iterator[tuple[str, Answerer, int]]:
    """A bundle, loaded and closed again; its fallbacks are added to ``noted``."""
    with OneVision(bundle, device=device, threads=threads, prefill=prefill) as model:
        yield bundle.manifest.name, of_bundle(model), model.pipeline.preparer.anyres.tile
        noted.update(dict.fromkeys(model.pipeline.warnings))


@contextmanager
def _reference(folder: Path, progress: Progress) -> Iterator[tuple[str, Answerer, int]]:
    """A checkpoint in transformers."""
    from onevision.eval.ask import ReferenceModel

    progress.note("loading the reference")
    reference = ReferenceModel(folder)
    yield "reference", reference, reference.tile


def _run(
    load: Callable[[], Loading],
    *,
    questions: Questions,
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
