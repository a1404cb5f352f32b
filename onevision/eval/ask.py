"""Samples to records: each question is asked on its own and answered greedily."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onevision._version import __version__
from onevision.bundle import Manifest
from onevision.errors import CheckpointError, InputError
from onevision.eval import EVAL_MAX_TOKENS, EVAL_OPTIONS, See
from onevision.eval.records import EvalReply, Record
from onevision.eval.suite import Sample
from onevision.runtime.anyres import squash
from onevision.runtime.engine import OneVision
from onevision.runtime.images import ImageSource, read_image
from onevision.runtime.options import AnswerOptions, Prefill
from onevision.runtime.prompt import time_instruction
from onevision.runtime.video import VideoSource, read_video


@dataclass(frozen=True)
class EvalSettings:
    """Options of all questions of a run. ``options.frames`` is for video files: arrays are used whole."""

    see: See = "all"
    options: AnswerOptions = field(default_factory=lambda: AnswerOptions(max_tokens=EVAL_MAX_TOKENS))

    @property
    def is_reference(self) -> bool:
        """Whether prompts, images and videos are prepared as in the reference."""
        usual = AnswerOptions(max_tokens=self.options.max_tokens, frames=self.options.frames)
        return self.options in (usual, replace(usual, template="training"))

    def to_dict(self) -> dict[str, Any]:
        """Settings for JSON, without those of sampling."""
        return {"see": self.see} | {name: getattr(self.options, name) for name in EVAL_OPTIONS}


class Answerer(Protocol):
    """Model under evaluation: a bundle, see :func:`of_bundle`, or the reference in transformers."""

    def __call__(
        self, prompt: str, images: Sequence[ImageSource], video: VideoSource | None, settings: EvalSettings
    ) -> EvalReply:
        """Answer greedily.

        Raises:
            InputError: An image or video cannot be used.
        """
        ...


def of_bundle(model: OneVision) -> Answerer:
    """Answer with a loaded bundle."""

    def reply(
        prompt: str, images: Sequence[ImageSource], video: VideoSource | None, settings: EvalSettings
    ) -> EvalReply:
        options = dict(vars(settings.options))
        if isinstance(video, np.ndarray):
            options["frames"] = len(video)
        answer = model.generate(prompt, images=images, video=video, **options)
        usage = answer.usage
        return EvalReply(
            answer.text,
            answer.finish_reason,
            round(answer.timings.ttft, 3),
            usage.image_tokens,
            usage.tiles - usage.reused_frames,
        )

    return reply


def ask(
    answerer: Answerer, samples: Iterable[Sample], settings: EvalSettings, *, tile: int, run: str
) -> Iterator[Record]:
    """Ask one question after the other. A question that cannot be asked counts as wrong and keeps the reason.

    Args:
        answerer: The model.
        samples: The questions.
        settings: Options of all questions.
        tile: Pixels per side of the model's tiles.
        run: Identifier stored in the records, see :func:`run_id`.
    """
    for sample in samples:
        try:
            reply = answerer(sample.prompt, *_seen(sample, settings.see, tile), settings)
        except InputError as error:
            reply = EvalReply("", error=error.message)
        yield Record.of(sample, reply, run)


def run_id(manifest: Manifest, settings: EvalSettings, prefill: Prefill = "auto") -> str:
    """Hash everything that answers depend on, except questions and machine: 12 hexadecimal digits."""
    facts = json.dumps([__version__, manifest.to_json(), settings.to_dict(), prefill])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _seen(sample: Sample, see: See, tile: int) -> tuple[Sequence[ImageSource], VideoSource | None]:
    """Images and video of a question as the model gets them."""
    if see == "nothing":
        return (), None
    if see == "base" and len(sample.images) == 1:
        return (squash(read_image(sample.images[0]), tile),), None
    return sample.images, sample.video


class ReferenceModel:
    """A checkpoint loaded into transformers; an :class:`onevision.eval.ask.Answerer`.

    Args:
        folder: Folder of the checkpoint.

    Attributes:
        tile: Pixels per side of a tile.

    Raises:
        CheckpointError: It is damaged, of another architecture, or too large for the memory.
    """

    def __init__(self, folder: Path) -> None:
        from onevision.export.checkpoint import Checkpoint
        from onevision.export.tokenizer import read_tokenizer
        from onevision.proof.reference import Reference, fits_in_memory

        with Checkpoint.open(folder) as checkpoint:
            if not fits_in_memory(checkpoint):
                raise CheckpointError(
                    f"{folder} does not fit in memory in fp32", hint="compare with a bundle instead"
                )
            never_sampled = read_tokenizer(folder, checkpoint.config).never_sampled
            self._reference = Reference(checkpoint, never_sampled=never_sampled)
            self._config = checkpoint.config
            self.tile = checkpoint.config.vision.image_size

    def __call__(
        self, prompt: str, images: Sequence[ImageSource], video: VideoSource | None, settings: EvalSettings
    ) -> EvalReply:
        """Answer greedily, see :class:`onevision.eval.ask.Answerer`."""
        if video is not None and not isinstance(video, np.ndarray):
            found = read_video(
                video, frames=settings.options.frames or self._config.frames, prepare=np.asarray
            )
            if self._config.time_instruction and found.fps:
                prompt = f"{time_instruction(found.positions, found.total, found.fps)}\n{prompt}"
            video = found.tiles
        text = self._reference.answer(
            prompt,
            images=[np.asarray(read_image(image)) for image in images],
            video=video,
            max_tokens=settings.options.max_tokens,
        )
        return EvalReply(text)
