"""``onevision verify``, ``inspect`` and ``doctor``: proof of a bundle, its contents, and this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onevision.cli.console import ConsoleProgress, print_facts, print_table, show, stdout
from onevision.cli.options import (
    INPUT,
    CheckSums,
    Device,
    Images,
    Json,
    Model,
    Quiet,
    Threads,
    add_command,
    bundle_folder,
)
from onevision.export.card import quality_facts
from onevision.files import readable

if TYPE_CHECKING:
    from rich.text import Text

    from onevision.bundle import Bundle, Manifest, VideoInfo
    from onevision.native.doctor import Health
    from onevision.proof.verify import Report

VERIFY_EXAMPLES = (
    "onevision verify -m bundle",
    "onevision verify -m bundle --reference checkpoint --image photo.jpg",
    "onevision verify -m bundle --reference checkpoint --write",
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add_command(app, verify, *VERIFY_EXAMPLES)
    add_command(app, inspect, "onevision inspect bundle --check")
    add_command(app, doctor, "onevision doctor --json")


def verify(
    model: Model = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the source's checkpoint: compare with transformers, run now, instead of with the "
            "bundle's reference vectors. Needs onevision[proof].",
            rich_help_panel=INPUT,
        ),
    ] = None,
    image: Images = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Question about the images, for --reference.", rich_help_panel=INPUT
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Store the reference vectors and a passed result in the bundle.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    check: CheckSums = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prove a bundle, stage by stage. The proof compares it with the reference implementation."""
    import onevision

    folder = bundle_folder(model, quiet=quiet)
    report = onevision.verify(
        folder,
        reference=reference,
        images=image or (),
        prompt=prompt,
        write=write,
        device=device,
        threads=threads,
        check=check,
        progress=ConsoleProgress(quiet=quiet),
    )
    show(as_json, {"bundle": str(folder), **report.to_dict()}, _print_report, report)
    if not report.passed:
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    """Print the errors of each stage of each case, and the result."""
    from rich.text import Text

    results = {True: Text("pass", "green"), False: Text("FAIL", "red"), None: Text("reported", "dim")}
    rows: list[tuple[str | Text, ...]] = []
    for case in report.cases:
        rows.append((Text(case.name, "bold"), "", "", "", "", ""))
        for stage in case.stages:
            values = (stage.max_error, stage.relative_error, stage.tolerance)
            cells = ("" if value is None else f"{value:.2g}" for value in values)
            rows.append((f"  {stage.stage}", results[stage.passed], *cells, stage.note))
    print_table(("stage", "result", "max error", "relative", "tolerance", ""), rows, notes=True)
    if report.passed:
        stdout().print("PASS: the bundle matches the reference", style="green")
    else:
        stdout().print("FAIL: the bundle does not match the reference", style="red")


def inspect(
    folder: Annotated[str | None, typer.Argument(metavar="BUNDLE", help="The same as -m.")] = None,
    model: Model = None,
    check: CheckSums = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle contains."""
    from onevision.bundle import open_bundle

    bundle = open_bundle(bundle_folder(folder or model), check=check)
    data = {"bundle": str(bundle.folder), **json.loads(bundle.manifest.to_json())}
    show(as_json, data, _print_bundle, bundle, check)


def _print_bundle(bundle: Bundle, checked: bool) -> None:
    from onevision.runtime.anyres import AnyRes

    manifest = bundle.manifest
    vision, backbone, source = manifest.vision, manifest.backbone, manifest.source
    commit = f" at {source.revision[:12]}" if source.revision else ""
    cut = AnyRes.of(vision)
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
        "video": _video(manifest.video),
        "prompt": "; ".join(
            [
                f"{manifest.prompt.template} format",
                *([f"added tokens {' '.join(added)}"] if (added := manifest.prompt.added_tokens) else []),
            ]
        ),
        "verify": _proof(manifest, bundle.folder),
        **quality_facts(manifest.quality),
        "files": f"{readable(bundle.bytes)}, {'checksums' if checked else 'sizes'} correct",
    }
    print_facts(facts)
    for name, info in sorted(manifest.files.items()):
        stdout().print(f"  {name:18}{readable(info.bytes):>9}  {info.precision or ''}".rstrip())


def _video(video: VideoInfo) -> str:
    """How a video becomes tokens."""
    newlines = {
        "grid": "a newline per row",
        "frame": "a newline per frame",
        "no_token": "no newline",
        "one_token": "one newline at the end",
    }
    timed = "; the prompt names their times" if video.time_instruction else ""
    return f"{video.frames} frames, {video.pooled_side**2} tokens each, {newlines[video.newline]}{timed}"


def _proof(manifest: Manifest, folder: Path) -> str:
    """Result of the comparison with the reference that the manifest records."""
    from onevision.bundle import GOLDEN

    verified = manifest.quality.get("verify")
    passed = verified.get("passed") if isinstance(verified, dict) else None
    if passed is not None:
        return "passed" if passed is True else "FAILED"
    if GOLDEN in manifest.files:
        return f"not run; its reference vectors are there: onevision verify -m {folder}"
    return f"unproven; onevision verify -m {folder} --reference CHECKPOINT --write proves it"


def doctor(as_json: Json = False) -> None:
    """Show what this machine can do, and what is missing."""
    from onevision.native.doctor import examine

    health = examine()
    show(as_json, health.to_dict(), _print_health, health)


def _print_health(health: Health) -> None:
    from rich.text import Text

    print_facts(health.listing())
    for advice in health.advice or ("no problems found",):
        stdout().print(Text.assemble(("! " if health.advice else "", "yellow"), advice))
