"""``onevision plan``: what a prompt costs, before anything is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onevision.cli.console import Exif, Json, Model, examples, one_of, print_facts, print_json, stdout
from onevision.errors import UsageError
from onevision.export.disk import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.runtime.plan import Input, Plan, PlannedInput, Shape

HELP = examples(
    "Tell tiles, tokens, operations, memory and a rough time of a prompt, before anything is run.",
    "onevision plan photo.jpg",
    "onevision plan photo.jpg -m bundle",
    'onevision plan a.png b.png --prompt "Which one is newer?" -m bundle',
    "onevision plan --image-size 4032x3024 --size 0.5b",
)

#: Tokens of the training format around a question, system prompt included.
_TEMPLATE_TOKENS = 22
#: Characters of English text to a token, for want of a vocabulary.
_CHARACTERS_PER_TOKEN = 4


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan", help=HELP, short_help="Tell what a prompt costs, before it is run.")(plan)


def plan(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Pictures and videos.")] = None,
    image_size: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="Stands in for a picture; repeatable.")
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The question.")] = "What is in the picture?",
    frames: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Frames taken from a video.  [default: the model's]"),
    ] = None,
    exif: Exif = True,
    model: Model = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of a bundle: tiny, 0.5b, 7b or 72b.  [default: tiny, without a bundle]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a prompt costs."""
    from onevision.runtime import plan as planning

    inputs = [
        *(_measure(path, exif=exif) for path in files or ()),
        *(_parse_size(text) for text in image_size or ()),
    ]
    exact = model is not None and size is None
    if model is not None and size is None:
        name, shape, tokens = _of_bundle(model, prompt, len(inputs))
    else:
        name = one_of(size or "tiny", ("tiny", *planning.PUBLISHED), "--size")
        shape = _shipped() if name == "tiny" else planning.published(name)
        tokens = _TEMPLATE_TOKENS + -(-len(prompt) // _CHARACTERS_PER_TOKEN)
    costs = planning.plan(
        shape, inputs, text_tokens=tokens, frames=frames, flops_per_second=planning.machine_rate()
    )
    if as_json:
        print_json(costs.to_dict())
    else:
        _print(costs, name, exact=exact)


def _measure(path: str, *, exif: bool) -> Input:
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
        return Input(path, "video", info.width, info.height, info.frames)
    return Input(path, "image", width, height)


def _parse_size(text: str) -> Input:
    from onevision.runtime.plan import Input

    match = re.fullmatch(r"([1-9]\d{0,5})[xX×]([1-9]\d{0,5})", text.strip())
    if match is None:
        raise UsageError(f"--image-size is {text!r}", hint="width and height in pixels, such as 640x480")
    return Input(text, "image", int(match[1]), int(match[2]))


def _shipped() -> Shape:
    """Shape of the tiny model, read from its checkpoint: planning makes no bundle."""
    from onevision.export.config import read_config
    from onevision.export.shape import backbone_info, video_info, vision_info
    from onevision.models import SHIPPED
    from onevision.runtime.plan import KV_BYTES, Shape

    config = read_config(SHIPPED["tiny", "ov"])
    # The default bundle is in full precision, and so is its cache.
    return Shape(vision_info(config), backbone_info(config, 32.0), video_info(config), KV_BYTES * 2)


def _of_bundle(folder: Path, prompt: str, visuals: int) -> tuple[str, Shape, int]:
    """A bundle's name and shape, and the text tokens of a prompt in its format."""
    from onevision.bundle import BACKBONE, open_bundle
    from onevision.runtime.backbone import count_tokens
    from onevision.runtime.plan import Shape
    from onevision.runtime.prompt import Control, ImagePart, Message, render

    bundle = open_bundle(folder)
    manifest = bundle.manifest
    template = one_of(manifest.prompt.template, ("training", "hf"), "the bundle's template")
    pictures = (ImagePart(b""),) * visuals
    segments = render((Message("user", (*pictures, prompt)),), template, manifest.prompt.system)
    texts = [segment for segment in segments if isinstance(segment, str)]
    controls = sum(isinstance(segment, Control) for segment in segments)
    return manifest.name, Shape.of(manifest), controls + count_tokens(bundle.path(BACKBONE), texts)


def _print(costs: Plan, model: str, *, exact: bool) -> None:
    if costs.inputs:
        _print_inputs(costs.inputs)
    about = "" if exact else "about "
    share = costs.prompt_tokens / costs.context_length
    facts = {
        "model": model,
        "prompt": f"{about}{costs.prompt_tokens:,} tokens, {share:.0%} of {costs.context_length:,}",
        "KV cache": readable(costs.kv_bytes),
    }
    for stage, count in costs.flops.items():
        seconds = f", {_duration(costs.seconds[stage])} here" if costs.seconds else ""
        facts[stage] = f"{_operations(count)}{seconds}"
    print_facts(facts)
    if costs.prompt_tokens >= costs.context_length:
        stdout().print("the context cannot hold this prompt", style="red")


def _print_inputs(inputs: Sequence[PlannedInput]) -> None:
    from rich.table import Column, Table

    numbers = [Column(name, justify="right", no_wrap=True) for name in ("size", "grid", "tiles", "tokens")]
    table = Table(Column("input", overflow="fold"), *numbers, box=None, pad_edge=False)
    for item in inputs:
        if item.grid:
            cut = f"{item.grid[1]}×{item.grid[0]}"
        else:
            cut = f"{item.frames} frames" if item.frames else "–"
        name = Path(item.path).name
        table.add_row(name, f"{item.width}×{item.height}", cut, str(item.tiles), f"{item.image_tokens:,}")
    stdout().print(table)


def _operations(count: int) -> str:
    return f"{count / 1e9:,.1f} GFLOP" if count < 1e12 else f"{count / 1e12:,.1f} TFLOP"


def _duration(seconds: float) -> str:
    if seconds < 0.1:
        return "under 0.1 s"
    return f"roughly {seconds:,.1f} s" if seconds < 120 else f"roughly {seconds / 60:,.0f} min"
