"""Plan of a prompt: its cost, and that of other budgets, before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onevision.bundle import BACKBONE, PREFILL, Bundle
from onevision.errors import ImageError, VideoError
from onevision.models.shapes import PublishedSize, published_config
from onevision.native.device import Device, default_threads, load_average
from onevision.native.llama import offloads
from onevision.planning.budget import Forecast, Forecaster, video_size
from onevision.planning.cost import Media, Shape
from onevision.planning.estimate import Precisions, estimate_profile
from onevision.planning.speed import SpeedProfile, needed_profile, profile_path, read_profile
from onevision.runtime.anyres import squash
from onevision.runtime.images import read_image
from onevision.runtime.messages import ImagePart, Message
from onevision.runtime.options import AnswerOptions, Prefill
from onevision.runtime.pages import paged
from onevision.runtime.prefill.policy import PrefillBackend, choose_backend, require_graph
from onevision.runtime.prepare import Preparer
from onevision.runtime.tokenizer import open_tokenizer
from onevision.runtime.video import FrameChoice, read_video, share_frames

#: Tokens of the training format around a question, system prompt included.
_TEMPLATE_TOKENS = 22
#: Characters of English text to a token, where there is no tokenizer.
_CHARACTERS_PER_TOKEN = 4

#: Where times come from: they were measured with the bundle, or are estimated.
TimeSource = Literal["measured", "estimated"]


@dataclass(frozen=True)
class PromptPlan:
    """Cost of a prompt, and of the same prompt with other budgets.

    Attributes:
        model: Its name.
        forecast: With the budget that was asked for, or that keeps to the target.
        budgets: Others, for a single image or video, from the largest down.
        backend: Prefill backend; None without a bundle, where the text's tokens are estimated.
        speed: Whether the times were measured with the bundle, or are estimates from its shape, its
            precisions and this machine's speed; None: there are none, for a GPU.
        warnings: Why the target is missed, and that the machine is busy.
        folder: Of the bundle.
    """

    model: str
    forecast: Forecast
    budgets: tuple[Forecast, ...]
    backend: PrefillBackend | None
    speed: TimeSource | None
    warnings: tuple[str, ...] = ()
    folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision plan --json`` prints."""
        return {
            "bundle": self.folder and str(self.folder),
            "model": self.model,
            **self.forecast.cost.to_dict(),
            "device": {"prefill": self.backend},
            "budget": self.forecast.options.budget(self.forecast.ttft),
            "budgets": [row.to_dict() for row in self.budgets],
            "speed": self.speed,
            "warnings": list(self.warnings),
        }


def plan_bundle(
    bundle: Bundle,
    media: Sequence[Media],
    prompt: str,
    options: AnswerOptions,
    *,
    prefill: Prefill = "auto",
    device: Device = "auto",
    threads: int | None = None,
    profile: SpeedProfile | None = None,
) -> PromptPlan:
    """Plan a prompt for a bundle, which is not loaded.

    Args:
        bundle: An opened bundle.
        media: Images and videos of the prompt.
        prompt: The question.
        options: The budget.
        prefill: As the bundle would be loaded with, like the two after it.
        device: Decides on the speed profile.
        threads: Decides on the speed profile.
        profile: Speed profile; None: what `onevision bench` has measured, or an estimate.

    Raises:
        UsageError: A ``ttft_target``, and the speed of the bundle was not measured on this machine; or see
            :func:`~onevision.runtime.prefill.policy.require_graph`.
        DeviceError: ``cuda``, and llama.cpp was built without it.
        VideoError: A video cannot be read.
    """
    require_graph(bundle, prefill)
    if options.ttft_target is not None:
        profile = needed_profile(bundle, device, threads)
    profile = profile or read_profile(profile_path(bundle, device, threads))
    manifest = bundle.manifest
    question = Message("user", (*[ImagePart(b"")] * len(media), prompt))
    with open_tokenizer(bundle.path(BACKBONE)) as tokenizer:
        tokens = Preparer(manifest, tokenizer, np.zeros(0, np.float32)).text_tokens([question], options)
    offloaded = offloads(device)
    backend = partial(choose_backend, prefill, has_graph=PREFILL in manifest.files, offloaded=offloaded)
    shape = Shape.of(manifest)
    speed: TimeSource | None = "measured" if profile else None
    if profile is None and not offloaded:
        profile, speed = estimate_profile(shape, Precisions.of(manifest), threads), "estimated"
    forecaster = Forecaster(shape, media, tokens, backend, profile)
    budget, warnings = options, _busy()
    if options.ttft_target is not None:
        forecast, warning = forecaster.choose(options, options.ttft_target)
        budget, warnings = forecast.options, (*filter(None, [warning]), *warnings)
    forecast = forecaster.forecast(budget, reused_frames=_reused_frames(media, budget, shape))
    used = backend(forecast.cost.prompt_tokens)
    table = forecaster.table(options)
    return PromptPlan(manifest.name, forecast, table, used, speed, warnings, bundle.folder)


def plan_published(
    size: PublishedSize,
    media: Sequence[Media],
    prompt: str,
    options: AnswerOptions,
    threads: int | None = None,
) -> PromptPlan:
    """Plan a prompt for a published model, as ``export`` writes it; the tokens of the text are estimated.

    Raises:
        VideoError: A video cannot be read.
    """
    shape = Shape.of_config(published_config(size))
    tokens = _TEMPLATE_TOKENS + -(-len(prompt) // _CHARACTERS_PER_TOKEN)
    backend = partial(choose_backend, "auto", has_graph=True, offloaded=False)
    forecaster = Forecaster(shape, media, tokens, backend, estimate_profile(shape, Precisions(), threads))
    forecast = forecaster.forecast(options, reused_frames=_reused_frames(media, options, shape))
    return PromptPlan(size, forecast, forecaster.table(options), None, "estimated", _busy())


def _busy() -> tuple[str, ...]:
    """A warning if more work waits for this machine's cores than there are cores."""
    load, cores = load_average(), default_threads()
    if load is None or load <= cores:
        return ()
    longer = (load + cores) / cores
    return (f"the machine is busy (load {load:.1f} on {cores} cores): up to {longer:.1f} x longer meanwhile",)


def media_sizes(path: str, options: AnswerOptions, warn: Callable[[str], None]) -> list[Media]:
    """Sizes of a file's images, one for each page that the options name, or else of a video.

    ``warn`` receives warnings about images.

    Raises:
        ImageError: Neither.
    """
    try:
        sizes = [
            read_image(path, exif=options.exif, page=part.page, warn=warn).size
            for part in paged(ImagePart(path), options)
        ]
    except ImageError as not_an_image:
        if options.page is not None:
            raise
        try:
            return [video_size(path)]
        except VideoError:
            raise not_an_image from None
    return [Media(path, "image", *size) for size in sizes]


def _reused_frames(media: Sequence[Media], options: AnswerOptions, shape: Shape) -> int:
    """Frames of the videos that share the features of others."""
    if options.dedup is None:
        return 0
    prepare = partial(squash, tile=shape.vision.image_size)
    frames = FrameChoice.of(options, shape.video.frames)
    paths = [item.path for item in media if item.kind == "video"]
    videos = (read_video(path, frames=frames, prepare=prepare) for path in paths)
    return sum(share_frames(video.tiles, options.dedup)[1] for video in videos)
