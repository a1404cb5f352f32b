"""A video to the frames that the model looks at.

In: a file, or an array of frames uint8 [N, H, W, 3]. Out: T prepared frames uint8 [T, S, S, 3], evenly spread
over the video by number, as in the reference, or by time. The same frames are chosen however they are
decoded, see :mod:`onevision.runtime.container`.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onevision.errors import PromptError, UsageError, VideoError
from onevision.extras import installed_version
from onevision.files import sha256_of
from onevision.runtime.cache import entry_key
from onevision.runtime.container import (
    Prepare,
    decode_all,
    decode_near,
    frame_times,
    nothing_decodes,
    probe_video,
)
from onevision.runtime.frames import Frames, GivenVideo, given_video
from onevision.runtime.kinds import existing_file
from onevision.runtime.options import AnswerOptions, FramesBy

VideoSource: TypeAlias = "GivenVideo | Video"

_UNEVEN = 0.05  # of the video: how far a frame may lie from where its number says, at a steady rate
_EXACT = 1e-6  # seconds: less than any container's unit


@dataclass(frozen=True)
class FrameChoice:
    """Which frames to take.

    Attributes:
        frames: T, how many; at most so many with ``fps``. A shorter video gives all it has.
        fps: Frames per second of video instead.
        start: Seconds from the first frame on.
        end: Seconds; the frame that is shown then is the last.
        by: How they are spread.
        most: Number that the model's context holds; more are refused before they are decoded.
    """

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    by: FramesBy = "number"
    most: int | None = None

    @classmethod
    def of(cls, options: AnswerOptions, usual: int, most: int | None = None) -> FrameChoice:
        """The choice that options make; ``usual`` frames where they name neither a number nor a rate."""
        frames = options.frames if options.frames or options.fps else usual
        return cls(frames, options.fps, options.from_time, options.to_time, options.frames_by, most)

    def check(self, frames: int, name: object) -> None:
        """Check that the context holds so many frames.

        Raises:
            PromptError: It does not.
        """
        if self.most is not None and frames > self.most:
            raise PromptError(
                f"{frames:,} frames of {name} are too many: the model's context holds {self.most:,}",
                hint=f"--frames {self.most}" if self.most else "use fewer images, or a shorter text",
            )

    @property
    def timed(self) -> bool:
        """Whether it needs to be known when frames are shown."""
        return self.by == "time" or (self.fps, self.start, self.end) != (None, None, None)


@dataclass(frozen=True, eq=False)
class Video:
    """The frames that were chosen from a video."""

    tiles: NDArray[np.uint8]  # [T, S, S, 3], as ``prepare`` returns them
    positions: tuple[int, ...]  # their places among all frames, from 0
    times: tuple[float, ...] | None  # when they are shown, in seconds after the first frame
    total: int  # N, frames that can be decoded
    fps: float | None
    duration: float | None  # seconds
    warnings: tuple[str, ...]

    def to_bytes(self, name: str) -> bytes:
        """Entry of a cache: length of the facts, the facts as JSON without the file's name, pixels."""
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        warnings = [warning.replace(name, "\0") for warning in self.warnings]
        head = json.dumps({**facts, "tiles": self.tiles.shape, "warnings": warnings}).encode()
        return b"".join((len(head).to_bytes(4, "little"), head, np.ascontiguousarray(self.tiles).data))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, name: str) -> Video:
        """The video of :meth:`to_bytes`, of a file of this name."""
        start = 4 + int.from_bytes(data[:4], "little")
        facts = json.loads(bytes(data[4:start]))
        warnings = [warning.replace("\0", name) for warning in facts["warnings"]]
        tiles = np.frombuffer(data, np.uint8, offset=start).reshape(facts["tiles"])
        lists = {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
        return cls(**{**facts, **lists, "tiles": tiles, "warnings": tuple(warnings)})


def sample_positions(total: int, frames: int) -> tuple[int, ...]:
    """The reference's choice of ``frames`` out of ``total``: evenly from the first to the last, rounded down.

    ``np.linspace(0, N - 1, T, dtype=int)`` as in LLaVA-NeXT and lmms-eval. A video with fewer frames than
    asked for gives each of them once; the reference would repeat some.
    """
    return tuple(int(i) for i in np.linspace(0, total - 1, min(frames, total), dtype=int))


def choose_frames(
    total: int, times: Sequence[float] | None, choice: FrameChoice, name: object
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Numbers of the frames to take, each once and in order, and warnings.

    Args:
        total: N, frames of the video.
        times: When each is shown, in seconds after the first; None: unknown.
        choice: Which to take.
        name: Of the video, for messages.

    Raises:
        VideoError: Times are needed and unknown, or the video ends before ``start``.
        PromptError: More than ``choice.most``.
    """
    warnings: tuple[str, ...] = ()
    if choice.timed:
        if times is None:
            raise VideoError(
                f"it is not known when the frames of {name} are shown",
                hint="leave --fps, --from, --to and --by out",
            )
        numbers = _between(times, choice, name)
        if choice.fps is not None and len(times) - 1 < 0.999 * times[-1] * choice.fps:
            warnings += (f"{name} has fewer than {choice.fps:g} frames a second: none is taken twice",)
    else:
        numbers = sample_positions(total, choice.frames or total)
    steady = choice.by == "number" and choice.fps is None
    if steady and times and numbers and _uneven(times[numbers[0] : numbers[-1] + 1]):
        warnings += (
            f"the frame rate of {name} is uneven, so that frames spread by number are not spread in time: "
            "--by time does that",
        )
    choice.check(len(numbers), name)
    return numbers, warnings


def _between(times: Sequence[float], choice: FrameChoice, name: object) -> tuple[int, ...]:
    """Numbers of the frames from ``start`` to ``end``, by number or by time."""
    start, latest = choice.start or 0.0, times[-1]
    if start > latest + _EXACT:
        raise VideoError(
            f"frames of {name} are wanted from {start:g} s on, and the last one is at {latest:.2f} s",
            hint="begin earlier: --from",
        )
    end = max(start, latest if choice.end is None else min(latest, choice.end))
    first, last = (bisect_right(times, moment + _EXACT) - 1 for moment in (start, end))
    within = last - first + 1
    if choice.by == "number" and choice.fps is None:
        return tuple(first + number for number in sample_positions(within, choice.frames or within))
    if choice.fps is None:
        moments = np.linspace(start, end, choice.frames or within)
    else:
        if choice.end is None and len(times) > 1:  # the last frame is shown about as long as the one before
            end += 0.99 * (latest - times[-2])
        moments = start + np.arange(int((end - start) * choice.fps + 1 + _EXACT)) / choice.fps
    shown = np.unique(np.searchsorted(times, moments + _EXACT, "right") - 1)
    return tuple(int(shown[at]) for at in sample_positions(len(shown), choice.frames or len(shown)))


def _uneven(times: Sequence[float]) -> bool:
    """Whether frames lie far from where their numbers say, at a steady rate."""
    span = times[-1] - times[0]
    if span <= 0:
        return False
    off = (np.array(times) - times[0]) / span - np.linspace(0, 1, len(times))
    return float(np.abs(off).max()) > _UNEVEN


def read_video(source: VideoSource, *, frames: int | FrameChoice, prepare: Prepare) -> Video:
    """Choose frames of a video and prepare each, in the order in which they are shown.

    Args:
        source: A file that FFmpeg can read, its bytes, an animated image, a folder or list of images, or an
            array uint8 [N, H, W, 3]; a video that was read already is returned.
        frames: Which, or how many: T, evenly spread by number.
        prepare: Makes uint8 [S, S, 3] of an upright RGB image.

    Returns:
        The frames. ``warnings`` says if the file is damaged; what can be decoded of it is used.

    Raises:
        VideoError: Not a video, no frame that decodes, PyAV is not installed, or see :func:`choose_frames`.
        UsageError: The number of frames is less than 1.
        PromptError: More frames than the context holds.
    """
    choice = frames if isinstance(frames, FrameChoice) else FrameChoice(frames)
    if choice.frames is not None and choice.frames < 1:
        raise UsageError(f"the number of frames must be at least 1, not {choice.frames}")
    if isinstance(source, Video):
        return source
    given = given_video(source)
    if isinstance(given, Frames):
        return _from_frames(given, choice, prepare)
    source, info = given, probe_video(given)
    warnings, times, total = info.warnings, info.times, info.frames
    numbers, notes = choose_frames(total, times, choice, source)
    tiles = decode_near(info, source, numbers, prepare)
    if tiles is None:
        # A second and a third pass are for damaged files alone. They go without frame threads, which drop the
        # frames in flight at an error.
        for threads in ("AUTO", "SLICE", "SLICE"):
            tiles, stamps = decode_all(source, numbers, prepare, threads)
            if len(stamps) == total:
                break
            total, times = len(stamps), frame_times(stamps, info.unit, info.fps)
            numbers, notes = choose_frames(total, times, choice, source) if total else ((), ())
    if not tiles:
        raise nothing_decodes(source)
    if total < info.frames:
        warnings += (f"{source}: {info.frames - total} of {info.frames} frames cannot be decoded",)
    shown = None if times is None else tuple(times[number] for number in tiles)
    pixels = np.stack(list(tiles.values()))
    if not info.warnings:  # what is missing makes the rate of a damaged file uneven
        warnings += notes
    return Video(pixels, tuple(tiles), shown, total, info.fps, info.duration, warnings)


def _from_frames(given: Frames, choice: FrameChoice, prepare: Prepare) -> Video:
    numbers, warnings = choose_frames(given.count, given.times, choice, given.name)
    notes: list[str] = []
    tiles = np.stack([prepare(image) for image in given.read(numbers, notes.append)])
    times = None if given.times is None else tuple(given.times[number] for number in numbers)
    fps = given.count / given.duration if given.duration else None
    said = (*given.warnings, *dict.fromkeys(notes), *warnings)
    return Video(tiles, numbers, times, given.count, fps, given.duration, said)


def video_key(source: str | os.PathLike[str], choice: FrameChoice, side: int) -> str:
    """Key of the chosen frames of a file, by its content, for a cache.

    Raises:
        VideoError: The file cannot be read.
    """
    path = existing_file(source, VideoError)
    try:
        content = sha256_of(path)
    except OSError as error:
        raise VideoError(f"{path} cannot be opened: {error.strerror}") from error
    return entry_key("frames", content, replace(choice, most=None), side, installed_version("av"))


def share_frames(frames: NDArray[np.uint8], threshold: float) -> tuple[NDArray[np.uint8], int]:
    """Replace each frame that is similar to an earlier one by the nearest such frame, to encode it only once.

    Two frames are similar if the mean of the absolute differences of their levels (0 to 255, all pixels and
    colors) is at most ``threshold``. A frame that was replaced replaces no other: nothing drifts.

    Args:
        frames: uint8 [F, S, S, 3].
        threshold: In levels; 0 for identical frames only.

    Returns:
        The frames, uint8 [F, S, S, 3], and the number of those replaced.
    """
    kept: list[int] = []
    source = []
    for at, frame in enumerate(frames):
        distances = [_distance(frame, frames[other]) for other in kept]
        nearest = min(range(len(kept)), key=distances.__getitem__, default=None)
        if nearest is not None and distances[nearest] <= threshold:
            source.append(kept[nearest])
        else:
            kept.append(at)
            source.append(at)
    reused = len(frames) - len(kept)
    return (frames[source] if reused else frames), reused


def _distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    # The larger less the smaller stays within uint8.
    return float((np.maximum(one, other) - np.minimum(one, other)).mean())
