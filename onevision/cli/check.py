"""``onevision verify``, ``inspect`` and ``doctor``: is it right, what is it, what can this machine do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from onevision.cli.console import CheckSums, Device, Json, Model, Threads, bundle_folder, one_of, print_json
from onevision.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onevision.bundle import Bundle
    from onevision.golden import ReferenceCase
    from onevision.verify import Report

VERIFY_EXAMPLES = """
Prove a bundle against the reference implementation, stage by stage.

[dim]onevision verify -m bundle[/]
[dim]onevision verify -m bundle --reference checkpoint --image photo.jpg[/]
"""

_LIVE_PROMPT = "What is in this picture?"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("verify", help=VERIFY_EXAMPLES)(verify)
    app.command("inspect", help="Show what a bundle is.\n\n[dim]onevision inspect bundle --check[/]")(inspect)
    app.command("doctor", help="Show what this machine can do, and what it lacks.")(doctor)


def verify(
    model: Model = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint's folder: run the reference now, instead of comparing with the vectors that "
            "came with the bundle. Needs onevision\\[export].",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("-i", "--image", help="Pictures for --reference; repeatable.", show_default=False),
    ] = None,
    prompt: Annotated[str, typer.Option(help="The question for --reference.")] = _LIVE_PROMPT,
    device: Device = "auto",
    threads: Threads = None,
    check: CheckSums = False,
    as_json: Json = False,
) -> None:
    """Prove a bundle against the reference."""
    from onevision import verify as proof
    from onevision.bundle import GOLDEN, open_bundle
    from onevision.golden import load_golden
    from onevision.runtime import device as devices
    from onevision.runtime.engine import OneVision

    where = one_of(device, get_args(devices.Device), "--device")
    if image and reference is None:
        raise UsageError("--image needs --reference: the bundle's own vectors have their pictures")
    bundle = open_bundle(bundle_folder(model), check=check)
    cases: Iterable[ReferenceCase]
    if reference is None:
        cases = load_golden(bundle.path(GOLDEN))
    else:
        cases = (_live_case(reference, image or [], prompt),)
    with OneVision(bundle, device=where, threads=threads) as loaded:
        report = proof.verify(loaded, cases)
    if as_json:
        print_json({"bundle": str(bundle.folder), **report.to_dict()})
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _live_case(folder: Path, images: Sequence[Path], prompt: str) -> ReferenceCase:
    """Run the reference on the user's pictures, which are opened as a run opens them."""
    import numpy as np

    from onevision.cli.console import ConsoleSteps, print_warning
    from onevision.cli.export import require_export
    from onevision.runtime.images import read_image

    require_export()
    from onevision.export.checkpoint import Checkpoint
    from onevision.export.reference import Reference, fits_in_memory
    from onevision.export.tokenizer import read_tokenizer

    pictures = [np.asarray(read_image(path)) for path in images]
    with Checkpoint.open(folder) as checkpoint, ConsoleSteps().step("running the reference"):
        whole = fits_in_memory(checkpoint.config)
        if not whole:
            print_warning(
                "the language model is too large for this memory: comparing up to the visual tokens"
            )
        banned = read_tokenizer(folder, checkpoint.config).never_sampled
        live = Reference(checkpoint, backbone=whole)
        return live.case("live", prompt, images=pictures, banned=banned)


def _print_report(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "stage", "max error", "relative", "tolerance", "", "", box=None, pad_edge=False)
    for column in table.columns[2:5]:
        column.justify = "right"
    verdicts = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]reported[/]"}
    for case in report.cases:
        for number, stage in enumerate(case.stages):
            values = (stage.max_error, stage.relative_error, stage.tolerance)
            cells = ("" if value is None else f"{value:.2g}" for value in values)
            name = case.name if number == 0 else ""
            table.add_row(name, stage.stage, *cells, verdicts[stage.passed], stage.note)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "[green]the bundle computes what the reference does[/]" if report.passed else "[red]it does not[/]"
    )


def inspect(
    folder: Annotated[
        Path | None, typer.Argument(help="The bundle's folder.", metavar="BUNDLE", show_default=False)
    ] = None,
    model: Model = None,
    check: CheckSums = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle is."""
    from onevision.bundle import open_bundle

    bundle = open_bundle(bundle_folder(folder or model), check=check)
    if as_json:
        import json

        print_json({"bundle": str(bundle.folder), **json.loads(bundle.manifest.to_json())})
    else:
        _print_bundle(bundle, checked=check)


def _print_bundle(bundle: Bundle, *, checked: bool) -> None:
    from rich.console import Console

    manifest = bundle.manifest
    vision, backbone, source = manifest.vision, manifest.backbone, manifest.source
    commit = f" at {source.revision[:12]}" if source.revision else ""
    side = vision.image_size // vision.patch_size
    most = max(height * width for height, width in vision.grid_pinpoints) // vision.image_size**2
    quality = manifest.quality.get("verify", {})
    proven = {True: "passed at export", False: "FAILED at export"}.get(quality.get("passed"), "never run")
    rows = {
        "name": manifest.name,
        "source": f"{source.repo}{commit} ({source.format} format)",
        "made by": ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.created_by.items())),
        "vision": f"{vision.layers} layers of {vision.hidden}; "
        f"tiles of {vision.image_size} px, {side}×{side} patches",
        "AnyRes": f"{vision.aspect_ratio}; {len(vision.grid_pinpoints)} grids of up to {most} tiles",
        "backbone": f"{backbone.layers} layers of {backbone.hidden}; {backbone.heads} heads, "
        f"{backbone.kv_heads} for keys and values; context {backbone.context_length:,}; "
        f"{backbone.bits_per_weight:.2f} bits per weight",
        "video": f"{manifest.video.frames} frames, {manifest.video.pooled_side**2} tokens each",
        "prompt": f"{manifest.prompt.template} format",
        "verify": proven,
    }
    console = Console(highlight=False, soft_wrap=True)
    for name, value in rows.items():
        console.print(f"[bold]{name:9}[/] {value}")
    console.print(
        f"[bold]files    [/] {bundle.bytes / 1e6:,.1f} MB, {'checksums' if checked else 'sizes'} correct"
    )
    for name, info in sorted(manifest.files.items()):
        console.print(f"          {name:18} {info.bytes / 1e6:9,.1f} MB  {info.precision or ''}")


def doctor(as_json: Json = False) -> None:
    """Show what this machine can do."""
    from onevision.doctor import examine

    health = examine()
    if as_json:
        print_json(health.to_dict())
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for name, value in health.facts.items():
        console.print(f"[bold]{name:14}[/] {value}", markup=True)
    for advice in health.advice:
        console.print(f"[yellow]![/] {advice}")
