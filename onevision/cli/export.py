"""``onevision export`` and ``onevision synth``: checkpoints to bundles, and checkpoints out of thin air."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from onevision.cli.console import (
    ConsoleProgress,
    Json,
    Threads,
    examples,
    one_of,
    print_json,
    print_warning,
    stderr,
)
from onevision.cli.gate import (
    BackboneOption,
    Calibration,
    Force,
    ImatrixFile,
    Limit,
    NoImatrix,
    Questions,
    Vision,
    imatrix_choice,
    print_quantized,
    summary,
)
from onevision.errors import UsageError
from onevision.extras import require
from onevision.precisions import Exporter

if TYPE_CHECKING:
    from onevision.export.hub import Source

EXPORT_HELP = examples(
    "Turn a checkpoint into a bundle, and prove it against the reference implementation.",
    "onevision export",
    "onevision export --size 0.5b",
    "onevision export --size 7b --variant si -o llava-7b",
    "onevision export --size 0.5b --vision auto --backbone auto -o small",
    "onevision export --size 0.5b --vision int8 --calibration photos/",
    "onevision export --source ./my-finetune --vision fp16 --backbone f16",
    "onevision export --source owner/name --revision main",
)

SYNTH_HELP = examples(
    "Make a checkpoint of the right shape with random weights, for benchmarks and tests without a download.",
    "onevision synth --size 0.5b checkpoint",
    "onevision synth --layers 2 --hidden 256 --naming lmms-lab checkpoint",
)

#: More than that, and an export would refuse the checkpoint.
_MOST_LAYERS, _MOST_GRID = 1000, 64


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export", help=EXPORT_HELP, short_help="Turn a checkpoint into a bundle.")(export)
    app.command("synth", help=SYNTH_HELP, short_help="Make a checkpoint with random weights.")(synth)


def export(
    size: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="tiny, which comes with onevision, or a published size: 0.5b, 7b or 72b.  [default: tiny, "
            "unless there is a --source]",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of that size: ov (all inputs) or si (single images).  [default: ov]"
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Instead of a size: a local folder or a Hub id.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the Hub.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Where the bundle goes.  [default: the model's name]"
        ),
    ] = None,
    vision: Vision = "fp32",
    exporter: Annotated[
        Exporter,
        typer.Option(
            help="Writer of the vision encoder's graph; optimum traces transformers' modules, in fp32 only."
        ),
    ] = "onevision",
    backbone: BackboneOption = "q8_0",
    calibration: Calibration = None,
    imatrix: ImatrixFile = None,
    no_imatrix: NoImatrix = False,
    questions: Questions = None,
    limit: Limit = None,
    prefill: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="onnx: also write the language model's layers as a graph, which reads long prompts faster "
            "than llama.cpp; none.",
        ),
    ] = "none",
    prefill_precision: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Precision of that graph: int8 or fp32.  [default: int8]"),
    ] = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a bundle."""
    require("export", "this command")
    from onevision.bundle import check_target
    from onevision.export import hub
    from onevision.export.build import ExportOptions
    from onevision.export.build import export as build
    from onevision.quant.candidates import GateConfig
    from onevision.quant.search import export_quantized, needs_gate

    if source is None and size is None:
        size = "tiny"
    if variant is not None and source is not None:
        raise UsageError("--variant belongs to a --size, not to a --source")
    resolved = hub.resolve(source, size=size, variant=variant or "ov", revision=revision)
    target = output or _default_target(resolved)
    check_target(target, force=force)
    names: dict[str, Any] = {
        "prefill": _prefill(prefill, prefill_precision),
        "exporter": exporter,
        "size": size,
        "variant": variant or "ov" if size else None,
        "threads": threads,
    }
    gated = needs_gate(vision, backbone)
    if not gated and (calibration or imatrix or no_imatrix or questions or limit):
        raise UsageError(
            "--calibration, --imatrix, --no-imatrix, --questions and --limit are for the quality gate",
            hint="with --vision int8 or auto, or a --backbone coarser than q8_0",
        )
    if exporter == "optimum" and (gated or vision != "fp32"):
        raise UsageError(
            "--exporter optimum writes fp32, which cannot be quantized afterwards",
            hint="leave out --exporter, or --vision and a --backbone coarser than q8_0",
        )
    choice = imatrix_choice(imatrix, no_imatrix)
    config = GateConfig(questions, limit, calibration, imatrix=choice, threads=threads)
    config.check()

    fetched = hub.fetch(resolved, progress=stderr().is_terminal, notify=print_warning)
    progress = ConsoleProgress()
    if gated:
        options = ExportOptions(**names, force=force)
        done = export_quantized(fetched, target, options, config, progress, vision=vision, backbone=backbone)
        print_quantized(done, as_json=as_json)
        return
    precisions: dict[str, Any] = {"vision": vision, "backbone": backbone}
    exported = build(fetched, target, ExportOptions(**precisions, **names, force=force), progress)
    if as_json:
        print_json(summary(exported.bundle, exported.backbone, exported.report))
    else:
        print(f"{target}  {exported.bundle.bytes / 1e6:,.0f} MB")


def _prefill(prefill: str, precision: str | None) -> str | None:
    """Precision of the prefill graph, if there is to be one."""
    from onevision.graphs.qwen2 import PrefillPrecision

    if one_of(prefill, ("none", "onnx"), "--prefill") == "onnx":
        return str(one_of(precision or "int8", get_args(PrefillPrecision), "--prefill-precision"))
    if precision is not None:
        raise UsageError("--prefill-precision needs --prefill onnx")
    return None


def _default_target(source: Source) -> Path:
    """A folder here, named after the repository or the checkpoint's folder."""
    folder = source.folder
    name = source.repos[0].split("/")[-1] if folder is None else folder.resolve().name
    return Path(f"{name.removesuffix('-hf')}-bundle")


def _count(about: str, *, most: int | None = None) -> Any:  # noqa: ANN401
    """An option that takes a number; SynthSpec looks at the rest."""
    return typer.Option(max=most, metavar="N", help=about)


def synth(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the checkpoint goes.")],
    size: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The true shape of 0.5b or 7b.  [default: a toy]"),
    ] = None,
    layers: Annotated[int | None, _count("Layers of the backbone.", most=_MOST_LAYERS)] = None,
    hidden: Annotated[int | None, _count("Its hidden size.")] = None,
    heads: Annotated[int | None, _count("Its attention heads.")] = None,
    kv_heads: Annotated[int | None, _count("Its key-value heads.")] = None,
    intermediate: Annotated[int | None, _count("Width of its MLP.")] = None,
    vocab: Annotated[int | None, _count("Rows of its embedding.")] = None,
    tied: Annotated[
        bool | None, typer.Option("--tied/--untied", help="Whether the head is the embedding.")
    ] = None,
    vision_layers: Annotated[int | None, _count("Layers of the vision encoder.", most=_MOST_LAYERS)] = None,
    vision_hidden: Annotated[int | None, _count("Its hidden size.")] = None,
    vision_heads: Annotated[int | None, _count("Its attention heads.")] = None,
    vision_intermediate: Annotated[int | None, _count("Width of its MLP.")] = None,
    image_size: Annotated[int | None, _count("Pixels per side of a tile.")] = None,
    patch_size: Annotated[int | None, _count("Pixels per side of a patch.")] = None,
    aspect_ratio: Annotated[
        str | None, typer.Option(metavar="NAME", help="anyres_max_9, anyres_max_4, anyres, …")
    ] = None,
    grid: Annotated[int | None, _count("Most tiles per side.", most=_MOST_GRID)] = None,
    naming: Annotated[
        str, typer.Option(metavar="NAME", help="Names of the tensors: lmms-lab, hf, hf-4.52 or hf-5.")
    ] = "hf",
    dtype: Annotated[str | None, typer.Option(metavar="TYPE", help="Stored as bf16, f16 or f32.")] = None,
    shards: Annotated[int | None, _count("Files to spread the weights over.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the weights.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint with random weights."""
    require("export", "this command")
    from onevision.export.synth import Naming, SynthDtype, SynthSize, SynthSpec, synthesise

    given = dict(locals())
    scheme = one_of(naming, get_args(Naming), "--naming")
    if dtype is not None:
        one_of(dtype, get_args(SynthDtype), "--dtype")
    base = (
        SynthSpec(naming=scheme)
        if size is None
        else SynthSpec.preset(one_of(size, get_args(SynthSize), "--size"), scheme)
    )
    chosen = {field.name: given[field.name] for field in fields(base) if given.get(field.name) is not None}
    spec = replace(base, **chosen)
    with ConsoleProgress().step("checkpoint with random weights") as advance:
        synthesise(out, spec, advance=advance)
    if as_json:
        sizes = (path.stat().st_size for path in out.rglob("*") if path.is_file())
        print_json({"checkpoint": str(out), "bytes": sum(sizes)})
    else:
        print(out)
