"""Samples to records: each is put to a model as a single question, and answered greedily."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from onevision._version import __version__
from onevision.errors import InputError
from onevision.eval.records import Record, Reply
from onevision.runtime.anyres import squash
from onevision.runtime.images import read_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from onevision.bundle import Manifest
    from onevision.eval.suite import Sample
    from onevision.runtime.engine import OneVision
    from onevision.runtime.images import ImageSource
    from onevision.runtime.options import Detail
    from onevision.runtime.prefill.policy import Prefill
    from onevision.runtime.video import VideoSource

#: How much of the pictures the model sees: ``all`` is as always. ``base`` squashes a single picture to one
#: tile first, so that nothing finer than AnyRes' base view is left. ``nothing`` takes pictures and videos
#: away.
See = Literal["all", "base", "nothing"]


@dataclass(frozen=True)
class Settings:
    """How all questions of a run are put."""

    see: See = "all"
    max_tokens: int = 64
    frames: int | None = None  # of a video file; None for the bundle's default. Arrays are seen whole.
    max_tiles: int | None = None  # these three as in :class:`onevision.runtime.options.AnswerOptions`
    detail: Detail = "auto"
    dedup: float | None = None

    @property
    def is_reference(self) -> bool:
        """Whether pictures and videos are given as the reference gives them."""
        return self.max_tiles is None and self.detail == "auto" and self.dedup is None


class Answerer(Protocol):
    """What can be asked: a bundle (:func:`of_bundle`), or the reference (:mod:`onevision.eval.reference`)."""

    def __call__(
        self, prompt: str, images: Sequence[ImageSource], video: VideoSource | None, settings: Settings
    ) -> Reply:
        """Answer greedily.

        Raises:
            InputError: A picture or video that cannot be used.
        """
        ...


def of_bundle(model: OneVision) -> Answerer:
    """A loaded bundle as what can be asked."""

    def reply(
        prompt: str, images: Sequence[ImageSource], video: VideoSource | None, settings: Settings
    ) -> Reply:
        frames = len(video) if isinstance(video, np.ndarray) else settings.frames
        answer = model.generate(
            prompt,
            images=images,
            video=video,
            max_tokens=settings.max_tokens,
            frames=frames,
            max_tiles=settings.max_tiles,
            detail=settings.detail,
            dedup=settings.dedup,
        )
        usage = answer.usage
        return Reply(
            answer.text,
            answer.finish_reason,
            round(answer.timings.ttft, 3),
            usage.image_tokens,
            usage.tiles - usage.reused_frames,
        )

    return reply


def ask(
    answerer: Answerer, samples: Iterable[Sample], settings: Settings, *, tile: int, run: str
) -> Iterator[Record]:
    """Ask one question after the other. One that cannot be asked counts as wrong, with the reason.

    Args:
        answerer: Who is asked.
        samples: The questions.
        settings: How they are put.
        tile: Pixels a side of the model's tiles.
        run: What the records are marked with, see :func:`run_id`.
    """
    for sample in samples:
        try:
            reply = answerer(sample.prompt, *_seen(sample, settings.see, tile), settings)
        except InputError as error:
            reply = Reply("", error=error.message)
        yield Record.of(sample, reply, run)


def run_id(manifest: Manifest, settings: Settings, prefill: Prefill = "auto") -> str:
    """Twelve hexadecimal digits of all that the answers depend on besides the questions and the machine."""
    facts = json.dumps([__version__, manifest.to_json(), asdict(settings), prefill])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _seen(sample: Sample, see: See, tile: int) -> tuple[Sequence[ImageSource], VideoSource | None]:
    """The pictures and the video of a question, as the model gets them."""
    if see == "nothing":
        return (), None
    if see == "base" and len(sample.images) == 1:
        return (squash(read_image(sample.images[0]), tile),), None
    return sample.images, sample.video
