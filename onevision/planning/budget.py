"""The largest budget whose first token comes within a target time.

In: the sizes of a prompt's images and videos, and a speed profile of this machine. Out: a budget and the time
that it takes. Budgets are tried from what the user allows downwards; the largest is the one with most tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import inf
from typing import Any

import numpy as np

from onevision.errors import UsageError
from onevision.planning.cost import Media, PromptCost, Shape, frames_taken, prompt_cost
from onevision.planning.speed import SpeedProfile, needed_profile
from onevision.runtime import generate
from onevision.runtime.answer import Answer, OnProgress
from onevision.runtime.anyres import choose_tiling
from onevision.runtime.clock import StageClock
from onevision.runtime.container import probe_video
from onevision.runtime.frames import Frames, given_video
from onevision.runtime.messages import ImagePart, Message, Part, VideoPart
from onevision.runtime.options import AnswerOptions
from onevision.runtime.pages import paged_messages, read_part
from onevision.runtime.pipeline import Pipeline
from onevision.runtime.prefill.policy import PrefillBackend
from onevision.runtime.video import Video, VideoSource


@dataclass(frozen=True)
class Forecast:
    """Cost of a prompt with a budget, and the seconds to its first token; None where they are not known."""

    options: AnswerOptions
    cost: PromptCost
    ttft: float | None

    @property
    def time(self) -> float:
        """``ttft``, or infinity."""
        return inf if self.ttft is None else self.ttft

    def to_dict(self) -> dict[str, Any]:
        """A row of the budgets that ``onevision plan --json`` prints."""
        cost = self.cost.to_dict()
        return {"budget": self.options.budget(self.ttft)} | {
            name: cost[name] for name in ("usage", "timings_ms")
        }


class Forecaster:
    """Forecasts for one prompt, by budget.

    Args:
        shape: Of the model.
        media: Images and videos of the prompt.
        text_tokens: Tokens of the rest.
        backend: Prefill backend for a prompt of so many tokens.
        profile: Of this machine; None: no time to the first token is predicted.
    """

    def __init__(
        self,
        shape: Shape,
        media: Sequence[Media],
        text_tokens: int,
        backend: Callable[[int], PrefillBackend],
        profile: SpeedProfile | None,
    ) -> None:
        self._shape, self._backend, self._profile = shape, backend, profile
        self._cost = partial(prompt_cost, shape, media, text_tokens=text_tokens)
        self._images = [item for item in media if item.kind == "image"]
        self._videos = [item for item in media if item.kind == "video"]

    def forecast(self, options: AnswerOptions, *, reused_frames: int = 0) -> Forecast:
        """Forecast for a budget, where so many video frames share the features of others."""
        cost, profile = self._cost(options=options, reused_frames=reused_frames), self._profile
        seconds = profile and profile.seconds(
            backend=self._backend(cost.prompt_tokens),
            tokens=cost.prompt_tokens,
            tiles=cost.tiles - reused_frames,
        )
        if not profile or not seconds:
            return Forecast(options, cost, None)
        reading = profile.image * sum(item.megapixels() for item in self._images)
        for item in self._videos:
            reading += (profile.video or 0.0) * item.megapixels(frames_taken(self._shape, item, options))
        ttft = profile.fixed + reading + sum(seconds.values())
        return Forecast(options, replace(cost, seconds=seconds), ttft)

    def levels(self, options: AnswerOptions) -> tuple[Forecast, ...]:
        """Forecasts for a budget, and for each smaller one that differs, from the largest down."""
        by_size: dict[tuple[int, int], Forecast] = {}
        for max_tiles, frames in product(self._tiles(options), self._frames(options)):
            # The budget itself comes first, unchanged: it gives the same input as without a target.
            less = options if max_tiles is None else replace(options, max_tiles=max_tiles, detail="auto")
            forecast = self.forecast(less if frames is None else replace(less, frames=frames))
            by_size.setdefault((forecast.cost.tiles, forecast.cost.image_tokens), forecast)
        return tuple(by_size[size] for size in sorted(by_size, reverse=True))

    def _tiles(self, options: AnswerOptions) -> list[int | None]:
        """None for the budget itself, then the limits that make a difference to a single image."""
        if len(self._images) != 1:
            return [None]
        spec, size = self._shape.anyres, (self._images[0].height, self._images[0].width)
        most = choose_tiling(spec, size, options).tiles
        tilings = (choose_tiling(spec, size, AnswerOptions(max_tiles=limit)) for limit in range(1, most))
        return [None, *sorted({tiling.tiles for tiling in tilings}, reverse=True)]

    def _frames(self, options: AnswerOptions) -> list[int | None]:
        """None for the budget itself, then smaller numbers of frames."""
        if not self._videos:
            return [None]
        most = max(len(frames_taken(self._shape, item, options)) for item in self._videos)
        return [None, *range(most - 1, 0, -1)]

    def table(self, options: AnswerOptions) -> tuple[Forecast, ...]:
        """Budgets worth knowing for a single image or video, the largest first; ``frames`` is the most."""
        chosen = ("frames", "fps", "from_time", "to_time", "frames_by")
        usual = AnswerOptions(**{name: getattr(options, name) for name in chosen})
        if len(self._images) == 1 and not self._videos:
            rows, high = self.levels(usual), self.forecast(replace(usual, detail="high"))
            return rows if high.cost == rows[0].cost else (high, *rows)
        if len(self._videos) == 1 and not self._images:
            counts = self._frames(usual)
            halves = [2**power for power in range(10, -1, -1) if 2**power in counts]
            return tuple(self.forecast(replace(usual, frames=count)) for count in (usual.frames, *halves))
        return ()

    def choose(self, options: AnswerOptions, target: float) -> tuple[Forecast, str | None]:
        """The largest budget, at most that of ``options``, that keeps to ``target`` seconds and the context.

        Returns:
            Its forecast; or the fastest budget's, and a warning, where none does.

        Raises:
            UsageError: The prefill backend was not measured.
        """
        levels = self.levels(options)
        if any(forecast.ttft is None for forecast in levels):
            raise UsageError(
                "the prefill backend of this prompt was not measured, so its time is not known",
                hint="use --prefill auto, or leave --ttft-target out",
            )
        for forecast in levels:
            if forecast.time <= target and forecast.cost.prompt_tokens < forecast.cost.context_length:
                return forecast, None
        fastest = min(levels, key=lambda forecast: forecast.time)
        return fastest, (
            f"no budget gives a first token within {target:g} s: "
            f"the smallest needs about {fastest.time:.2f} s"
        )


def answer(
    pipeline: Pipeline,
    messages: Sequence[Message],
    options: AnswerOptions,
    on_progress: OnProgress | None = None,
) -> Generator[str, None, Answer]:
    """Answer messages in pieces, with the largest budget that keeps to ``ttft_target`` if there is one.

    As :func:`onevision.runtime.generate.answer`, with the same arguments.

    Raises:
        InputError: An image, video or prompt that cannot be used.
        UsageError: The speed of the bundle was not measured on this machine.
        GenerationError: A native library refused the work.
    """
    if options.ttft_target is None:
        return (yield from generate.answer(pipeline, messages, options, on_progress))
    clock = StageClock()
    profile = needed_profile(pipeline.bundle, pipeline.device, pipeline.threads)
    with clock.stage("read"):
        messages, media, damage = measure(messages, options)
    with clock.stage("tokenize"):
        tokens = pipeline.preparer.text_tokens(messages, options)
    shape = Shape.of(pipeline.bundle.manifest)
    forecaster = Forecaster(shape, media, tokens, pipeline.prefill_runner.backend, profile)
    forecast, warning = forecaster.choose(options, options.ttft_target)
    prepared = pipeline.prepare(messages, forecast.options, clock)
    whole = yield from generate.complete(pipeline, prepared, forecast.options, on_progress)
    warnings = (*([warning] if warning else []), *damage, *whole.warnings)
    return replace(whole, predicted_ttft=forecast.ttft, warnings=warnings)


def measure(
    messages: Sequence[Message], options: AnswerOptions
) -> tuple[list[Message], list[Media], list[str]]:
    """Messages whose images are read, the sizes of all images and videos, and warnings about the images.

    Raises:
        InputError: An image or video that cannot be used.
    """
    media: list[Media] = []
    warnings: list[str] = []

    def measured(part: Part) -> Part:
        if isinstance(part, ImagePart):
            image = read_part(part, options, warnings.append)
            media.append(Media("", "image", image.width, image.height))
            return replace(part, source=np.asarray(image), page=1)
        if isinstance(part, VideoPart):
            media.append(video_size(part.source))
        return part

    read = [
        Message(message.role, tuple(map(measured, message.content)))
        for message in paged_messages(messages, options)
    ]
    return read, media, warnings


def video_size(source: VideoSource) -> Media:
    """Size of a video; a file is read through.

    Raises:
        VideoError: It cannot be used.
    """
    if isinstance(source, Video):
        source = source.tiles
    given = given_video(source)
    if isinstance(given, Frames):
        first = next(given.read([0], lambda _: None))
        return Media(given.name, "video", first.width, first.height, given.count)
    probe = probe_video(given)
    return Media(str(given), "video", probe.width, probe.height, probe.frames, probe)
