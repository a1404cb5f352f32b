"""The five inputs of the demo: scenes of the suite's test split, as files, with a question in each form.

In: a seed and numbers. Out: images and a video in a folder, and questions about them.
"""

# ruff: noqa: S311  # questions are drawn, not secrets
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import get_args

from PIL import Image

from onevision.eval.suite import Question, Sample, Scene, build_scene
from onevision.eval.suite.sample import Form, Posed, pose

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
