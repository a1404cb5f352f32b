"""The gates' figures, from real engines: a reference is recorded, and candidates are held against it.

In: a bundle in floats, questions, and then candidates. Out: a :class:`~onevision.quant.gates.Quality` each.
One engine is loaded at a time: what the reference computed waits in a temporary folder, as float32 image
features and logits (4 bytes times the vocabulary for a position: 0.6 MB for Qwen2's).
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from onevision.bundle import BACKBONE, VISION, VISION_DATA
from onevision.errors import GenerationError, UsageError
from onevision.eval.ask import Settings, ask, of_bundle
from onevision.files import disk_space
from onevision.quant.gates import (
    Quality,
    Thresholds,
    compare_answers,
    compare_features,
    compare_logits,
    judge,
    worst_features,
)
from onevision.quant.prompts import prepare
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from onevision.bundle import Bundle, Manifest
    from onevision.eval.records import Record
    from onevision.eval.suite import Sample
    from onevision.native.device import Device
    from onevision.progress import Advance
    from onevision.quant.gates import AnswerQuality, FeatureQuality, Logits, TokenQuality
    from onevision.runtime.cache import Cache
    from onevision.runtime.prepare import PreparedPrompt

    Features = npt.NDArray[np.float32]  # [T, P, H]

#: Positions whose logits are kept at most: 1.2 GB for Qwen2's vocabulary. Further samples are left out.
MAX_POSITIONS = 2_000
#: Tokens of a reference answer at most.
MAX_TOKENS = 32

_LOGITS = "logits.f32"


@dataclass(frozen=True, eq=False)
class ReferenceAnswer:
    """What the reference says to a sample. ``positions`` count the end of the answer, if it ended."""

    sample: Sample
    tokens: tuple[int, ...]
    positions: int


@dataclass(frozen=True, eq=False)
class Reference:
    """What candidates are held against, see :func:`record_reference`."""

    manifest: Manifest
    answers: tuple[ReferenceAnswer, ...]
    questions: tuple[Sample, ...]
    records: tuple[Record, ...]  # of the questions
    folder: Path  # of logits and image features

    @property
    def precision(self) -> str:
        """Of vision encoder and backbone: ``fp32 + f32``."""
        return " + ".join(str(self.manifest.files[name].precision) for name in (VISION, BACKBONE))


@contextmanager
def record_reference(
    bundle: Bundle,
    samples: Iterable[Sample],
    *,
    questions: Iterable[Sample] = (),
    device: Device = "auto",
    threads: int | None = None,
    folder: Path | None = None,
    features: Cache | None = None,
    advance: Advance | None = None,
) -> Iterator[Reference]:
    """Run the bundle that others are held against, and keep what it computes while the body runs.

    Args:
        bundle: The model in floats.
        samples: Questions whose greedy answers are followed token by token.
        questions: Questions whose answers are scored, with answers that are known.
        device: See :meth:`OneVision.load`.
        threads: CPU threads; None for all cores.
        folder: Where the temporary folder goes; None: the system's place.
        features: Where image features are kept, for what is measured by the same encoder.
        advance: Told the fraction that is done.

    Raises:
        UsageError: No samples.
        InputError: A sample's picture, video or text that cannot be used.
        GenerationError: The reference itself computes values that are not finite.
        ExportError: No disk space, or the temporary folder cannot be written.
    """
    followed, scored = tuple(samples), tuple(questions)
    if not followed:
        raise UsageError("there are no questions to measure quality with")
    step = _steps(advance, len(followed) + len(scored))
    place = folder or Path(tempfile.gettempdir())
    positions = min(MAX_POSITIONS + MAX_TOKENS, MAX_TOKENS * len(followed))
    with ExitStack() as stack:
        with disk_space(place, 4 * positions * bundle.manifest.backbone.vocab_size):
            scratch = Path(stack.enter_context(_scratch_folder(place)))
            with OneVision(bundle, device=device, threads=threads, features=features) as model:
                answers = _record(model, followed, scratch, step)
                records = _ask(model, scored, step)
        yield Reference(bundle.manifest, answers, scored, records, scratch)


def measure(
    bundle: Bundle,
    reference: Reference,
    thresholds: Thresholds | None = None,
    *,
    to_the_end: bool = True,
    device: Device = "auto",
    threads: int | None = None,
    features: Cache | None = None,
    advance: Advance | None = None,
) -> Quality:
    """Hold a candidate against the reference: image features, next tokens, and answers if there are any.

    What a broken bundle refuses to compute is a reason not to pass, and no exception. Unless ``to_the_end``,
    a bundle that has failed already is not asked for answers. ``features``: see :func:`record_reference`.

    Raises:
        UsageError: The bundle is of another model.
        BundleError: It cannot be loaded.
    """
    limits = thresholds or Thresholds()
    step = _steps(advance, len(reference.answers) + len(reference.questions))
    with OneVision(bundle, device=device, threads=threads, features=features) as model:
        try:
            pictures, tokens = measure_tokens(model, reference, step)
            quality = judge(limits, reference.precision, features=pictures, tokens=tokens)
            done = tokens.mean_kl is None or not (quality.passed or to_the_end)
            if done or not reference.records:
                return quality
            answers = measure_answers(model, reference, step)
        except GenerationError as error:
            return Quality(reference.precision, None, None, None, (error.message,))
    return judge(limits, reference.precision, features=pictures, tokens=tokens, answers=answers)


def measure_tokens(
    model: OneVision, reference: Reference, step: Callable[[], None] = lambda: None
) -> tuple[FeatureQuality | None, TokenQuality]:
    """Follow the reference's answers: features of their pictures, next-token distributions at each position.

    Features are None if there are no pictures, or the encoder is the reference's own file.

    Args:
        model: The candidate, loaded.
        reference: What it is held against.
        step: Called after each sample.

    Raises:
        UsageError: The bundle is of another model.
        GenerationError: The encoder's features are not finite, or a native library refused the work.
    """
    _check_same_model(model.bundle.manifest, reference.manifest)
    same_encoder = _encoder(model.bundle.manifest) == _encoder(reference.manifest)
    compared: list[FeatureQuality] = []
    allowed = _allowed(model)

    def pairs() -> Iterator[Logits]:
        with (reference.folder / _LOGITS).open("rb") as file:
            for number, answer in enumerate(reference.answers):
                prepared = prepare(model, answer.sample)
                features = None
                if prepared.visuals:
                    kept = np.load(_features_file(reference.folder, number))
                    features = kept if same_encoder else _encode(model, prepared)
                    if not same_encoder:
                        compared.append(compare_features(features, kept))
                _prefill(model, prepared, features, room=len(answer.tokens))
                for position in range(answer.positions):
                    if position:
                        model.backbone.append(answer.tokens[position - 1])
                    row = np.frombuffer(file.read(4 * len(allowed)), dtype=np.float32)
                    yield model.backbone.logits()[allowed], row
                step()

    tokens = compare_logits(pairs(), len(reference.answers))
    return worst_features(compared) if compared else None, tokens


def measure_answers(
    model: OneVision, reference: Reference, step: Callable[[], None] = lambda: None
) -> AnswerQuality:
    """Ask the reference's questions, of which there is at least one, and compare what is said.

    Raises:
        GenerationError: A native library refused the work.
    """
    return compare_answers(_ask(model, reference.questions, step), reference.records)


def _record(
    model: OneVision, samples: Sequence[Sample], folder: Path, step: Callable[[], None]
) -> tuple[ReferenceAnswer, ...]:
    answers: list[ReferenceAnswer] = []
    allowed = _allowed(model)
    with (folder / _LOGITS).open("wb") as file:
        for number, sample in enumerate(samples):
            prepared = prepare(model, sample)
            features = _encode(model, prepared) if prepared.visuals else None
            if features is not None:
                np.save(_features_file(folder, number), features, allow_pickle=False)
            _prefill(model, prepared, features, room=MAX_TOKENS)
            tokens, ended = _follow(model, file, allowed)
            answers.append(ReferenceAnswer(sample, tokens, len(tokens) + ended))
            step()
            if sum(answer.positions for answer in answers) >= MAX_POSITIONS:
                break
    return tuple(answers)


def _follow(model: OneVision, file: BinaryIO, allowed: npt.NDArray[np.intp]) -> tuple[tuple[int, ...], bool]:
    """Greedy tokens after what the backbone has read, and whether the answer ended; logits go to a file."""
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        if tokens:
            model.backbone.append(tokens[-1])
        logits = model.backbone.logits()[allowed]
        if not np.isfinite(logits).all():
            raise GenerationError(
                "the reference's logits are not finite", hint="check it with `onevision verify`"
            )
        file.write(logits.tobytes())
        token = int(allowed[logits.argmax()])
        if model.backbone.vocabulary.ends(token):
            return tuple(tokens), True
        tokens.append(token)
    return tuple(tokens), False


def _ask(model: OneVision, questions: Sequence[Sample], step: Callable[[], None]) -> tuple[Record, ...]:
    tile = model.bundle.manifest.vision.image_size
    records = []
    for record in ask(of_bundle(model), questions, Settings(), tile=tile, run="quality"):
        records.append(record)
        step()
    return tuple(records)


def _encode(model: OneVision, prepared: PreparedPrompt) -> Features:
    """Image features of all pictures and frames of a prompt, of which there is at least one."""
    return np.concatenate([model.image_features(visual.tiles) for visual in prepared.visuals])


def _prefill(model: OneVision, prepared: PreparedPrompt, features: Features | None, *, room: int) -> None:
    """Read a prompt with the features of its tiles."""
    embeddings = []
    if features is not None:
        ends = np.cumsum([len(visual.tiles) for visual in prepared.visuals])
        parts = np.split(features, ends[:-1])
        embeddings = [visual.pack(part) for visual, part in zip(prepared.visuals, parts, strict=True)]
    model.prefill(prepared, embeddings, room=room)


def _allowed(model: OneVision) -> npt.NDArray[np.intp]:
    """Tokens that can be sampled: distributions are over these."""
    return np.setdiff1d(np.arange(model.backbone.vocabulary.size), model.banned_tokens)


def _scratch_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="onevision-", dir=parent, ignore_cleanup_errors=True)


def _features_file(folder: Path, number: int) -> Path:
    return folder / f"features-{number}.npy"


def _encoder(manifest: Manifest) -> list[str]:
    return [manifest.files[name].sha256 for name in (VISION, VISION_DATA)]


def _check_same_model(ours: Manifest, theirs: Manifest) -> None:
    shapes = [
        (manifest.vision, replace(manifest.backbone, bits_per_weight=0), manifest.prompt, manifest.video)
        for manifest in (ours, theirs)
    ]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"{ours.name} and {theirs.name} are not of the same model: their shapes or prompts differ",
            hint="compare bundles that were exported from the same checkpoint",
        )


def _steps(advance: Advance | None, total: int) -> Callable[[], None]:
    """What counts one of ``total`` steps."""
    done = iter(range(1, total + 1))

    def step() -> None:
        if advance:
            advance(next(done) / total)

    return step
