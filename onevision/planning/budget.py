"""The largest budget with which the first token comes in time.

In: what a prompt shows, and a calibration of this machine. Out: a budget, and the time that it will take.
Budgets are tried from what the user allows downwards; the largest is the one with the most tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.errors import UsageError
from onevision.planning.cost import Input, Plan, Shape, plan
from onevision.runtime.answer import Spent
from onevision.runtime.anyres import choose_tiling
from onevision.runtime.images import read_image
from onevision.runtime.messages import ImagePart, Message, VideoPart
from onevision.runtime.options import AnswerOptions
from onevision.runtime.video import probe_video

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onevision.bundle import Manifest
    from onevision.planning.speed import Calibration
    from onevision.runtime.answer import StageClock
    from onevision.runtime.messages import Part
    from onevision.runtime.prefill.policy import Reader
    from onevision.runtime.prepare import Preparer


@dataclass(frozen=True)
class Forecast:
    """A budget, what it costs, and the seconds to the first token with it, if they can be told."""

    budget: AnswerOptions
    costs: Plan
    ttft: float | None

    def to_dict(self) -> dict[str, Any]:
        """A row of ``onevision plan --json``'s budgets."""
        costs = self.costs
        counts = {
            name: getattr(costs, name) for name in ("tiles", "image_tokens", "prompt_tokens", "seconds")
        }
        ttft = None if self.ttft is None else round(self.ttft * 1e3, 3)
        return {
            **{name: getattr(self.budget, name) for name in ("max_tiles", "detail", "frames")},
            **counts,
            "predicted_ttft_ms": ttft,
        }


@dataclass(frozen=True)
class Fitted:
    """A prompt with the budget that was chosen for it; without a target, as it was."""

    messages: tuple[Message, ...]
    options: AnswerOptions
    predicted: float | None = None  # seconds to the first token
    warnings: tuple[str, ...] = ()

    @property
    def spent(self) -> Spent:
        """The budget, as an answer tells it."""
        options = self.options
        target, predicted = (
            None if seconds is None else round(seconds * 1e3, 3)
            for seconds in (options.ttft_target, self.predicted)
        )
        return Spent(options.max_tiles, options.detail, options.frames, options.dedup, target, predicted)


class Forecaster:
    """Tells costs and times of one prompt by budget.

    Args:
        shape: Of the model.
        inputs: Pictures and videos of the prompt.
        text_tokens: Tokens of the prompt besides them.
        reader: What reads a prompt of so many tokens.
        calibration: Of this machine; None: no time to the first token is told.
        rate: Operations a second, for rough times of the stages where there is no calibration.
    """

    def __init__(
        self,
        shape: Shape,
        inputs: Sequence[Input],
        text_tokens: int,
        reader: Callable[[int], Reader],
        calibration: Calibration | None,
        rate: float | None = None,
    ) -> None:
        self._shape, self._inputs = shape, inputs
        self._plan = partial(plan, shape, inputs, text_tokens=text_tokens, flops_per_second=rate)
        self._reader, self._calibration = reader, calibration
        self._pixels = {
            "picture_pixels": sum(item.width * item.height for item in inputs if item.kind == "image"),
            "video_pixels": sum(
                item.width * item.height * (item.frames or 1) for item in inputs if item.kind == "video"
            ),
        }

    def forecast(self, budget: AnswerOptions, *, reused_frames: int = 0) -> Forecast:
        """What a budget costs, where so many frames of the videos take the features of others."""
        costs = self._plan(budget=budget, reused_frames=reused_frames)
        if self._calibration is None:
            return Forecast(budget, costs, None)
        seconds = self._calibration.seconds(
            reader=self._reader(costs.prompt_tokens),
            tokens=costs.prompt_tokens,
            tiles=costs.tiles - costs.reused_frames,
        )
        if seconds is None:
            return Forecast(budget, costs, None)
        ttft = sum(seconds.values()) + self._calibration.rest(**self._pixels)
        return Forecast(budget, replace(costs, seconds=seconds), ttft)

    def levels(self, budget: AnswerOptions) -> tuple[Forecast, ...]:
        """What may be chosen from: a budget, and each smaller one that differs, from the largest down."""
        by_size: dict[tuple[int, int], Forecast] = {}
        for max_tiles, frames in product(self._tiles(budget), self._frames(budget)):
            # The budget itself comes as it is, so that it gives the same input as without a choice.
            less = budget if max_tiles is None else replace(budget, max_tiles=max_tiles, detail="auto")
            found = self.forecast(less if frames is None else replace(less, frames=frames))
            by_size.setdefault((found.costs.tiles, found.costs.image_tokens), found)
        return tuple(by_size[size] for size in sorted(by_size, reverse=True))

    def table(self, frames: int | None = None) -> tuple[Forecast, ...]:
        """What a single picture can be given, or a video: the budgets worth knowing, from the largest down.

        Args:
            frames: Of a video at most; None for the bundle's default.
        """
        kinds = [item.kind for item in self._inputs]
        if kinds == ["image"]:
            rows = self.levels(AnswerOptions(frames=frames))
            high = self.forecast(AnswerOptions(detail="high", frames=frames))
            return rows if high.costs == rows[0].costs else (high, *rows)
        if kinds == ["video"]:
            counts: list[int | None] = self._frames(AnswerOptions(frames=frames))
            halves = [2**power for power in range(10, -1, -1) if 2**power in counts]
            return tuple(self.forecast(AnswerOptions(frames=count)) for count in (frames, *halves))
        return ()

    def choose(self, budget: AnswerOptions, target: float) -> tuple[Forecast, bool]:
        """The largest budget, at most ``budget``, that keeps to ``target`` seconds and to the context.

        Returns:
            It and True; or the one with the least time and False, where none does.

        Raises:
            UsageError: The calibration does not have what reads the prompt.
        """
        levels = self.levels(budget)
        if any(found.ttft is None for found in levels):
            raise UsageError(
                "what reads this prompt was not measured, so that its time cannot be told",
                hint="use --prefill auto, or leave --ttft-target out",
            )
        for found in levels:
            costs = found.costs
            if _time(found) <= target and costs.prompt_tokens < costs.context_length:
                return found, True
        return min(levels, key=_time), False

    def _tiles(self, budget: AnswerOptions) -> list[int | None]:
        """Limits of tiles that make a difference to a single picture, after None for the budget's own."""
        pictures = [item for item in self._inputs if item.kind == "image"]
        if len(pictures) != 1:
            return [None]
        spec, size = self._shape.anyres, (pictures[0].height, pictures[0].width)
        most = choose_tiling(spec, size, budget).tiles
        smaller = {
            choose_tiling(spec, size, AnswerOptions(max_tiles=limit)).tiles for limit in range(1, most)
        }
        return [None, *sorted(smaller, reverse=True)]

    def _frames(self, budget: AnswerOptions) -> list[int | None]:
        """Counts of frames less than the budget's, after None for its own."""
        videos = [item.frames or 1 for item in self._inputs if item.kind == "video"]
        if not videos:
            return [None]
        most = min(budget.frames or self._shape.video.frames, max(videos))
        return [None, *range(most - 1, 0, -1)]


def _time(found: Forecast) -> float:
    return float("inf") if found.ttft is None else found.ttft


def fit(
    manifest: Manifest,
    preparer: Preparer,
    reader: Callable[[int], Reader],
    calibration: Calibration,
    messages: Sequence[Message],
    options: AnswerOptions,
    clock: StageClock,
) -> Fitted:
    """Choose the budget of a prompt whose options have a target.

    Raises:
        InputError: A picture or video that cannot be used.
        UsageError: The calibration does not have what reads the prompt.
    """
    target = options.ttft_target or 0.0
    with clock.stage("read"):
        read, inputs = _look(messages, exif=options.exif)
    with clock.stage("tokenise"):
        tokens = preparer.text_tokens(read, options)
    forecaster = Forecaster(Shape.of(manifest), inputs, tokens, reader, calibration)
    found, fits = forecaster.choose(options, target)
    chosen = found.budget
    return Fitted(read, chosen, found.ttft, () if fits else (late(found, target),))


def late(found: Forecast, target: float) -> str:
    """What is said where no budget keeps to a target of so many seconds."""
    return f"no budget keeps to {target:g} s: the smallest takes about {found.ttft:.2f} s to the first token"


def _look(messages: Sequence[Message], *, exif: bool) -> tuple[tuple[Message, ...], list[Input]]:
    """What messages show. Pictures are read, and stand in the messages as they were read.

    Raises:
        InputError: A picture or video that cannot be used.
    """
    inputs: list[Input] = []

    def seen(part: Part) -> Part:
        if isinstance(part, ImagePart):
            image = read_image(part.source, exif=exif)
            inputs.append(Input("", "image", image.width, image.height))
            return ImagePart(np.asarray(image))
        if isinstance(part, VideoPart):
            inputs.append(_video(part))
        return part

    read = tuple(Message(message.role, tuple(map(seen, message.content))) for message in messages)
    return read, inputs


def _video(part: VideoPart) -> Input:
    if isinstance(part.source, np.ndarray):
        frames, height, width = part.source.shape[:3]
        return Input("", "video", width, height, frames)
    info = probe_video(part.source)
    return Input("", "video", info.width, info.height, info.frames)
