"""LLaVA-OneVision on a laptop: export to ONNX and GGUF, run without torch, prove the answers.

>>> import onevision
>>> with onevision.load("bundle/") as model:                            # doctest: +SKIP
...     print(model.generate("What is on the table?", images=["table.jpg"]).text)

Every function imports what it needs when it is called, and reports its progress to an object of the form of
:class:`onevision.progress.Progress`, by default to the log ``onevision``. Errors are of the class
:class:`OneVisionError`, see :mod:`onevision.errors`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import wraps
from importlib import import_module
from inspect import isfunction, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onevision.export  # noqa: F401 (loaded here, so that loading it later does not replace the function)
from onevision._version import __version__
from onevision.errors import OneVisionError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onevision.bench.result import Result
    from onevision.eval.evaluate import evaluate
    from onevision.export.build import Exported
    from onevision.models.shapes import PublishedSize, Variant
    from onevision.native.device import Device
    from onevision.planning.plan import PromptPlan
    from onevision.precisions import BackboneChoice, EncoderChoice, Exporter, PrefillPrecision
    from onevision.progress import Progress
    from onevision.proof.golden import ReferenceCase
    from onevision.proof.verify import Report
    from onevision.quant.search import Quantized, quantize
    from onevision.runtime.answer import Answer, AnswerStream, Timings, Usage
    from onevision.runtime.cache import Cache
    from onevision.runtime.engine import OneVision
    from onevision.runtime.images import ImageSource
    from onevision.runtime.options import AnswerOptions, Prefill, Template, TemplateChoice

    PathLike = str | os.PathLike[str]

__all__ = [
    "Answer", "AnswerStream", "OneVision", "OneVisionError", "Timings", "Usage", "__version__",
    "benchmark", "evaluate", "export", "load", "plan", "quantize", "verify",
]  # fmt: skip

# The native libraries are loaded with the first of these, not with the package.
_LAZY = {
    "Answer": "onevision.runtime.answer",
    "AnswerStream": "onevision.runtime.answer",
    "OneVision": "onevision.runtime.engine",
    "Timings": "onevision.runtime.answer",
    "Usage": "onevision.runtime.answer",
    "evaluate": "onevision.eval.evaluate",
    "quantize": "onevision.quant.search",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LAZY:
        found = getattr(import_module(_LAZY[name]), name)
        return _by_name(found) if isfunction(found) else found
    raise AttributeError(f"module 'onevision' has no attribute {name!r}")


def _by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first argument is a bundle, which may be named as for :func:`load`."""
    form = signature(function)
    first = next(iter(form.parameters))

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        from onevision.named import named_bundle

        bound = form.bind(*given, **named)
        if isinstance(bundle := bound.arguments.get(first), str | os.PathLike):
            bound.arguments[first] = named_bundle(bundle, named.get("progress"))
        return function(*bound.args, **bound.kwargs)

    return call


def __dir__() -> list[str]:
    return sorted(__all__)


def load(
    bundle: PathLike | None = None,
    *,
    device: Device = "auto",
    threads: int | None = None,
    prefill: Prefill = "auto",
    cache: Cache | PathLike | None = None,
    check: bool = False,
) -> OneVision:
    """Load a bundle, from its folder or by name.

    Args:
        bundle: Folder of the bundle, or a size (``0.5b``, ``7b-si``) or a Hub id, whose bundle is fetched or
            made once; None for the tiny model, which comes with the package.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU that both libraries can use, else the CPU.
        threads: CPU threads; None for all cores.
        prefill: Prefill backend, see :data:`onevision.runtime.options.Prefill`.
        cache: Folder that keeps image features and the state of prompts, or ``Cache()`` to keep them in
            memory; None keeps nothing.
        check: Compare checksums of all files, not only sizes.

    Raises:
        BundleError: The bundle is missing, damaged or unreadable.
        DownloadError, ExportError: It is not a folder, and cannot be fetched or made.
        DeviceError: The device is not available.
        UsageError: ``prefill="onnx"`` for a bundle without a prefill graph.
    """
    from onevision.named import named_bundle
    from onevision.planning.budget import answer
    from onevision.runtime.engine import OneVision

    return OneVision.load(
        named_bundle(bundle),
        check=check,
        answer=answer,
        device=device,
        threads=threads,
        prefill=prefill,
        cache=cache,
    )


def export(
    source: PathLike | None = None,
    output: PathLike | None = None,
    *,
    size: str | None = None,
    variant: Variant | None = None,
    revision: str | None = None,
    adapter: PathLike | None = None,
    vision_tower: PathLike | None = None,
    template: TemplateChoice = "auto",
    vision: EncoderChoice | None = None,
    backbone: BackboneChoice = "q8_0",
    exporter: Exporter = "onevision",
    prefill: PrefillPrecision | None = "int8",
    calibration: PathLike | None = None,
    imatrix: PathLike | bool | None = None,
    questions: PathLike | None = None,
    limit: int | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported | Quantized:
    """Turn a checkpoint into a bundle, and prove it if the reference is at hand. Needs the extra ``export``.

    Args:
        source: Folder of a checkpoint, or a Hub id; None: the published checkpoint of ``size``.
        output: Folder of the bundle; None: named after the checkpoint, in the working directory.
        size: ``tiny``, ``0.5b``, ``7b`` or ``72b``; None without a source: ``tiny``.
        variant: Variant of the size: ``ov`` (the default), ``si`` (single images), and for 7b and 72b
            ``chat`` and ``video`` (LLaVA-Video).
        revision: Branch, tag or commit on the Hub.
        adapter: Folder of a LoRA adapter that is merged into the weights.
        vision_tower: SigLIP tower (a published name or a folder), where ``mm_vision_tower`` names none.
        template: Prompt format; ``auto`` is that of the checkpoint's chat template.
        vision: Precision of the vision encoder. ``int8`` and ``auto`` have to pass the quality gate. None:
            the smallest whose image features pass on calibration tiles; no question is asked, unless a
            coarser ``backbone``, ``questions`` or ``limit`` calls for it.
        backbone: Precision of the language model. ``auto``, and all coarser than ``q8_0``, likewise.
        exporter: Writer of the vision encoder's graph; ``optimum`` traces transformers, in fp32 only.
        prefill: Precision of the prefill graph; None writes none.
        calibration: Folder of images for int8. This and the next three are for the quality gate, see
            :class:`onevision.quant.candidates.GateConfig`.
        imatrix: File of an importance matrix; True collects one, False uses none, None tries both.
        questions: File or folder of questions to measure with.
        limit: Maximum number of questions.
        threads: CPU threads; None for all cores.
        force: Replace a bundle at ``output``, and write one that fails the gate.
        progress: Receives steps and notes; None for the log.

    Raises:
        UsageError: Options that exclude each other, or ``output`` exists.
        SourceError: The checkpoint cannot be found, or :class:`~onevision.errors.DownloadError`.
        CheckpointError: It is damaged, or of another model.
        ExportError, QuantError: The conversion failed, or nothing passes the gate.
    """
    from onevision.bundle import check_target
    from onevision.export import hub
    from onevision.export.build import ExportOptions
    from onevision.export.build import export as build
    from onevision.extras import require
    from onevision.progress import LogProgress
    from onevision.quant.candidates import GateConfig
    from onevision.quant.search import choose_gate, export_quantized

    require("export", "the export")
    if source is None and size is None:
        size = "tiny"
    if variant is not None and size is None:
        raise UsageError("--variant is for a --size, not for a --source")
    resolved = hub.resolve(
        None if source is None else str(source), size=size, variant=variant or "ov", revision=revision
    )
    target = Path(output or resolved.bundle_name)
    check_target(target, force=force)
    config = GateConfig(
        _path(questions),
        limit,
        _path(calibration),
        imatrix=imatrix if isinstance(imatrix, bool) else _path(imatrix),
        threads=threads,
    )
    precision, gate = choose_gate(vision, backbone, exporter, config)
    config.check()
    shown = progress is not None and sys.stderr.isatty()
    progress = progress or LogProgress()
    fetched = hub.fetch(
        resolved,
        progress=shown,
        notify=progress.note,
        vision_tower=None if vision_tower is None else str(vision_tower),
    )
    if adapter is not None:
        fetched = replace(fetched, adapter=Path(adapter))
    options = ExportOptions(
        prefill=prefill,
        exporter=exporter,
        size=size,
        variant=(variant or "ov") if size else None,
        template=template,
        threads=threads,
        force=force,
    )
    if gate is None:
        precisions: dict[str, Any] = {"vision": precision, "backbone": backbone}
        return build(fetched, target, replace(options, **precisions), progress)
    done = export_quantized(fetched, target, options, gate, progress, vision=precision, backbone=backbone)
    if gate.questions == ():
        progress.note(
            f"fast precisions: {done.candidate.name}; int8 is taken if its image features pass on "
            "calibration tiles and it is smaller than fp16; --vision, --backbone, --prefill choose others"
        )
    return done


def verify(
    bundle: PathLike | None = None,
    *,
    reference: PathLike | None = None,
    images: Sequence[ImageSource] = (),
    prompt: str | None = None,
    write: bool = False,
    device: Device = "auto",
    threads: int | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Prove a bundle against the reference implementation, stage by stage.

    Args:
        bundle: As for :func:`load`.
        reference: Folder of the bundle's checkpoint: run transformers now, which needs the extra ``proof``;
            None: compare with the reference vectors in the bundle.
        images: Images to compare with, for ``reference``; without images and prompt, the standard cases.
        prompt: Question about the images.
        write: Store the reference vectors and a passed result in the bundle.
        device: See :func:`load`.
        threads: CPU threads; None for all cores.
        check: Compare checksums of all files, not only sizes.
        progress: Receives steps and notes; None for the log.

    Returns:
        Errors and tolerances of each stage of each case; ``passed`` is the result.

    Raises:
        UsageError: Options that exclude each other, or the extra ``proof`` is not installed.
        BundleError: The bundle is damaged, or has no reference vectors.
        CheckpointError: The checkpoint is damaged, or not the source of the bundle.
    """
    from onevision.bundle import open_bundle
    from onevision.named import named_bundle
    from onevision.progress import LogProgress
    from onevision.proof.golden import golden_of
    from onevision.proof.verify import verify as compare
    from onevision.runtime.engine import OneVision

    if reference is None and (images or prompt is not None or write):
        raise UsageError(
            "--image, --prompt and --write need --reference: the bundle's reference vectors are complete"
        )
    if write and (images or prompt is not None):
        raise UsageError("--write stores the standard cases: leave --image and --prompt out")
    opened = open_bundle(named_bundle(bundle, progress), check=check)
    if reference is None:
        cases: Sequence[ReferenceCase] = golden_of(opened)
    else:
        from onevision.export.reference import reference_cases

        cases = reference_cases(Path(reference), opened.manifest, images, prompt, progress or LogProgress())
    with OneVision(opened, device=device, threads=threads) as model:
        report = compare(model, cases)
    if write and report.passed:
        from onevision.export.reference import record_proof

        record_proof(opened, cases, report)
    return report


def plan(
    media: Sequence[PathLike | tuple[int, int]] = (),
    prompt: str = "What is in the image?",
    *,
    bundle: PathLike | None = None,
    size: Literal["tiny"] | PublishedSize | None = None,
    options: AnswerOptions | None = None,
    prefill: Prefill = "auto",
    device: Device = "auto",
    threads: int | None = None,
) -> PromptPlan:
    """Plan a prompt: tiles, tokens, operations, memory and time, before anything is run.

    Times are those of the speed profile that :func:`benchmark` keeps. Without one, a bundle of up to 200 MB
    is measured for a second or two; times of a larger one, and of a ``size``, are estimates.

    Args:
        media: Images and videos of the prompt, or sizes (width, height) that stand for images.
        prompt: The question.
        bundle: As for :func:`load`.
        size: Instead of a bundle: a published size; the tokens of the text are estimated.
        options: The budget; None for the reference's.
        prefill: Prefill backend.
        device: With ``threads``, the speed profile: how fast the bundle was measured to be.
        threads: CPU threads; None for all cores.

    Raises:
        UsageError: ``ttft_target`` for a bundle whose speed was not measured, or for a size; both a size and
            a bundle; or ``prefill="onnx"`` for a bundle without the graph.
        DeviceError: ``cuda``, and llama.cpp was built without it.
        ImageError, VideoError: A file cannot be read.
    """
    from onevision.bench.calibrate import small_profile
    from onevision.bundle import open_bundle
    from onevision.named import named_bundle
    from onevision.planning.cost import Media
    from onevision.planning.plan import media_sizes, plan_bundle, plan_published
    from onevision.runtime.options import AnswerOptions

    if size is not None and bundle is not None:
        raise UsageError("a size and a bundle exclude each other", hint="leave --size or -m out")
    options = options or AnswerOptions()
    if options.ttft_target is not None and size is not None:
        raise UsageError(
            "--ttft-target needs a bundle on this machine", hint="name one: -m FOLDER, not --size"
        )
    items: list[Media] = []
    warnings: list[str] = []
    for item in [media] if isinstance(media, (str, Path)) else media:
        if isinstance(item, tuple):
            items.append(Media(f"{item[0]}x{item[1]}", "image", *item))
        else:
            items += media_sizes(str(item), options, warnings.append)
    if size is not None and size != "tiny":
        found = plan_published(size, items, prompt, options, threads)
        return replace(found, warnings=(*warnings, *found.warnings))
    opened = open_bundle(named_bundle(None if size else bundle))
    profile = None if options.ttft_target else small_profile(opened, device, threads)
    found = plan_bundle(
        opened, items, prompt, options, prefill=prefill, device=device, threads=threads, profile=profile
    )
    return replace(found, warnings=(*warnings, *found.warnings))


def benchmark(
    bundle: PathLike | None = None,
    *,
    scenarios: Sequence[str] = (),
    files: Sequence[PathLike] = (),
    quick: bool = False,
    runs: int = 5,
    seconds: float | None = None,
    isolate: bool = False,
    against: Sequence[str] = (),
    checkpoint: PathLike | None = None,
    template: Template | None = None,
    system: str | None = None,
    device: Device = "auto",
    threads: int | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Measure where the time goes, and the speed profile that ``ttft_target`` needs.

    Args:
        bundle: As for :func:`load`.
        scenarios: Names from :data:`onevision.bench.scenarios.SCENARIOS`; without files either, all of them.
        files: Images and videos of the user.
        quick: Only text and two common image sizes.
        runs: Timed runs per scenario.
        seconds: Time budget; None for an hour, or 4 minutes if ``quick``.
        isolate: Run each scenario in a fresh process.
        against: Other engines to measure, see :data:`onevision.bench.peers.PEERS`.
        checkpoint: Checkpoint for transformers; None: the bundle's, if found.
        template: Prompt format; None: the bundle's.
        system: System prompt; None: the bundle's.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU that both libraries can use, else the CPU.
        threads: CPU threads; None for all cores.
        check: Compare checksums of all files, not only sizes.
        progress: Receives steps and notes; None for the log.

    Returns:
        What was measured; after Ctrl-C, ``interrupted`` is set.

    Raises:
        UsageError: Options that exclude each other, or unknown names.
        BundleError, DeviceError: The bundle cannot be loaded.
    """
    from onevision.bench.benchmark import BenchSettings, measure
    from onevision.bench.peers import choose_peers
    from onevision.bench.scenarios import choose
    from onevision.bundle import open_bundle
    from onevision.named import named_bundle
    from onevision.native.llama import can_offload
    from onevision.native.ort import has_cuda
    from onevision.progress import LogProgress
    from onevision.runtime.options import AnswerOptions

    if isolate and against:
        raise UsageError("--isolate and --against exclude each other")
    if device == "auto":
        device = "cuda" if has_cuda() and can_offload() else "cpu"
    settings = BenchSettings(
        choose(scenarios, [Path(file) for file in files], quick=quick),
        runs,
        seconds or (240.0 if quick else 3600.0),
        device,
        threads,
        isolate=isolate,
        against=choose_peers(against),
        checkpoint=_path(checkpoint),
        options=AnswerOptions(template=template, system=system),
    )
    opened = open_bundle(named_bundle(bundle, progress), check=check)
    return measure(opened, settings, progress or LogProgress())


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)
