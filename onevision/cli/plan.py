"""``onevision plan``: the cost of a prompt, before anything is run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from onevision.cli.console import (
    Device,
    Json,
    Model,
    Prefill,
    Threads,
    bundle_folder,
    examples,
    one_of,
    print_json,
    print_warning,
)
from onevision.cli.options import answer_options
from onevision.errors import UsageError
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from onevision.planning.cost import Media

HELP = examples(
    "Show the tiles, tokens, operations, memory and time of a prompt, before anything is run. Times are "
    "rough until `onevision bench` has measured the bundle.",
    "onevision plan photo.jpg",
    "onevision plan photo.jpg -m bundle",
    "onevision plan photo.jpg --ttft-target 5s -m bundle",
    'onevision plan a.png b.png --prompt "Which one is newer?" -m bundle',
    "onevision plan --image-size 4032x3024 --max-tiles 10 --size 0.5b",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", help=HELP, short_help="Tell what a prompt costs, before it is run.")(plan)


@answer_options("frames", "max_tiles", "detail", "dedup", "ttft_target", "exif")
def plan(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Images and videos.")] = None,
    image_size: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="Size instead of an image; repeatable.")
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")] = "What is in the image?",
    options: AnswerOptions = AnswerOptions(),  # noqa: B008 - frozen
    model: Model = None,
    size: Annotated[
        str | None,
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
    from onevision.bundle import open_bundle
    from onevision.cli.costs import print_plan
    from onevision.models.shapes import PublishedSize
    from onevision.native import device as devices
    from onevision.planning.plan import media_size, plan_bundle, plan_published
    from onevision.runtime import options as answering

    where = one_of(device, get_args(devices.Device), "--device")
    backend = one_of(prefill, get_args(answering.Prefill), "--prefill")
    if options.ttft_target is not None and size is not None:
        raise UsageError(
            "--ttft-target needs a bundle on this machine", hint="name one: -m FOLDER, not --size"
        )
    media = [
        *(media_size(path, exif=options.exif) for path in files or ()),
        *(_parse_size(text) for text in image_size or ()),
    ]
    if size in {None, "tiny"}:
        bundle = open_bundle(bundle_folder(model if size is None else None))
        found = plan_bundle(bundle, media, prompt, options, prefill=backend, device=where, threads=threads)
    else:
        known = get_args(PublishedSize)
        found = plan_published(one_of(size, ("tiny", *known), "--size"), media, prompt, options)
    if found.warning:
        print_warning(found.warning)
    if as_json:
        print_json(found.to_dict())
    else:
        print_plan(found)


def _parse_size(text: str) -> Media:
    from onevision.planning.cost import Media

    match = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", text.strip())
    if match is None:
        raise UsageError(f"--image-size is {text!r}", hint="width and height in pixels, such as 640x480")
    return Media(text, "image", int(match[1]), int(match[2]))
