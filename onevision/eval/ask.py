"""Samples to records: each question is asked on its own and answered greedily."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from onevision._version import __version__
from onevision.errors import InputError
from onevision.eval.records import EvalReply, Record
from onevision.runtime.anyres import squash
from onevision.runtime.images import read_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from onevision.bundle import Manifest
    from onevision.eval.suite import Sample
    from onevision.runtime.engine import OneVision
    from onevision.runtime.images import ImageSource
    from onevision.runtime.options import Detail, Prefill
    from onevision.runtime.video import VideoSource

#: Visual input that the model gets: ``all`` of it; ``base``, where a single image is squashed to one tile, so
#: that nothing finer than the base view is left; or ``nothing``, no images and no videos.
See = Literal["all", "base", "nothing"]


@dataclass(frozen=True)
class EvalSettings:
    """Options of all questions of a run."""

    see: See = "all"
    max_tokens: int = 64  # enough for the suite's longest sentence; ends an answer that never stops
    frames: int | None = None  # sampled from a video file; None: the bundle's default. Arrays are used whole.
    max_tiles: int | None = None  # these three as in :class:`onevision.runtime.options.AnswerOptions`
    detail: Detail = "auto"
    dedup: float | None = None

    @property
    def is_reference(self) -> bool:
        """Whether images and videos are prepared as in the reference."""
        return self.max_tiles is None and self.detail == "auto" and self.dedup is None


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
        options = asdict(settings)
        del options["see"]
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
    facts = json.dumps([__version__, manifest.to_json(), asdict(settings), prefill])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _seen(sample: Sample, see: See, tile: int) -> tuple[Sequence[ImageSource], VideoSource | None]:
    """Images and video of a question as the model gets them."""
    if see == "nothing":
        return (), None
    if see == "base" and len(sample.images) == 1:
        return (squash(read_image(sample.images[0]), tile),), None
    return sample.images, sample.video
