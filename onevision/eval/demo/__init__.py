"""The demo: a bundle is verified and asked about five inputs; the answers become a web page.

``bundle -> verify -> inputs -> answers -> index.html``, in a folder with the images and the video, so that
every question can be asked again. Without PyAV there is no video.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from onevision._version import __version__
from onevision.bundle import BACKBONE, GOLDEN, VISION
from onevision.errors import UsageError
from onevision.eval.demo.inputs import DemoInput, make_inputs
from onevision.eval.demo.page import PAGE, Asked, Demo, files_of, render
from onevision.eval.suite import score
from onevision.extras import missing
from onevision.files import is_vacant, whole_folder
from onevision.native.device import cpu_name
from onevision.progress import Progress
from onevision.proof.golden import load_golden
from onevision.proof.verify import Report, verify
from onevision.runtime.engine import OneVision

#: The suite's longest sentence has half as many.
MAX_TOKENS = 48


def check(target: Path) -> None:
    """Refuse to replace anything but an earlier demo.

    Raises:
        UsageError: ``target`` has files that no demo wrote.
    """
    if is_vacant(target):
        return
    ours = files_of(target / PAGE)
    if strange := sorted(path.name for path in target.iterdir() if path.name not in ours):
        raise UsageError(
            f"{target} has files that are no demo's, such as {strange[0]}", hint="choose another -o/--output"
        )


def make_demo(model: OneVision, target: Path, progress: Progress, *, options: Sequence[str] = ()) -> Demo:
    """Verify a model, ask it, and write the page.

    Args:
        model: A loaded bundle.
        target: The demo's folder. An earlier demo there is replaced.
        progress: Progress reporter.
        options: Of ``onevision run``, for the commands on the page: which bundle it is.

    Raises:
        UsageError: See :func:`check`.
        BundleError: Damaged reference vectors.
    """
    check(target)
    has_video = not missing("video")
    if not has_video:
        progress.note("the video is left out: it needs pip install 'onevision[video]'")
    with whole_folder(target) as folder:
        report = Report(())
        if GOLDEN in model.bundle.manifest.files:
            with progress.step("verifying the bundle"):
                report = verify(model, load_golden(model.bundle.path(GOLDEN)))
        inputs = make_inputs(folder, video=has_video)
        with progress.step(f"asking about {len(inputs)} inputs") as advance:
            blocks = []
            for at, item in enumerate(inputs):
                blocks.append((item, tuple(_ask(model, item, folder, options))))
                advance((at + 1) / len(inputs))
        demo = Demo(report, tuple(blocks))
        loaded = blocks[-1][1][-1].answer.timings.load
        (folder / PAGE).write_text(render(demo, _facts(model, loaded), folder), encoding="utf-8")
    progress.note(f"{demo.right} of {demo.total} answers are right")
    return demo


def _ask(model: OneVision, item: DemoInput, folder: Path, options: Sequence[str]) -> Iterator[Asked]:
    """All questions about an input, which is read from its files as ``onevision run`` reads it."""
    paths = [folder / file for file in item.files]
    video, images = (paths[0], []) if item.is_video else (None, paths)
    flag = "--video" if item.is_video else "--image"
    rest = [word for file in item.files for word in (flag, file)] + ["-n", str(MAX_TOKENS), *options]
    for sample in item.samples:
        answer = model.generate(sample.prompt, images=images, video=video, max_tokens=MAX_TOKENS)
        # Double quotes, which shells of Windows know too.
        quoted = re.sub(r'([\\"$`])', r"\\\1", sample.prompt)
        command = f'onevision run "{quoted}" {shlex.join(rest)}'
        yield Asked(sample, command, answer, score(sample, answer.text))


def _facts(model: OneVision, load_ms: float) -> dict[str, str]:
    """What ran, and on what."""
    import llama_cpp
    import onnxruntime

    bundle, manifest = model.bundle, model.bundle.manifest
    vision, backbone = manifest.vision, manifest.backbone
    precision = {name: manifest.files[name].precision for name in (VISION, BACKBONE)}
    return {
        "model": f"{manifest.name}, {bundle.bytes / 1e6:,.0f} MB, loaded in {load_ms / 1e3:.2f} s",
        "vision": f"{vision.layers} layers of {vision.hidden}, {precision[VISION]}; "
        f"tiles of {vision.image_size} pixels",
        "backbone": f"{backbone.layers} layers of {backbone.hidden}, {precision[BACKBONE]}; "
        f"context of {backbone.context_length:,}",
        "software": f"onevision {__version__}, ONNX Runtime {onnxruntime.__version__}, "
        f"llama-cpp-python {llama_cpp.__version__}",
        "processor": f"{cpu_name()}, {os.cpu_count()} cores, {model.pipeline.backbone.threads} threads used",
    }
