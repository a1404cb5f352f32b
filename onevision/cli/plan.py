"""``onevision plan``: what a prompt costs, before anything is run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from onevision.cli.console import print_json, print_warning
from onevision.cli.options import (
    Device,
    Json,
    Model,
    Prefill,
    Threads,
    answer_options,
    bundle_folder,
    examples,
)
from onevision.errors import UsageError
from onevision.models.shapes import PublishedSize
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onevision.native.device import Device as DeviceName
    from onevision.planning.cost import Input, Shape
    from onevision.planning.speed import Calibration
    from onevision.runtime.options import Prefill as PrefillName
    from onevision.runtime.options import Template
    from onevision.runtime.prefill.policy import Reader

HELP = examples(
    "Tell tiles, tokens, operations, memory and time of a prompt, before anything is run. Times are rough "
    "until `onevision bench` has measured the bundle.",
    "onevision plan photo.jpg",
    "onevision plan photo.jpg -m bundle",
    "onevision plan photo.jpg --ttft-target 5s -m bundle",
    'onevision plan a.png b.png --prompt "Which one is newer?" -m bundle',
    "onevision plan --image-size 4032x3024 --max-tiles 10 --size 0.5b",
)

#: Tokens of the training format around a question, system prompt included.
_TEMPLATE_TOKENS = 22
#: Characters of English text to a token, for want of a vocabulary.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class _Subject:
    """What a prompt is planned for. A published size has no files: no reader, and no calibration."""

    name: str
    shape: Shape
    text_tokens: int
    reader: Callable[[int], Reader] | None = None
    calibration: Calibration | None = None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", help=HELP, short_help="Tell what a prompt costs, before it is run.")(plan)


@answer_options("frames", "max_tiles", "detail", "dedup", "ttft_target", "exif")
def plan(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Pictures and videos.")] = None,
    image_size: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="Stands in for a picture; repeatable.")
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")] = "What is in the picture?",
    model: Model = None,
    *,
    options: AnswerOptions,
    size: Annotated[
        Literal["tiny", PublishedSize] | None,
        typer.Option(
            metavar="NAME",
            help="Instead of a bundle: tiny, 0.5b, 7b or 72b.  [default: tiny, without a bundle]",
        ),
    ] = None,
    prefill: Prefill = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Tell what a prompt costs."""
    from onevision.cli.costs import print_costs
    from onevision.planning.budget import Fitted, Forecaster, late
    from onevision.planning.cost import machine_rate

    target = options.ttft_target
    if target is not None and size is not None:
        raise UsageError(
            "--ttft-target is of a bundle on this machine", hint="name one: -m FOLDER, not --size"
        )
    inputs = [
        *(_measure(path, exif=options.exif) for path in files or ()),
        *(_parse_size(text) for text in image_size or ()),
    ]
    if size is None and (model is not None or target is not None):
        subject = _bundle(bundle_folder(model), prompt, len(inputs), prefill, device, threads, target)
    else:
        subject = _published(size or "tiny", prompt)
    forecaster = Forecaster(
        subject.shape,
        inputs,
        subject.text_tokens,
        subject.reader or (lambda _: "llama"),
        subject.calibration,
        None if subject.calibration else machine_rate(),
    )
    warning = None
    if target is not None:
        found, fits = forecaster.choose(options, target)
        options = found.budget
        warning = None if fits else late(found, target)
    reused = _reused(inputs, options, subject.shape)
    found = forecaster.forecast(options, reused_frames=reused)
    reader = subject.reader and subject.reader(found.costs.prompt_tokens)
    table = forecaster.table(options.frames)
    if warning:
        print_warning(warning)
    if as_json:
        spent = Fitted((), options, found.ttft).spent
        print_json(
            found.costs.to_dict()
            | {"prefill": reader, "budget": asdict(spent), "budgets": [each.to_dict() for each in table]}
        )
    else:
        print_costs(subject.name, found, table, reader, exact=subject.reader is not None)


def _measure(path: str, *, exif: bool) -> Input:
    """Size of a file: a picture, or else a video."""
    from onevision.errors import ImageError, VideoError
    from onevision.planning.cost import Input
    from onevision.runtime.images import read_image
    from onevision.runtime.video import probe_video

    try:
        width, height = read_image(path, exif=exif).size
    except ImageError as not_a_picture:
        try:
            info = probe_video(path)
        except VideoError:
            raise not_a_picture from None
        return Input(path, "video", info.width, info.height, info.frames)
    return Input(path, "image", width, height)


def _parse_size(text: str) -> Input:
    from onevision.planning.cost import Input

    match = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", text.strip())
    if match is None:
        raise UsageError(f"--image-size is {text!r}", hint="width and height in pixels, such as 640x480")
    return Input(text, "image", int(match[1]), int(match[2]))


def _reused(inputs: Sequence[Input], options: AnswerOptions, shape: Shape) -> int:
    """Frames of the videos that take the features of others."""
    if options.dedup is None:
        return 0
    from onevision.runtime.anyres import squash
    from onevision.runtime.features import share_frames
    from onevision.runtime.video import read_video

    prepare = partial(squash, tile=shape.vision.image_size)
    frames = options.frames or shape.video.frames
    videos = (
        read_video(item.path, frames=frames, prepare=prepare) for item in inputs if item.kind == "video"
    )
    return sum(share_frames(video.tiles, options.dedup)[1] for video in videos)


def _published(name: Literal["tiny", PublishedSize], prompt: str) -> _Subject:
    """A published model, or the tiny one, without a bundle of it."""
    from onevision.planning.cost import published

    tokens = _TEMPLATE_TOKENS + -(-len(prompt) // _CHARACTERS_PER_TOKEN)
    return _Subject(name, _shipped() if name == "tiny" else published(name), tokens)


def _shipped() -> Shape:
    """Shape of the tiny model."""
    from onevision.bundle import open_bundle
    from onevision.models import default_bundle
    from onevision.planning.cost import Shape

    return Shape.of(open_bundle(default_bundle()).manifest)


def _bundle(
    folder: Path,
    prompt: str,
    visuals: int,
    prefill: PrefillName,
    device: DeviceName,
    threads: int | None,
    target: float | None,
) -> _Subject:
    """A bundle, without loading it; with a target, its calibration has to be there."""
    from onevision.bundle import BACKBONE, PREFILL, open_bundle
    from onevision.native.device import default_threads
    from onevision.native.placement import expected, placement
    from onevision.planning.cost import Shape
    from onevision.planning.speed import calibration_path, needed_calibration, read_calibration
    from onevision.runtime.backbone import count_tokens
    from onevision.runtime.messages import ImagePart, Message
    from onevision.runtime.prefill import policy as prefiller
    from onevision.runtime.prompt import Control, render

    bundle = open_bundle(folder)
    manifest = bundle.manifest
    template = cast("Template", manifest.prompt.template)
    pictures = (ImagePart(b""),) * visuals
    segments = render((Message("user", (*pictures, prompt)),), template, manifest.prompt.system)
    texts = [segment for segment in segments if isinstance(segment, str)]
    controls = sum(isinstance(segment, Control) for segment in segments)
    encoder, offloaded = expected(device)
    path = calibration_path(manifest, placement(encoder, offloaded=offloaded), threads or default_threads())
    return _Subject(
        manifest.name,
        Shape.of(manifest),
        controls + count_tokens(bundle.path(BACKBONE), texts),
        partial(prefiller.reader, prefill, has_graph=PREFILL in manifest.files, offloaded=offloaded),
        read_calibration(path) if target is None else needed_calibration(path, folder),
    )
