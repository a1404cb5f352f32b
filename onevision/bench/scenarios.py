"""What a model is asked to measure it: inputs by name, each with a short and a long answer.

In: names, and files of the user's. Out: scenarios, whose inputs are made when they are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onevision.bench import pictures
from onevision.errors import ImageError, UsageError, VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onevision.runtime.images import ImageSource

SHORT, LONG = 16, 128
LONG_SUFFIX = "-long"

#: A question of the usual length.
QUESTION = "Describe what can be seen here, and where it is."
SECOND_QUESTION = "Which part of it is the brightest?"

Kind = Literal["photo", "scan", "video", "file"]


@dataclass(frozen=True)
class Inputs:
    """What a question is about."""

    images: tuple[ImageSource, ...] = ()
    video: Path | None = None


@dataclass(frozen=True)
class Scenario:
    """One thing to ask.

    Attributes:
        name: What tables call it.
        answer: Tokens of the answer.
        sizes: (width, height) of pictures to make.
        kind: What they are made as; ``file``: there is a file instead.
        frames: Looked at of a video; None for the bundle's default.
        file: The user's picture or video.
        again: The question is the second one about the same input; the first is not timed.
    """

    name: str
    answer: int = SHORT
    sizes: tuple[pictures.Size, ...] = ()
    kind: Kind = "photo"
    frames: int | None = None
    file: Path | None = None
    again: bool = False

    def inputs(self, folder: Path) -> Inputs:
        """Its inputs; a video is made in ``folder``.

        Raises:
            ImportError: PyAV is missing, and a video has to be made.
        """
        if self.kind == "video":
            path = self.file or folder / "clip.mp4"
            return Inputs(video=path if path.exists() else pictures.video(path))
        if self.file:
            return Inputs((self.file.read_bytes(),))
        make = pictures.scan if self.kind == "scan" else pictures.photograph
        return Inputs(tuple(make(size, seed) for seed, size in enumerate(self.sizes)))


_A4 = (1654, 2339)  # at 200 dots an inch
_INPUTS = (
    Scenario("text"),
    Scenario("photo-384", sizes=((384, 384),)),
    Scenario("photo-480p", sizes=((640, 480),)),
    Scenario("photo-1080p", sizes=((1920, 1080),)),
    Scenario("photo-12mp", sizes=((4032, 3024),)),
    Scenario("a4-scan", sizes=(_A4,), kind="scan"),
    Scenario("multi-4", sizes=((640, 480),) * 4),
    Scenario("video-8", kind="video", frames=8),
    Scenario("video-32", kind="video", frames=32),
)
_FOLLOW_UP = Scenario("followup", sizes=((640, 480),), again=True)

#: All of them by name: the short answers, then the long ones.
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        *_INPUTS,
        _FOLLOW_UP,
        *(replace(short, name=short.name + LONG_SUFFIX, answer=LONG) for short in _INPUTS),
    )
}
QUICK = ("text", "photo-384", "photo-480p")


def choose(names: Sequence[str], files: Sequence[Path], *, quick: bool) -> tuple[Scenario, ...]:
    """Scenarios by name, and one for each file; without either, all, or the common ones.

    Raises:
        UsageError: An unknown name, names besides ``quick``, or a file that is not there.
    """
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise UsageError(f"unknown scenario {unknown[0]!r}", hint=f"one of {', '.join(SCENARIOS)}")
    if quick and (names or files):
        raise UsageError("--quick chooses the scenarios: leave --scenario and --file out")
    if not names and not files:
        names = QUICK if quick else tuple(SCENARIOS)
    named = (SCENARIOS[name] for name in dict.fromkeys(names))
    return (*named, *(_of_file(path) for path in files))


def _of_file(path: Path) -> Scenario:
    """The user's file: a picture, or else a video."""
    from onevision.runtime.images import read_image
    from onevision.runtime.video import probe_video

    try:
        read_image(path)
    except ImageError as not_a_picture:
        try:
            probe_video(path)
        except VideoError:
            raise not_a_picture from None
        return Scenario(path.name, kind="video", file=path)
    return Scenario(path.name, kind="file", file=path)
