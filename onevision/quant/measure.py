"""Measuring a candidate for the gate: the reference runs first, then each candidate follows it.

In: a bundle in floats and questions; then candidates. Out: a :class:`~onevision.quant.gates.GateResult` each.
Only one model is loaded at a time; what the reference computed waits in a folder: float32 image features, and
float32 logits, 0.6 MB per position for Qwen2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onevision.bundle import BACKBONE, VISION, VISION_DATA, Manifest
from onevision.errors import GenerationError, UsageError
from onevision.eval.ask import EvalSettings, ask, of_bundle
from onevision.eval.records import Record
from onevision.eval.suite import Sample
from onevision.files import disk_space
from onevision.progress import Advance
from onevision.quant.gates import (
    FeatureQuality,
    GateResult,
    Logits,
    Thresholds,
    TokenQuality,
    compare_answers,
    compare_features,
    compare_logits,
    judge,
    worst_features,
)
from onevision.runtime.engine import OneVision
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions
from onevision.runtime.prepare import PreparedPrompt

#: Maximum number of positions whose logits are kept, 1.2 GB for Qwen2; further samples are left out.
MAX_POSITIONS = 2_000
#: Maximum length of a reference answer.
MAX_TOKENS = 32


@dataclass(frozen=True, eq=False)
class ReferenceAnswer:
    """The reference's answer to a sample. ``positions`` includes that of the end token, if it ended."""

    sample: Sample
    tokens: tuple[int, ...]
    positions: int


@dataclass(frozen=True, eq=False)
class GateReference:
    """What the reference computed, see :func:`record_reference`.

    Attributes:
        manifest: The reference bundle's.
        answers: Greedy answers that candidates follow token by token.
        questions: Questions whose answers are scored.
        records: The reference's answers to these.
        folder: Logits and image features of ``answers``.
    """

    manifest: Manifest
    answers: tuple[ReferenceAnswer, ...]
    questions: tuple[Sample, ...]
    records: tuple[Record, ...]
    folder: Path

    @property
    def precision(self) -> str:
        """Precisions of vision encoder and backbone: ``fp32 + f32``."""
        return " + ".join(str(self.manifest.files[name].precision) for name in (VISION, BACKBONE))


def record_reference(
    model: OneVision,
    samples: Iterable[Sample],
    folder: Path,
    *,
    questions: Iterable[Sample] = (),
    advance: Advance | None = None,
) -> GateReference:
    """Run the reference and keep what it computes.

    Args:
        model: The model in floats, loaded.
        samples: Questions whose greedy answers candidates follow token by token.
        folder: Folder for logits and image features.
        questions: Questions whose answers are scored.
        advance: Receiver of the fraction done.

    Raises:
        UsageError: No samples.
        InputError: An unusable image, video or text.
        GenerationError: The reference computes values that are not finite.
        ExportError: No disk space, or the folder cannot be written.
    """
    followed, scored = tuple(samples), tuple(questions)
    if not followed:
        raise UsageError("there are no questions to measure quality with")
    count = _counter(advance, len(followed) + len(scored))
    manifest, answers, kept = model.bundle.manifest, [], 0
    positions = min(MAX_POSITIONS + MAX_TOKENS, MAX_TOKENS * len(followed))
    with disk_space(folder, 4 * positions * manifest.backbone.vocab_size):
        for number, sample in enumerate(followed):
            features, logits, tokens = _trace(model, sample)
            if not np.isfinite(logits).all():
                raise GenerationError(
                    "the reference's logits are not finite", hint="check it with `onevision verify`"
                )
            np.savez(_file(folder, number), features=features, logits=logits)
            answers.append(ReferenceAnswer(sample, tokens, len(logits)))
            count()
            kept += len(logits)
            if kept >= MAX_POSITIONS:
                break
    return GateReference(manifest, tuple(answers), scored, _ask(model, scored, count), folder)


def measure(
    model: OneVision,
    reference: GateReference,
    thresholds: Thresholds | None = None,
    *,
    to_the_end: bool = True,
    advance: Advance | None = None,
) -> GateResult:
    """Compare a candidate's image features, next tokens, and answers if questions were recorded.

    If a broken model refuses to compute, that is a reason not to pass, and no exception.

    Args:
        model: The candidate, loaded.
        reference: The same model in floats.
        thresholds: Limits; None for the defaults.
        to_the_end: Ask the questions even if features or tokens have failed already.
        advance: Receiver of the fraction done.

    Raises:
        UsageError: The candidate is another model.
    """
    _check_same_model(model.bundle.manifest, reference.manifest)
    limits = thresholds or Thresholds()
    count = _counter(advance, len(reference.answers) + len(reference.questions))
    try:
        features, tokens = _follow(model, reference, count)
        result = judge(limits, reference.precision, features=features, tokens=tokens)
        unusable = tokens.mean_kl is None or not (result.passed or to_the_end)
        if unusable or not reference.records:
            return result
        answers = compare_answers(_ask(model, reference.questions, count), reference.records)
    except GenerationError as error:
        return GateResult(reference.precision, None, None, None, (error.message,))
    return judge(limits, reference.precision, features=features, tokens=tokens, answers=answers)


def prepare(model: OneVision, sample: Sample) -> PreparedPrompt:
    """A sample as a prompt. A video given as an array keeps all its frames.

    Raises:
        InputError: An unusable image, video or text.
    """
    frames = len(sample.video) if isinstance(sample.video, np.ndarray) else None
    messages = conversation_of(sample.prompt, sample.images, sample.video, None)
    return model.pipeline.prepare(messages, AnswerOptions(frames=frames))


def _follow(
    model: OneVision, reference: GateReference, count: Callable[[], None]
) -> tuple[FeatureQuality | None, TokenQuality]:
    """Follow the reference's answers: compare image features, and logits at each position.

    Features are None without images, and if the encoder is the reference's own file.
    """
    same_encoder = _encoder_sums(model.bundle.manifest) == _encoder_sums(reference.manifest)
    compared: list[FeatureQuality] = []

    def pairs() -> Iterator[Logits]:
        for number, answer in enumerate(reference.answers):
            features, logits, _ = _trace(model, answer.sample, answer)
            with np.load(_file(reference.folder, number)) as expected:
                if len(features) and not same_encoder:
                    compared.append(compare_features(features, expected["features"]))
                yield from zip(logits, expected["logits"], strict=True)
            count()

    tokens = compare_logits(pairs(), len(reference.answers))
    return worst_features(compared) if compared else None, tokens


def _trace(
    model: OneVision, sample: Sample, answer: ReferenceAnswer | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], tuple[int, ...]]:
    """Answer a sample greedily, or follow a given answer.

    Returns:
        Image features [T, P, H] of all its tiles, empty without images; logits [positions, tokens] over the
        tokens that can be sampled; and the answer's tokens.
    """
    prepared, pipeline = prepare(model, sample), model.pipeline
    features = [pipeline.image_features(visual.tiles) for visual in prepared.visuals]
    embeddings = [visual.pack(part) for visual, part in zip(prepared.visuals, features, strict=True)]
    pipeline.prefill(prepared, embeddings, room=MAX_TOKENS)
    allowed = np.setdiff1d(np.arange(pipeline.backbone.tokenizer.size), pipeline.banned_tokens)
    tokens = list(answer.tokens) if answer else []
    logits = []
    for position in range(answer.positions if answer else MAX_TOKENS):
        if position:
            pipeline.backbone.append(tokens[position - 1])
        logits.append(pipeline.backbone.logits()[allowed])
        if answer is None:
            token = int(allowed[logits[-1].argmax()])
            if pipeline.backbone.tokenizer.ends(token):
                break
            tokens.append(token)
    every = np.concatenate(features) if features else np.empty((0, 0, 0), np.float32)
    return every, np.stack(logits), tuple(tokens)


def _ask(model: OneVision, questions: Sequence[Sample], count: Callable[[], None]) -> tuple[Record, ...]:
    tile = model.bundle.manifest.vision.image_size
    records = []
    for record in ask(of_bundle(model), questions, EvalSettings(), tile=tile, run="quality"):
        records.append(record)
        count()
    return tuple(records)


def _file(folder: Path, number: int) -> Path:
    """Image features and logits of a reference answer."""
    return folder / f"answer-{number}.npz"


def _encoder_sums(manifest: Manifest) -> list[str]:
    return [manifest.files[name].sha256 for name in (VISION, VISION_DATA)]


def _check_same_model(ours: Manifest, theirs: Manifest) -> None:
    """Compare shapes and prompts.

    Raises:
        UsageError: They differ.
    """
    shapes = [
        (manifest.vision, replace(manifest.backbone, bits_per_weight=0), manifest.prompt, manifest.video)
        for manifest in (ours, theirs)
    ]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"{ours.name} and {theirs.name} are different models: their shapes or prompts differ",
            hint="compare bundles that were exported from the same checkpoint",
        )


def _counter(advance: Advance | None, total: int) -> Callable[[], None]:
    """A function that reports one more of ``total`` as done."""
    done = iter(range(1, total + 1))

    def count() -> None:
        if advance:
            advance(next(done) / total)

    return count
