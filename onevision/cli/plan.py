"""``onevision plan``: what a prompt costs, before anything is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onevision.cli.console import Json, Model, one_of, print_json
from onevision.errors import UsageError

if TYPE_CHECKING:
    from onevision.runtime.plan import Input, Plan, Shape

EXAMPLES = """
Tell tiles, tokens, operations, memory and a rough time of a prompt, before anything is run.

[dim]onevision plan photo.jpg -m bundle[/]
[dim]onevision plan a.png b.png --prompt "Which one is newer?" -m bundle[/]
[dim]onevision plan --image-size 4032x3024 --size 0.5b[/]
"""

#: Tokens of the training format around a question, system prompt included.
_TEMPLATE_TOKENS = 22
#: Characters of English text to a token, for want of a vocabulary.
_CHARACTERS_PER_TOKEN = 4


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", help=EXAMPLES)(plan)


def plan(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Pictures and videos.", show_default=False)
    ] = None,
    image_size: Annotated[
        list[str] | None,
        typer.Option(metavar="WxH", help="Stands in for a picture; repeatable.", show_default=False),
    ] = None,
    prompt: Annotated[str, typer.Option(help="The question.")] = "What is in the picture?",
    frames: Annotated[int | None, typer.Option(min=1, help="Frames taken from a video.")] = None,
    exif: Annotated[bool, typer.Option("--exif/--no-exif", help="Turn pictures as EXIF says.")] = True,
    model: Model = None,
    size: Annotated[
        str,
        typer.Option(help="Without a bundle: a published size, [bold]0.5b[/], [bold]7b[/] or [bold]72b[/]."),
    ] = "0.5b",
    as_json: Json = False,
) -> None:
    """Tell what a prompt costs."""
    from onevision.runtime import plan as planning

    inputs = [
        *(_measure(path, exif=exif) for path in files or ()),
        *(_parse_size(text) for text in image_size or ()),
    ]
    if model is None:
        shape = planning.published(one_of(size, tuple(planning.PUBLISHED), "--size"))
        tokens = _TEMPLATE_TOKENS + -(-len(prompt) // _CHARACTERS_PER_TOKEN)
    else:
        shape, tokens = _of_bundle(model, prompt, len(inputs))
    costs = planning.plan(
        shape, inputs, text_tokens=tokens, frames=frames, flops_per_second=planning.machine_rate()
    )
    if as_json:
        print_json(costs.to_dict())
    else:
        _print(costs, exact=model is not None)


def _measure(path: Path, *, exif: bool) -> Input:
    """Size of a file: a picture, or else a video."""
    from onevision.errors import ImageError, VideoError
    from onevision.runtime.images import read_image
    from onevision.runtime.plan import Input
    from onevision.runtime.video import probe_video

    try:
        width, height = read_image(path, exif=exif).size
    except ImageError as not_a_picture:
        try:
            info = probe_video(path)
        except VideoError:
            raise not_a_picture from None
        return Input(str(path), "video", info.width, info.height, info.frames)
    return Input(str(path), "image", width, height)


def _parse_size(text: str) -> Input:
    from onevision.runtime.plan import Input

    match = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", text.strip())
    if match is None:
        raise UsageError(f"--image-size is {text!r}", hint="width and height in pixels, such as 640x480")
    return Input(text, "image", int(match[1]), int(match[2]))


def _of_bundle(folder: Path, prompt: str, visuals: int) -> tuple[Shape, int]:
    """A bundle's shape, and the text tokens of a prompt in its format."""
    from onevision.bundle import BACKBONE, open_bundle
    from onevision.runtime.backbone import count_tokens
    from onevision.runtime.plan import KV_BYTES, Shape
    from onevision.runtime.prompt import Control, ImagePart, Message, render

    bundle = open_bundle(folder)
    manifest = bundle.manifest
    exact = manifest.files[BACKBONE].precision == "f32"
    shape = Shape(manifest.vision, manifest.backbone, manifest.video, KV_BYTES * 2 if exact else KV_BYTES)
    template = one_of(manifest.prompt.template, ("training", "hf"), "the bundle's template")
    pictures = (ImagePart(b""),) * visuals
    segments = render((Message("user", (*pictures, prompt)),), template, manifest.prompt.system)
    texts = [segment for segment in segments if isinstance(segment, str)]
    controls = sum(isinstance(segment, Control) for segment in segments)
    return shape, controls + count_tokens(bundle.path(BACKBONE), texts)


def _print(costs: Plan, *, exact: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if costs.inputs:
        table = Table("input", "size", "grid", "tiles", "tokens", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for item in costs.inputs:
            shape = f"{item.width}×{item.height}"
            grid = (
                f"{item.grid[1]}×{item.grid[0]}"
                if item.grid
                else f"{item.frames} frames"
                if item.frames
                else "–"
            )
            table.add_row(item.path, shape, grid, str(item.tiles), f"{item.image_tokens:,}")
        console.print(table)
    about = "" if exact else "about "
    share = costs.prompt_tokens / costs.context_length
    console.print(f"prompt    {about}{costs.prompt_tokens:,} tokens, {share:.0%} of {costs.context_length:,}")
    console.print(f"KV cache  {costs.kv_bytes / 1e6:,.1f} MB")
    for stage, count in costs.flops.items():
        seconds = f", roughly {costs.seconds[stage]:,.1f} s here" if costs.seconds else ""
        console.print(f"{stage:8}  {count / 1e12:,.2f} TFLOP{seconds}")
    if costs.prompt_tokens >= costs.context_length:
        console.print("[red]The context cannot hold this prompt.[/]")
