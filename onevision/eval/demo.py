"""The demo: a bundle is verified and asked about five inputs; the answers become a web page.

``bundle -> verify -> inputs -> answers -> index.html``, in a folder with the images and the video, so that
every question can be asked again. Inputs are scenes of the suite's test split, as files, with a question in
each form. Without PyAV there is no video.
"""

# ruff: noqa: S311  # questions are drawn, not secrets
from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, get_args

from PIL import Image

from onevision import html
from onevision._version import __version__
from onevision.bundle import BACKBONE, GOLDEN, VISION
from onevision.errors import UsageError
from onevision.eval.suite import Question, Sample, Scene, build_scene, score
from onevision.eval.suite.sample import Form, Posed, pose
from onevision.extras import missing
from onevision.files import is_vacant, whole_folder
from onevision.native.device import cpu_name
from onevision.progress import Progress
from onevision.proof.golden import golden_of
from onevision.proof.verify import Report, StageResult, verify
from onevision.runtime.answer import Answer
from onevision.runtime.engine import OneVision

PAGE = "index.html"

#: Pixels that an image fills at most, in width and height, by whole multiples of its own.
ROOM = 300
_MIME = {".png": "image/png", ".apng": "image/apng"}
#: In the page's head: the files that belong to it.
_MARK = re.compile(r'<meta name="generator" content="onevision demo: ([^"]*)">')
#: The suite's longest sentence has half as many.
MAX_TOKENS = 48
SEED = 5
#: Kind of scene, its number in the test split, and a heading. The numbers were chosen for how the images
#: look, before there was a model to answer.
SCENES = (
    ("objects", 3, "A scene"),
    ("small_print", 2, "Small print"),
    ("bars", 7, "A chart"),
    ("same", 6, "Two images"),
    ("moving", 4, "A video"),
)
FRAME_MS = 400  # a frame of the video, for people who look at it


@dataclass(frozen=True)
class DemoInput:
    """One input and its questions."""

    title: str
    caption: str  # what there is to see, in words
    files: tuple[str, ...]  # names in the demo's folder: images, or the one video
    samples: tuple[Sample, ...]

    @property
    def is_video(self) -> bool:
        """Whether the file is a video."""
        return self.samples[0].video is not None


@dataclass(frozen=True)
class Asked:
    """One question and its answer."""

    sample: Sample
    command: str  # that asks it again
    answer: Answer
    right: bool


@dataclass(frozen=True)
class Demo:
    """What a demo came to."""

    report: Report
    blocks: tuple[tuple[DemoInput, tuple[Asked, ...]], ...]

    @property
    def right(self) -> int:
        """Count of right answers."""
        return sum(asked.right for _, block in self.blocks for asked in block)

    @property
    def total(self) -> int:
        """Count of answers."""
        return sum(len(block) for _, block in self.blocks)

    @property
    def forms(self) -> dict[str, tuple[int, int]]:
        """Right answers and all answers, by the form that was asked for."""
        asked = [one for _, block in self.blocks for one in block]
        rights = {form: [one.right for one in asked if one.sample.form == form] for form in get_args(Form)}
        return {form: (sum(right), len(right)) for form, right in rights.items()}

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision demo --json`` prints, but for the places of page and bundle."""
        answers = [
            {
                "id": asked.sample.id,
                "files": list(item.files),
                "prompt": asked.sample.prompt,
                "expected": list(asked.sample.answers),
                "right": asked.right,
                **asked.answer.to_dict(),
            }
            for item, block in self.blocks
            for asked in block
        ]
        return {"verify": self.report.to_dict(), "right": self.right, "n": self.total, "answers": answers}


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
                report = verify(model, golden_of(model.bundle))
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


def files_of(page: Path) -> set[str]:
    """Names of a demo's files, the page among them; none if it is not a demo's page, or does not exist."""
    if not page.is_file():
        return set()
    with page.open(encoding="utf-8", errors="replace") as file:
        found = _MARK.search(file.read(1000))
    return {page.name, *found[1].split()} if found else set()


def render(demo: Demo, facts: Mapping[str, str], folder: Path) -> str:
    """The page.

    Args:
        demo: Answers and report.
        facts: What ran and where, by name, for the top of the page.
        folder: Folder with the inputs' files.
    """
    cases = demo.report.cases
    results = [{stage.stage: stage for stage in case.stages} for case in cases]
    names = dict.fromkeys(stage.stage for case in cases for stage in case.stages)
    verdict = {
        True: "the bundle computes what the reference does",
        False: "the bundle does not compute what the reference does",
        None: "the bundle is unproven: it has no reference vectors",
    }[demo.report.passed]
    return html.render(
        "demo.html",
        demo=demo,
        facts=facts,
        files=[file for item, _ in demo.blocks for file in item.files],
        images={item: [_image(folder / file) for file in item.files] for item, _ in demo.blocks},
        stages={name: [stages.get(name) for stages in results] for name in names},
        names={"short": "short answers", "letter": "letters", "sentence": "sentences"},
        error=_error,
        verdict=verdict,
    )


def _image(path: Path) -> dict[str, object]:
    """An image or animation as data, enlarged by a whole number until it fills the room."""
    with Image.open(path) as image:
        width, height = image.size
    times = max(1, ROOM // max(width, height))
    source = html.data_uri(path.read_bytes(), _MIME[path.suffix])
    return {"source": source, "width": width * times, "height": height * times}


def _error(stage: StageResult) -> str:
    """Relative or largest error of a stage, with one digit."""
    error = stage.max_error if stage.relative_error is None else stage.relative_error
    return "" if error is None else " 0" if error == 0 else f" {error:.0e}".replace("e-0", "e-")


def make_inputs(folder: Path, *, video: bool = True) -> tuple[DemoInput, ...]:
    """Write the files of all inputs into a folder, the video's if asked for. Always the same."""
    return tuple(
        _make(folder, name, number, title) for name, number, title in SCENES if video or name != "moving"
    )


def _make(folder: Path, name: str, number: int, title: str) -> DemoInput:
    scene = build_scene(name, "test", SEED, number)
    random = Random(f"demo {SEED} {name} {number}")
    samples = [
        posed.sample(f"{name}-test-{SEED}-{number}-{posed.form}", question.family, scene, "test")
        for question, posed in _in_all_forms(scene.questions, random)
    ]
    return DemoInput(title, scene.caption, _write(scene, folder, name), tuple(samples))


def _in_all_forms(questions: Sequence[Question], random: Random) -> list[tuple[Question, Posed]]:
    """A question in each form: of another family each time, as long as there are more."""
    families = [question.family for question in questions]
    asked = sorted(range(len(questions)), key=lambda at: families[:at].count(families[at]))
    posed = []
    for form, at in zip(get_args(Form), cycle(asked), strict=False):
        while (drawn := pose(questions[at], random)).form != form:
            pass
        posed.append((questions[at], drawn))
    return posed


def _write(scene: Scene, folder: Path, name: str) -> tuple[str, ...]:
    """Without loss: PNG, and of a video the animated PNG, which browsers show as well."""
    if scene.video is not None:
        first, *others = map(Image.fromarray, scene.video)
        file = f"{name}.apng"
        first.save(folder / file, "PNG", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
        return (file,)
    several = len(scene.images) > 1
    files = [f"{name}-{at}.png" if several else f"{name}.png" for at in range(1, len(scene.images) + 1)]
    for file, image in zip(files, scene.images, strict=True):
        Image.fromarray(image).save(folder / file)
    return tuple(files)
