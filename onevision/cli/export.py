"""``onevision export`` and ``onevision synth``: checkpoints to bundles, and checkpoints out of thin air."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from onevision.cli.console import ConsoleSteps, Json, Threads, one_of, print_json, print_warning, stderr
from onevision.errors import UsageError

if TYPE_CHECKING:
    from onevision.export.build import Exported

EXPORT_EXAMPLES = """
Turn a checkpoint into a bundle, and prove it against the reference implementation.

[dim]onevision export --size 0.5b[/]
[dim]onevision export --size 7b --variant si --backbone q4_0 -o llava-7b[/]
[dim]onevision export --source ./my-finetune --vision fp16 --backbone f16 -o bundle[/]
[dim]onevision export --source llava-hf/llava-onevision-qwen2-0.5b-ov-hf --revision main[/]
"""

SYNTH_EXAMPLES = """
Make a checkpoint of the right shape with random weights: for benchmarks and tests without a download.

[dim]onevision synth --size 0.5b checkpoint[/]
[dim]onevision synth --layers 2 --hidden 256 --naming lmms-lab --shards 3 checkpoint[/]
"""

#: What the extra ``export`` brings, and the base install lacks.
_NEEDED = ("torch", "transformers", "optimum", "onnx", "gguf", "safetensors", "huggingface_hub")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export", help=EXPORT_EXAMPLES)(export)
    app.command("synth", help=SYNTH_EXAMPLES)(synth)


def require_export() -> None:
    """Raises a UsageError that says what to install, where the extra ``export`` is not."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(f"this command needs {', '.join(missing)}", hint="pip install 'onevision[export]'")


def export(
    size: Annotated[
        str | None,
        typer.Option(
            help="A published size: [bold]0.5b[/], [bold]7b[/] or [bold]72b[/]. "
            "[dim]default: 0.5b, unless there is a --source[/]",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        str, typer.Option(help="Of that size: [bold]ov[/] (all inputs) or [bold]si[/] (single images).")
    ] = "ov",
    source: Annotated[
        str | None, typer.Option(help="Instead of a size: a local folder or a Hub id.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The bundle's folder. [dim]default: the model's name[/]"),
    ] = None,
    vision: Annotated[
        str, typer.Option(help="Precision of the vision encoder: [bold]fp32[/] or [bold]fp16[/].")
    ] = "fp32",
    backbone: Annotated[
        str,
        typer.Option(help="Precision of the language model: f32, f16, bf16, q8_0, q4_0, iq4_nl, q4_k_m, …"),
    ] = "q8_0",
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a bundle."""
    require_export()
    from onevision.bundle import check_target
    from onevision.export import gguf_report, hub
    from onevision.export.vision import VisionPrecision

    if source is None and size is None:
        size = "0.5b"
    resolved = hub.resolve(source, size=size, variant=variant, revision=revision)
    precisions: dict[str, Any] = {
        "vision": one_of(vision, get_args(VisionPrecision), "--vision"),
        "backbone": one_of(backbone, get_args(gguf_report.BackbonePrecision), "--backbone"),
    }
    name = (resolved.repos[0] if resolved.repos else str(resolved.folder)).rstrip("/\\")
    target = output or Path(f"{Path(name).name.removesuffix('-hf')}-bundle")
    check_target(target, force=force)

    fetched = hub.fetch(resolved, progress=stderr().is_terminal, notify=print_warning)
    # Imported only now: torch takes seconds, which a wrong option should not cost.
    from onevision.export.build import ExportOptions
    from onevision.export.build import export as build

    options = ExportOptions(
        **precisions,
        size=size,
        variant=variant if size else None,
        threads=threads,
        force=force,
    )
    done = build(fetched, target, options, ConsoleSteps())
    if as_json:
        print_json(_summary(done))
    else:
        print(f"{target}  {done.bundle.bytes / 1e6:,.0f} MB")


def _summary(done: Exported) -> dict[str, Any]:
    report = done.backbone
    return {
        "bundle": str(done.bundle.folder),
        "bytes": done.bundle.bytes,
        "backbone": {
            "precision": report.precision,
            "bits_per_weight": report.bits_per_weight,
            "tensor_types": report.tensor_types,
            "fallbacks": {name: list(types) for name, types in report.fallbacks.items()},
        },
        "verify": done.report.to_dict(),
    }


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    size: Annotated[
        str | None,
        typer.Option(
            help="True shape of [bold]0.5b[/] or [bold]7b[/]. [dim]default: a toy[/]", show_default=False
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers of the backbone.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Its hidden size.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Its attention heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Its key-value heads.")] = None,
    intermediate: Annotated[int | None, typer.Option(min=1, help="Width of its MLP.")] = None,
    vocab: Annotated[int | None, typer.Option(min=1, help="Rows of its embedding.")] = None,
    tied: Annotated[bool | None, typer.Option("--tied/--untied", help="The head is the embedding.")] = None,
    vision_layers: Annotated[int | None, typer.Option(min=1, help="Layers of the encoder.")] = None,
    vision_hidden: Annotated[int | None, typer.Option(min=1, help="Its hidden size.")] = None,
    vision_heads: Annotated[int | None, typer.Option(min=1, help="Its attention heads.")] = None,
    vision_intermediate: Annotated[int | None, typer.Option(min=1, help="Width of its MLP.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels per side of a tile.")] = None,
    patch_size: Annotated[int | None, typer.Option(min=1, help="Pixels per side of a patch.")] = None,
    aspect_ratio: Annotated[str | None, typer.Option(help="anyres_max_9, anyres_max_4, anyres, …")] = None,
    grid: Annotated[int | None, typer.Option(min=1, help="Most tiles per side.")] = None,
    naming: Annotated[str, typer.Option(help="Tensor names: hf, hf-4.52, hf-5 or lmms-lab.")] = "hf",
    dtype: Annotated[str | None, typer.Option(help="Stored as bf16, f16 or f32.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Files to spread the weights over.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the weights.")] = None,
    as_json: Json = False,
) -> None:
    """Make a checkpoint with random weights."""
    require_export()
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
    with ConsoleSteps().step(f"checkpoint with random weights in {out}") as progress:
        synthesise(out, spec, progress=progress)
    if as_json:
        print_json({"checkpoint": str(out), "bytes": sum(path.stat().st_size for path in out.rglob("*"))})
    else:
        print(out)
