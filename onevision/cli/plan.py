"""``onevision plan``: the cost of a prompt, before anything is run."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

import typer

from onevision.cli.console import print_warning, show
from onevision.cli.options import (
    INPUT,
    Device,
    Json,
    Model,
    Prefill,
    Threads,
    add_command,
    answer_options,
    bundle_folder,
)
from onevision.errors import UsageError
from onevision.models.shapes import PublishedSize
from onevision.runtime.options import AnswerOptions

EXAMPLES = (
    "onevision plan photo.jpg",
    "onevision plan photo.jpg -m bundle",
    "onevision plan photo.jpg --ttft-target 5s -m bundle",
    'onevision plan a.png b.png --prompt "Which one is newer?" -m bundle',
    "onevision plan --image-size 4032x3024 --max-tiles 10 --size 0.5b",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, plan, *EXAMPLES)


@answer_options(
    "frames",
    "fps",
    "from_time",
    "to_time",
    "frames_by",
    "max_tiles",
    "detail",
    "dedup",
    "ttft_target",
    "exif",
    "page",
)
def plan(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Images and videos.")] = None,
    image_size: Annotated[
        list[str] | None,
        typer.Option(metavar="WxH", help="Size instead of an image; repeatable.", rich_help_panel=INPUT),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="The question.", rich_help_panel=INPUT)
    ] = "What is in the image?",
    model: Model = None,
    size: Annotated[
        Literal["tiny", PublishedSize] | None,
        typer.Option(
            metavar="NAME", help="Instead of a bundle: tiny, 0.5b, 7b or 72b.", rich_help_panel=INPUT
        ),
    ] = None,
    *,
    options: AnswerOptions,
    prefill: Prefill = "auto",
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show what a prompt costs, before it is run.

    Tiles, tokens, operations, memory and time; times are those that `onevision bench` has measured. Without
    them a bundle of up to 200 MB is measured now, and a larger one, or a size, is estimated.
    """
    import onevision
    from onevision.cli.costs import print_plan

    if size and model not in (None, os.environ.get("ONEVISION_MODEL")):
        raise UsageError("--size and -m exclude each other", hint="leave one of them out")
    media = [*(files or ()), *map(_parse_size, image_size or ())]
    found = onevision.plan(
        media,
        prompt,
        bundle=None if size else bundle_folder(model),
        size=size,
        options=options,
        prefill=prefill,
        device=device,
        threads=threads,
    )
    for warning in found.warnings:
        print_warning(warning)
    show(as_json, found.to_dict(), print_plan, found)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", text.strip())
    if match is None:
        raise UsageError(f"--image-size is {text!r}, it must be width and height in pixels, such as 640x480")
    return int(match[1]), int(match[2])
