"""A video to the frames that the model looks at.

In: a file, or an array of frames uint8 [N, H, W, 3]. Out: T prepared frames uint8 [T, S, S, 3], evenly spread
from the first to the last. All frames are decoded once, in the order in which they are shown, and only the
chosen ones are kept.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from onevision.errors import UsageError, VideoError
from onevision.runtime.imagefile import MAX_PIXELS
from onevision.runtime.images import read_image
from onevision.runtime.kinds import existing_file, identify

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType
    from typing import Any, TypeAlias

    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    Prepare: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]
    VideoSource: TypeAlias = str | os.PathLike[str] | NDArray[np.uint8]

# Containers that may be opened, and where they may read from: playlists could name files and hosts of their
# own, and FFmpeg draws any text file as a film of its letters. The last four are sound files, to be named so.
_DEMUXERS = (
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,gif,apng,h264,hevc,m4v,ivf,obu,mxf,nut,dv,rm,"
    "yuv4mpegpipe,mp3,wav,flac,aac"
)
_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
_ANIMATIONS = ("a GIF image", "a PNG image")  # the two that FFmpeg reads as animations

_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class VideoProbe:
    """A video's size, frames and damage, from its packets and its first frame."""

    width: int  # as shown, after rotation, in pixels
    height: int
    frames: int  # packets in the file, not what its header claims
    fps: float | None  # on average
    duration: float | None  # seconds, as the container says
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Video:
    """The frames that were chosen from a video."""

    tiles: NDArray[np.uint8]  # [T, S, S, 3], as ``prepare`` returns them
    positions: tuple[int, ...]  # their places among all frames, from 0
    total: int  # N, frames that can be decoded
    fps: float | None
    duration: float | None  # seconds
    warnings: tuple[str, ...]


def sample_positions(total: int, frames: int) -> tuple[int, ...]:
    """The reference's choice of ``frames`` out of ``total``: evenly from the first to the last, rounded down.

    ``np.linspace(0, N - 1, T, dtype=int)`` as in LLaVA-NeXT and lmms-eval. A video with fewer frames than
    asked for gives each of them once; the reference would repeat some.
    """
    return tuple(int(i) for i in np.linspace(0, total - 1, min(frames, total), dtype=int))


def read_video(source: VideoSource, *, frames: int, prepare: Prepare) -> Video:
    """Choose frames of a video and prepare each, in the order in which they are shown.

    Args:
        source: A file that FFmpeg can read, or an array uint8 [N, H, W, 3].
        frames: T, how many to choose; a shorter video gives all it has.
        prepare: Makes uint8 [S, S, 3] of an upright RGB image.

    Returns:
        The frames. ``warnings`` says if the file is damaged; what can be decoded of it is used.

    Raises:
        VideoError: Not a video, no frame that decodes, or PyAV is not installed.
        UsageError: ``frames`` is less than 1.
    """
    if frames < 1:
        raise UsageError(f"the number of frames must be at least 1, not {frames}")
    if isinstance(source, np.ndarray):
        return _from_array(source, frames, prepare)
    info = probe_video(source)
    warnings = info.warnings
    total = info.frames
    # A second and a third pass are for damaged files alone. They go without frame threads, which drop the
    # frames in flight at an error.
    for threads in ("AUTO", "SLICE", "SLICE"):
        tiles, decoded = _decode(source, sample_positions(total, frames), prepare, threads)
        if decoded == total:
            break
        total = decoded
    if not tiles:
        raise _nothing_decodes(source)
    if total < info.frames:
        warnings += (f"{source}: {info.frames - total} of {info.frames} frames cannot be decoded",)
    return Video(np.stack(list(tiles.values())), tuple(tiles), total, info.fps, info.duration, warnings)


def probe_video(source: str | os.PathLike[str]) -> VideoProbe:
    """Read through the packets of a video and decode its first frame.

    Raises:
        VideoError: Not a video, no frame that decodes, or PyAV is not installed.
    """
    first: VideoFrame | None = None
    frames, end, cut = 0, 0.0, False
    with _open(source) as (av, container, stream):
        try:
            for packet in container.demux():
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None:
                    end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream:
                    continue
                if packet.size:
                    frames += not packet.is_discard
                    cut = packet.is_corrupt
                if first is None:
                    first = next(iter(_decode_packet(av, stream, packet)), None)
        except av.error.FFmpegError:
            cut = True
        if first is None:
            raise _nothing_decodes(source)
        image = _to_image(first)
        fps = float(stream.average_rate) if stream.average_rate else None
        duration = container.duration / av.time_base if container.duration else None
    warnings: tuple[str, ...] = ()
    # The count of frames in a header is no proof: it includes those that an edit list hides.
    if cut or (duration and end < 0.99 * duration - 0.25):
        warnings = (f"{source} is cut off: it has {frames} frames and ends after {end:.1f} s",)
    return VideoProbe(image.width, image.height, frames, fps, duration, warnings)


@contextmanager
def _open(source: str | os.PathLike[str]) -> Iterator[tuple[ModuleType, InputContainer, VideoStream]]:
    """PyAV, the container and its first video stream that is not a cover image."""
    try:
        import av
        import av.error
        import av.stream
    except ImportError as error:
        raise VideoError("reading videos needs PyAV", hint="pip install 'onevision[video]'") from error
    path = existing_file(source, VideoError)
    try:
        with path.open("rb") as file:
            kind = identify(file.read(512))
    except OSError as error:
        raise VideoError(f"{path} cannot be opened: {error.strerror}") from error
    if kind is not None and kind.endswith("image") and kind not in _ANIMATIONS:
        raise _not_a_video(path, kind)
    try:
        container = av.open(str(path.absolute()), options=_OPTIONS, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise _not_a_video(path, kind) from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            what = "has sound and no video" if container.streams.audio else "has no video in it"
            raise VideoError(f"{path} {what}", hint="give a video file")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{path} is in an unknown codec", hint="convert it to MP4 with H.264")
        if stream.width * stream.height > MAX_PIXELS:
            raise VideoError(
                f"{path} is too large: {stream.width}x{stream.height} pixels", hint="make it smaller first"
            )
        yield av, container, stream


def _not_a_video(path: Path, kind: str | None) -> VideoError:
    if kind is None:
        return VideoError(
            f"{path} is not a video that can be read", hint="MP4, MOV, MKV, WebM, AVI, MPEG and GIF are read"
        )
    if kind.endswith("image"):
        return VideoError(f"{path} is {kind}, not a video", hint="pass it with --image")
    if kind.endswith("video"):
        return VideoError(f"{path} starts as {kind} and is damaged", hint="record or download it again")
    return VideoError(f"{path} is {kind}, not a video", hint="give a video file")


def _nothing_decodes(source: str | os.PathLike[str]) -> VideoError:
    return VideoError(f"no frame of {source} can be decoded", hint="convert it to MP4 with H.264")


def _decode(
    source: str | os.PathLike[str], positions: tuple[int, ...], prepare: Prepare, threads: str
) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """The prepared frames at ``positions``, as far as they are there, and the count of all."""
    tiles = {}
    chosen = set(positions)
    count = 0
    with _open(source) as (av, container, stream):
        stream.thread_type = threads
        for position, frame in enumerate(_frames(av, container, stream)):
            count = position + 1
            if position in chosen:
                tiles[position] = prepare(_to_image(frame))
    return tiles, count


def _frames(av: ModuleType, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """All frames that decode, in the order in which they are shown."""
    try:
        for packet in container.demux(stream):
            yield from _decode_packet(av, stream, packet)
    except av.error.FFmpegError:  # the container is damaged here; the decoder may still hold frames
        yield from _decode_packet(av, stream, None)


def _decode_packet(av: ModuleType, stream: VideoStream, packet: Packet[Any] | None) -> list[VideoFrame]:
    try:
        return stream.decode(packet)
    except av.error.FFmpegError:
        return []


def _to_image(frame: VideoFrame) -> Image.Image:
    """An upright RGB image. The frame's rotation is counter-clockwise, as Pillow's turns are."""
    alpha = any(component.is_alpha for component in frame.format.components)
    image = Image.fromarray(frame.to_ndarray(format="rgba" if alpha else "rgb24"))
    image = read_image(image) if alpha else image
    turn = _TURNS.get(round(frame.rotation / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)


def _from_array(array: NDArray[np.uint8], frames: int, prepare: Prepare) -> Video:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise VideoError(
            f"an array of shape {array.shape} and type {array.dtype} is not a video",
            hint="give uint8 of shape (frames, height, width, 3), in the order red, green, blue",
        )
    positions = sample_positions(len(array), frames)
    tiles = np.stack([prepare(read_image(array[position])) for position in positions])
    return Video(tiles, positions, len(array), None, None, ())


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
