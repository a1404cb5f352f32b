"""``onevision export`` and ``onevision synth``: checkpoints to bundles, and synthetic checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onevision.cli.console import ConsoleProgress, print_next, show
from onevision.cli.gate import (
    BackboneOption,
    Calibration,
    FastVision,
    Force,
    ImatrixFile,
    Limit,
    NoImatrix,
    Questions,
    ask_with,
    imatrix_choice,
    print_quantized,
    summary,
)
from onevision.cli.options import INPUT, Json, Quiet, Threads, add_command, choices, expand, option
from onevision.errors import UsageError
from onevision.extras import require
from onevision.models.shapes import Naming, PublishedSize, SynthDtype, SynthSize, Variant
from onevision.precisions import Exporter, PrefillPrecision
from onevision.runtime.options import TemplateChoice

if TYPE_CHECKING:
    from onevision.export.synth import SynthSpec

EXPORT_EXAMPLES = (
    "onevision export",
    "onevision export --size 0.5b",
    "onevision export --size 7b --variant si -o llava-7b",
    "onevision export --size 7b --variant video -o llava-video",
    "onevision export --size 0.5b --vision auto --backbone auto -o small",
    "onevision export --size 0.5b --vision int8 --calibration photos/",
    "onevision export --source my-finetune --vision fp16 --prefill none",
    "onevision export --source owner/name --revision main",
)
SYNTH_EXAMPLES = (
    "onevision synth --size 0.5b checkpoint",
    "onevision synth --layers 2 --hidden 256 --naming lmms-lab checkpoint",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add_command(app, export, *EXPORT_EXAMPLES)
    add_command(app, synth, *SYNTH_EXAMPLES)


def export(
    size: Annotated[
        Literal["tiny", PublishedSize] | None,
        typer.Option(
            metavar="NAME",
            help="tiny, which comes with onevision, or a published size: 0.5b, 7b or 72b.  [default: tiny, "
            "unless there is a --source]",
            rich_help_panel=INPUT,
        ),
    ] = None,
    variant: Annotated[
        Variant | None,
        typer.Option(
            metavar=choices(Variant),
            help="Variant of the size: ov (all inputs), si (single images), and for 7b and 72b chat and "
            "video (LLaVA-Video).  [default: ov]",
            rich_help_panel=INPUT,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="Instead of a size: a local folder or a Hub id.", rich_help_panel=INPUT
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch, tag or commit on the Hub.", rich_help_panel=INPUT),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="LoRA adapter (PEFT) to merge into the weights.", rich_help_panel=INPUT
        ),
    ] = None,
    vision_tower: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="SigLIP tower that the checkpoint was trained with, a published name or a folder, where its "
            "mm_vision_tower names none.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    template: Annotated[
        TemplateChoice,
        typer.Option(
            metavar=choices(TemplateChoice),
            help="Prompt format: auto is that of the checkpoint's own chat template, training that of "
            "LLaVA-OneVision's training, hf the Hub's.",
            rich_help_panel=INPUT,
        ),
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Folder of the bundle.  [default: the checkpoint's name and -bundle]",
        ),
    ] = None,
    vision: FastVision = None,
    exporter: Annotated[
        Exporter,
        typer.Option(
            metavar=choices(Exporter),
            help="Writer of the vision encoder's graph; optimum traces transformers' modules, in fp32 only.",
        ),
    ] = "onevision",
    backbone: BackboneOption = "q8_0",
    prefill: Annotated[
        Literal["none", "onnx"],
        typer.Option(
            metavar="none|onnx",
            help="onnx: also write the language model's layers as a graph, which reads long prompts faster "
            "than llama.cpp, and takes as much memory again.",
        ),
    ] = "onnx",
    prefill_precision: Annotated[
        PrefillPrecision | None,
        typer.Option(metavar=choices(PrefillPrecision), help="Precision of that graph.  [default: int8]"),
    ] = None,
    calibration: Calibration = None,
    imatrix: ImatrixFile = None,
    no_imatrix: NoImatrix = False,
    questions: Questions = None,
    limit: Limit = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a bundle. It is proven against the reference implementation."""
    import onevision

    if prefill_precision is not None and prefill == "none":
        raise UsageError("--prefill-precision needs --prefill onnx")
    done = onevision.export(
        source,
        output,
        size=size,
        variant=variant,
        revision=revision,
        adapter=adapter,
        vision_tower=vision_tower,
        template=template,
        vision=vision,
        backbone=backbone,
        exporter=exporter,
        prefill=None if prefill == "none" else prefill_precision or "int8",
        calibration=calibration,
        imatrix=imatrix_choice(imatrix, no_imatrix),
        questions=questions,
        limit=limit,
        threads=threads,
        force=force,
        progress=ConsoleProgress(quiet=quiet),
    )
    from onevision.quant.search import Quantized

    folder = done.bundle.folder
    if isinstance(done, Quantized):
        print_quantized(done, as_json=as_json)
    else:
        line = f"{folder}  {done.bundle.bytes / 1e6:,.0f} MB"
        show(as_json, summary(done.bundle, done.backbone, done.report), print, line)
    print_next(ask_with(folder), quiet=quiet or as_json)


#: Help of the fields of :class:`onevision.export.synth.SynthSpec` that are numbers.
_SIZES = {
    "layers": "Layers of the backbone.",
    "hidden": "Hidden size of the backbone.",
    "heads": "Attention heads of the backbone.",
    "kv_heads": "Key-value heads of the backbone.",
    "intermediate": "Width of the backbone's MLP.",
    "vocab": "Rows of the embedding.",
    "vision_layers": "Layers of the vision encoder.",
    "vision_hidden": "Hidden size of the vision encoder.",
    "vision_heads": "Attention heads of the vision encoder.",
    "vision_intermediate": "Width of the vision encoder's MLP.",
    "image_size": "Pixels per side of a tile.",
    "patch_size": "Pixels per side of a patch.",
    "grid": "Maximum number of tiles per side.",
    "shards": "Number of weight files.",
    "seed": "Seed of the weights.",
}
_MOST = {"layers": 1000, "vision_layers": 1000, "grid": 64}  # more, and an export refuses the checkpoint


def _spec(values: dict[str, Any]) -> SynthSpec:
    """Shape of the checkpoint: that of a size, or the toy's, with the given changes."""
    require("export", "this command")
    from onevision.export.synth import SynthSpec

    given = {name: value for name, value in values.items() if value is not None}
    size, naming = given.pop("size", None), given.get("naming", "hf")
    return replace(SynthSpec(naming=naming) if size is None else SynthSpec.preset(size, naming), **given)


@expand(
    "spec",
    [
        option(
            "size",
            SynthSize | None,
            None,
            metavar=choices(SynthSize),
            help="Shape of a published model.  [default: a toy]",
        ),
        *(
            option(name, int | None, None, metavar="N", help=about, max=_MOST.get(name))
            for name, about in _SIZES.items()
        ),
        option("tied", bool | None, None, "--tied/--untied", help="Whether the head is the embedding."),
        option(
            "aspect_ratio", str | None, None, metavar="NAME", help="anyres_max_9, anyres_max_4, anyres, …"
        ),
        option(
            "naming",
            Naming | None,
            None,
            metavar=choices(Naming),
            help="Names of the tensors.  [default: hf]",
        ),
        option(
            "dtype",
            SynthDtype | None,
            None,
            metavar=choices(SynthDtype),
            help="Type of the weights.  [default: bf16]",
        ),
    ],
    _spec,
)
def synth(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the checkpoint.")],
    *,
    spec: SynthSpec,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint with random weights. For benchmarks and tests without a download."""
    from onevision.export.synth import synthesize

    with ConsoleProgress(quiet=quiet).step("checkpoint with random weights") as advance:
        synthesize(out, spec, advance=advance)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    show(as_json, {"checkpoint": str(out), "bytes": size}, print, out)
    print_next(f"onevision export --source {quote(str(out))}", quiet=quiet or as_json)
