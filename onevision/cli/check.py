"""``onevision verify``, ``inspect`` and ``doctor``: is it right, what is it, what can this machine do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from onevision.cli.console import (
    CheckSums,
    Device,
    Json,
    Model,
    Threads,
    bundle_folder,
    examples,
    one_of,
    print_facts,
    print_json,
    stdout,
)
from onevision.errors import CheckpointError, UsageError
from onevision.export.card import quality_facts
from onevision.files import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.bundle import Bundle, Manifest
    from onevision.models.shapes import ModelConfig
    from onevision.proof.golden import ReferenceCase
    from onevision.proof.verify import Report

VERIFY_HELP = examples(
    "Prove a bundle against the reference implementation, stage by stage.",
    "onevision verify -m bundle",
    "onevision verify -m bundle --reference checkpoint --image photo.jpg",
    "onevision verify -m bundle --reference checkpoint --write",
)

INSPECT_HELP = examples("Show what a bundle is.", "onevision inspect bundle --check")

DOCTOR_HELP = examples("Show what this machine can do, and what it lacks.", "onevision doctor --json")

_LIVE_PROMPT = "What is in this picture?"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("verify", help=VERIFY_HELP, short_help="Prove a bundle, stage by stage.")(verify)
    app.command("inspect", help=INSPECT_HELP, short_help="Show what a bundle is.")(inspect)
    app.command("doctor", help=DOCTOR_HELP, short_help="Show what this machine can do.")(doctor)


def verify(
    model: Model = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the source's checkpoint: compare with transformers, run now, instead of with the "
            "bundle's reference vectors. Needs onevision[proof].",
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("-i", "--image", metavar="FILE", help="An image for --reference; repeatable."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help=f"The question for --image.  [default: {_LIVE_PROMPT}]"),
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Store the reference vectors and a passed result in the bundle."),
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    check: CheckSums = False,
    as_json: Json = False,
) -> None:
    """Prove a bundle against the reference."""
    from onevision.bundle import GOLDEN, open_bundle
    from onevision.native import device as devices
    from onevision.proof import verify as proof
    from onevision.proof.golden import load_golden
    from onevision.runtime.engine import OneVision

    where = one_of(device, get_args(devices.Device), "--device")
    if reference is None and (image or prompt is not None or write):
        raise UsageError(
            "--image, --prompt and --write need --reference: the bundle's reference vectors are complete"
        )
    if write and (image or prompt is not None):
        raise UsageError("--write stores the standard cases: leave --image and --prompt out")
    bundle = open_bundle(bundle_folder(model), check=check)
    if reference is None:
        cases: Sequence[ReferenceCase] = load_golden(bundle.path(GOLDEN))
    else:
        cases = _live_cases(reference, bundle.manifest, image or [], prompt)
    with OneVision(bundle, device=where, threads=threads) as loaded:
        report = proof.verify(loaded, cases)
    if write and report.passed:
        from onevision.export.reference import record_proof

        record_proof(bundle, cases, report)
    if as_json:
        print_json({"bundle": str(bundle.folder), **report.to_dict()})
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _live_cases(
    folder: Path, manifest: Manifest, images: Sequence[str], prompt: str | None
) -> Sequence[ReferenceCase]:
    """Run the reference on the user's images, or on the standard cases."""
    import numpy as np

    from onevision.cli.console import ConsoleProgress
    from onevision.extras import require
    from onevision.runtime.images import read_image

    require("proof", "verify --reference")
    from onevision.export.checkpoint import Checkpoint
    from onevision.export.reference import load_reference
    from onevision.proof.reference import golden_cases

    pixels = [np.asarray(read_image(path)) for path in images]
    progress = ConsoleProgress()
    with Checkpoint.open(folder) as checkpoint, progress.step("running the reference"):
        _check_same_shape(checkpoint.config, manifest)
        live = load_reference(checkpoint, progress)
        if not images and prompt is None:
            return golden_cases(live)
        return [live.case("live", prompt or _LIVE_PROMPT, images=pixels)]


def _check_same_shape(config: ModelConfig, manifest: Manifest) -> None:
    """Refuse a checkpoint that the bundle cannot be made of, before the reference runs for nothing."""
    vision, backbone = manifest.vision, manifest.backbone
    shapes = {
        "tiles of": (config.vision.image_size, vision.image_size),
        "patches of": (config.vision.patch_size, vision.patch_size),
        "an encoder of hidden size": (config.vision.hidden_size, vision.hidden),
        "a backbone of hidden size": (config.text.hidden_size, backbone.hidden),
        "backbone layers:": (config.text.layers, backbone.layers),
        "a vocabulary of": (config.text.vocab_size, backbone.vocab_size),
    }
    for name, (theirs, ours) in shapes.items():
        if theirs != ours:
            raise CheckpointError(
                f"the checkpoint has {name} {theirs:,}, the bundle {ours:,}",
                hint=f"give the checkpoint that the bundle was made of, {manifest.source.repo}",
            )


def _print_report(report: Report) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    numbers = [Column(name, justify="right", no_wrap=True) for name in ("max error", "relative", "tolerance")]
    table = Table(Column("stage", no_wrap=True), *numbers, "", "", box=None, pad_edge=False)
    verdicts = {True: Text("pass", "green"), False: Text("FAIL", "red"), None: Text("reported", "dim")}
    for case in report.cases:
        table.add_row(Text(case.name, "bold"))
        for stage in case.stages:
            values = (stage.max_error, stage.relative_error, stage.tolerance)
            cells = ("" if value is None else f"{value:.2g}" for value in values)
            table.add_row(f"  {stage.stage}", *cells, verdicts[stage.passed], stage.note)
    console = stdout()
    console.print(table)
    if report.passed:
        console.print("the bundle computes what the reference does", style="green")
    else:
        console.print("the bundle does not compute what the reference does", style="red")


def inspect(
    folder: Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")] = None,
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
    from onevision.runtime.anyres import AnyRes

    manifest = bundle.manifest
    vision, backbone, source = manifest.vision, manifest.backbone, manifest.source
    commit = f" at {source.revision[:12]}" if source.revision else ""
    cut = AnyRes.parse(
        vision.aspect_ratio,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        pinpoints=vision.grid_pinpoints,
    )
    most = max(height * width for height, width in cut.pinpoints) // cut.tile**2
    facts = {
        "name": manifest.name,
        "source": f"{source.repo}{commit} ({source.format} format)",
        "made by": ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.created_by.items())),
        "vision": f"{vision.layers} layers of {vision.hidden}; "
        f"tiles of {cut.tile} px, {cut.side}×{cut.side} patches",
        "AnyRes": f"{vision.aspect_ratio}; {len(cut.pinpoints)} grids of up to {most} tiles",
        "backbone": f"{backbone.layers} layers of {backbone.hidden}; {backbone.heads} heads, "
        f"{backbone.kv_heads} for keys and values; context {backbone.context_length:,}; "
        f"{backbone.bits_per_weight:.2f} bits per weight",
        "video": f"{manifest.video.frames} frames, {manifest.video.pooled_side**2} tokens each",
        "prompt": f"{manifest.prompt.template} format",
        "verify": _proof(manifest),
        **quality_facts(manifest.quality),
        "files": f"{readable(bundle.bytes)}, {'checksums' if checked else 'sizes'} correct",
    }
    print_facts(facts)
    for name, info in sorted(manifest.files.items()):
        stdout().print(f"  {name:18}{readable(info.bytes):>9}  {info.precision or ''}".rstrip())


def _proof(manifest: Manifest) -> str:
    """Result of the comparison with the reference that the manifest records."""
    from onevision.bundle import GOLDEN

    verified = manifest.quality.get("verify")
    passed = verified.get("passed") if isinstance(verified, dict) else None
    if passed is not None:
        return "passed" if passed is True else "FAILED"
    if GOLDEN in manifest.files:
        return "not run; its reference vectors are there: onevision verify"
    return "unproven; onevision verify --reference CHECKPOINT --write proves it"


def doctor(as_json: Json = False) -> None:
    """Show what this machine can do."""
    from onevision.native.doctor import examine

    health = examine()
    if as_json:
        print_json(health.to_dict())
        return
    from rich.text import Text

    print_facts(health.listing())
    for advice in health.advice or ("nothing is lacking",):
        stdout().print(Text.assemble(("! " if health.advice else "", "yellow"), advice))
