"""Scenarios: inputs by name, each with a short and a long answer.

In: names and the user's files. Out: scenarios; their inputs are generated when they run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onevision.bench import images
from onevision.errors import ImageError, UsageError, VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onevision.runtime.images import ImageSource

SHORT, LONG = 16, 128  # tokens of an answer
LONG_SUFFIX = "-long"

QUESTION = "Describe what can be seen here, and where it is."
SECOND_QUESTION = "Which part of it is the brightest?"


@dataclass(frozen=True)
class ScenarioInputs:
    """The images or the video of a question."""

    images: tuple[ImageSource, ...] = ()
    video: Path | None = None


@dataclass(frozen=True)
class Scenario:
    """One question.

    Attributes:
        name: Its name in tables.
        answer: Tokens of the answer.
        sizes: (width, height) of images to generate.
        kind: What to generate; ``file`` generates nothing.
        frames: Frames of a video; None for the bundle's default.
        file: The user's image or video.
        again: Time the second question about the same input, not the first.
    """

    name: str
    answer: int = SHORT
    sizes: tuple[tuple[int, int], ...] = ()
    kind: Literal["photo", "scan", "video", "file"] = "photo"
    frames: int | None = None
    file: Path | None = None
    again: bool = False

    def inputs(self, folder: Path) -> ScenarioInputs:
        """Generate the inputs, a video in ``folder``.

        Raises:
            ImportError: A video is needed, and PyAV is missing.
        """
        if self.kind == "video":
            path = self.file or folder / "clip.mp4"
            return ScenarioInputs(video=path if path.exists() else images.video(path))
        if self.file:
            return ScenarioInputs((self.file.read_bytes(),))
        make = images.scan if self.kind == "scan" else images.photograph
        return ScenarioInputs(tuple(make(size, seed) for seed, size in enumerate(self.sizes)))


_INPUTS = (
    Scenario("text"),
    Scenario("photo-384", sizes=((384, 384),)),
    Scenario("photo-480p", sizes=((640, 480),)),
    Scenario("photo-1080p", sizes=((1920, 1080),)),
    Scenario("photo-12mp", sizes=((4032, 3024),)),
    Scenario("a4-scan", sizes=((1654, 2339),), kind="scan"),  # 200 dots per inch
    Scenario("multi-4", sizes=((640, 480),) * 4),
    Scenario("video-8", kind="video", frames=8),
    Scenario("video-32", kind="video", frames=32),
)
_LONG_ANSWERS = (replace(short, name=short.name + LONG_SUFFIX, answer=LONG) for short in _INPUTS)
#: All scenarios by name.
SCENARIOS = {
    one.name: one
    for one in (*_INPUTS, Scenario("followup", sizes=((640, 480),), again=True), *_LONG_ANSWERS)
}
QUICK = ("text", "photo-384", "photo-480p")


def choose(names: Sequence[str], files: Sequence[Path], *, quick: bool) -> tuple[Scenario, ...]:
    """Scenarios by name and one per file; without either, all of them, or those of ``quick``.

    Raises:
        UsageError: A name is unknown, ``quick`` is combined with names or files, or a file cannot be read.
    """
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise UsageError(f"unknown scenario {unknown[0]!r}", hint=f"one of {', '.join(SCENARIOS)}")
    if quick and (names or files):
        raise UsageError("--quick cannot be combined with --scenario or --file")
    if not names and not files:
        names = QUICK if quick else tuple(SCENARIOS)
    return (*(SCENARIOS[name] for name in dict.fromkeys(names)), *map(_of_file, files))


def _of_file(path: Path) -> Scenario:
    """A scenario of the user's image or video."""
    from onevision.runtime.images import read_image
    from onevision.runtime.video import probe_video

    try:
        read_image(path)
    except ImageError as not_an_image:
        try:
            probe_video(path)
        except VideoError:
            raise not_an_image from None
        return Scenario(path.name, kind="video", file=path)
    return Scenario(path.name, kind="file", file=path)
