"""Samples to records: each is put to a loaded model as a single question, and answered greedily."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onevision import __version__
from onevision.errors import InputError
from onevision.eval.records import Record, Reply
from onevision.runtime.anyres import squash
from onevision.runtime.images import read_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onevision.bundle import Manifest
    from onevision.runtime.engine import OneVision
    from onevision.suite import Sample

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


def ask(model: OneVision, samples: Iterable[Sample], settings: Settings) -> Iterator[Record]:
    """Ask one question after the other. One that cannot be asked counts as wrong, with the reason."""
    run = run_id(model.bundle.manifest, settings)
    for sample in samples:
        try:
            reply = _reply(model, sample, settings)
        except InputError as error:
            reply = Reply("", error=error.message)
        yield Record.of(sample, reply, run)


def run_id(manifest: Manifest, settings: Settings) -> str:
    """Twelve hexadecimal digits of all that the answers depend on besides the questions and the machine."""
    facts = json.dumps([__version__, manifest.to_json(), asdict(settings)])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _reply(model: OneVision, sample: Sample, settings: Settings) -> Reply:
    frames = len(sample.video) if isinstance(sample.video, np.ndarray) else settings.frames
    answer = model.generate(
        sample.prompt, **_seen(sample, settings.see, model), max_tokens=settings.max_tokens, frames=frames
    )
    ttft = round(answer.timings.ttft, 3)
    return Reply(answer.text, answer.finish_reason, ttft, answer.usage.image_tokens)


def _seen(sample: Sample, see: See, model: OneVision) -> dict[str, Any]:
    """The pictures and the video of a question, as arguments of :meth:`OneVision.generate`."""
    if see == "nothing":
        return {}
    if see == "base" and len(sample.images) == 1:
        picture = read_image(sample.images[0])
        return {"images": [squash(picture, model.preparer.anyres.tile)]}
    return {"images": sample.images, "video": sample.video}
