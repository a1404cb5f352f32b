"""Video files: their packets, and the frames of given numbers.

In: a file that FFmpeg reads. Out: :class:`VideoProbe`, and upright RGB frames. Frames have their number in
the order in which they are shown. Where the packets say when each is shown, a frame is decoded from the key
frame before it; where they do not, or the file is damaged, everything is decoded.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onevision.errors import VideoError
from onevision.runtime.imagefile import MAX_PIXELS
from onevision.runtime.images import read_image
from onevision.runtime.kinds import existing_file, identify

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

Source: TypeAlias = "str | os.PathLike[str] | VideoBytes"

Prepare: TypeAlias = Callable[[Image.Image], NDArray[np.uint8]]

Tiles: TypeAlias = dict[int, NDArray[np.uint8]]

_NEAR = 0.5  # most frames to decode by key frames, of all: above, one pass over everything is as fast

# Containers that may be opened, and where they may read from: playlists could name files and hosts of their
# own, and FFmpeg draws any text file as a film of its letters. The last four are sound files, to be named so.
_DEMUXERS = (
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,asf,ogg,gif,apng,h264,hevc,m4v,ivf,obu,mxf,nut,dv,rm,"
    "yuv4mpegpipe,mp3,wav,flac,aac"
)
_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
_HEAD = 512  # bytes that tell what kind of file it is
_ANIMATIONS = ("a GIF image", "a PNG image")  # the two that FFmpeg reads as animations

_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class VideoBytes(bytes):
    """A video file in memory; as a text, its name for messages."""

    def __str__(self) -> str:
        return f"the video of {len(self):,} bytes"


@dataclass(frozen=True)
class VideoProbe:
    """A video's size, frames and damage, from its packets and its first frame."""

    width: int  # as shown, after rotation, in pixels
    height: int
    frames: int  # packets in the file, not what its header claims
    fps: float | None  # on average
    duration: float | None  # seconds, as the container says
    warnings: tuple[str, ...]
    #: When each frame is shown, and key frames, in ``unit`` seconds. Empty where packets do not say.
    stamps: tuple[int, ...] = field(default=(), repr=False)
    keys: tuple[int, ...] = field(default=(), repr=False)
    unit: Fraction | None = None

    @cached_property
    def times(self) -> tuple[float, ...] | None:
        """When each frame is shown, in seconds after the first one; None where that is unknown."""
        return frame_times(self.stamps or [None] * self.frames, self.unit, self.fps)

    def work(self, numbers: Sequence[int]) -> int:
        """Number of frames to decode for those of some numbers: from the key frames before them, or all."""
        if not numbers or not self.keys or self.keys[0] > self.stamps[numbers[0]]:
            return self.frames
        # Key frames, each with the last number after it.
        last = {self.keys[bisect_right(self.keys, self.stamps[number]) - 1]: number for number in numbers}
        near = sum(number - bisect_left(self.stamps, key) + 1 for key, number in last.items())
        return near if near <= _NEAR * self.frames else self.frames


def frame_times(
    stamps: Sequence[int | None], unit: Fraction | None, fps: float | None
) -> tuple[float, ...] | None:
    """Seconds after the first frame for presentation times in ``unit`` seconds, or for a steady rate.

    Returns:
        In order; None where a presentation time is missing and the rate is unknown.
    """
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if known and unit is not None and len(known) == len(stamps):
        return tuple(float((stamp - known[0]) * unit) for stamp in known)
    return tuple(number / fps for number in range(len(stamps))) if fps else None


def probe_video(source: Source) -> VideoProbe:
    """Read through the packets of a video and decode its first frame.

    Raises:
        VideoError: Not a video, no frame that decodes, or PyAV is not installed.
    """
    first: VideoFrame | None = None
    stamps: list[int | None] = []
    keys: list[int | None] = []
    end, cut, corrupt = 0.0, False, False
    with open_video(source) as (av, container, stream):
        try:
            for packet in container.demux():
                time = packet.dts if packet.pts is None else packet.pts
                if time is not None:
                    end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream:
                    continue
                if packet.size:
                    if not packet.is_discard:
                        stamps.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
                    cut = packet.is_corrupt
                    corrupt |= cut
                if first is None:
                    first = next(iter(_decode_packet(av, stream, packet)), None)
        except av.error.FFmpegError:
            cut = True
        if first is None:
            raise nothing_decodes(source)
        image = _to_image(first)
        fps = float(stream.average_rate) if stream.average_rate else None
        duration = container.duration / av.time_base if container.duration else None
        unit = stream.time_base
    warnings: tuple[str, ...] = ()
    # The count of frames in a header is no proof: it includes those that an edit list hides.
    if cut or (duration and end < 0.99 * duration - 0.25):
        warnings = (f"{source} is cut off: it has {len(stamps)} frames and ends after {end:.1f} s",)
    shown = tuple(sorted(stamp for stamp in stamps if stamp is not None))
    known = len(shown) == len(stamps)
    # Equal times do not tell frames apart, and what a damaged packet decodes to depends on those before it.
    sound = known and not (warnings or corrupt or None in keys) and len(set(shown)) == len(shown)
    return VideoProbe(
        image.width,
        image.height,
        len(stamps),
        fps,
        duration,
        warnings,
        shown if known else (),
        tuple(sorted(key for key in keys if key is not None)) if sound else (),
        unit,
    )


def file_head(source: Source) -> bytes:
    """The first bytes of a file.

    Raises:
        VideoError: It cannot be read.
    """
    if isinstance(source, VideoBytes):
        return source[:_HEAD]
    path = existing_file(source, VideoError)
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise VideoError(f"{path} cannot be opened: {error.strerror}") from error


@contextmanager
def open_video(source: Source) -> Iterator[tuple[ModuleType, InputContainer, VideoStream]]:
    """PyAV, the container and its first video stream that is not a cover image."""
    try:
        import av
        import av.error
        import av.stream
    except ImportError as error:
        raise VideoError("reading videos needs PyAV", hint="pip install 'onevision[video]'") from error
    kind = identify(file_head(source))
    if kind is not None and kind.endswith("image") and kind not in _ANIMATIONS:
        raise _not_a_video(source, kind)
    file = io.BytesIO(source) if isinstance(source, VideoBytes) else os.path.abspath(source)  # noqa: PTH100
    try:
        container = av.open(file, "r", options=_OPTIONS, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise _not_a_video(source, kind) from error
    with container:
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            what = "has sound and no video" if container.streams.audio else "has no video in it"
            raise VideoError(f"{source} {what}", hint="give a video file")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{source} is in an unknown codec", hint="convert it to MP4 with H.264")
        if stream.width * stream.height > MAX_PIXELS:
            raise VideoError(
                f"{source} is too large: {stream.width}x{stream.height} pixels", hint="make it smaller first"
            )
        yield av, container, stream


def _not_a_video(source: Source, kind: str | None) -> VideoError:
    if kind is None:
        return VideoError(
            f"{source} is not a video that can be read",
            hint="MP4, MOV, MKV, WebM, AVI, MPEG and GIF are read",
        )
    if kind.endswith("image"):
        return VideoError(f"{source} is {kind}, not a video", hint="pass it with --image")
    if kind.endswith("video"):
        return VideoError(f"{source} starts as {kind} and is damaged", hint="record or download it again")
    return VideoError(f"{source} is {kind}, not a video", hint="give a video file")


def nothing_decodes(source: Source) -> VideoError:
    """Error for a video of which no frame decodes."""
    return VideoError(f"no frame of {source} can be decoded", hint="convert it to MP4 with H.264")


def decode_near(probe: VideoProbe, source: Source, numbers: Sequence[int], prepare: Prepare) -> Tiles | None:
    """The prepared frames of some numbers, each decoded from the key frame before it.

    Every frame that comes on the way must be the next one by its presentation time, or nothing is trusted:
    packets that hide a frame, fields, and open groups that cannot be decoded are found so.

    Returns:
        None where the container has no key frames to go by, where a frame does not come, and where decoding
        everything is hardly more work.
    """
    if probe.work(numbers) == probe.frames:
        return None
    stamps, keys = probe.stamps, probe.keys
    tiles: Tiles = {}
    with open_video(source) as (av, container, stream):
        stream.thread_type = "AUTO"
        at = -1  # the frame that came last
        frames: Iterator[VideoFrame] = iter(())
        try:
            for number in numbers:
                key = keys[bisect_right(keys, stamps[number]) - 1]
                expected = range(at + 1, at + 2)
                if bisect_left(stamps, key) > at:
                    container.seek(key, stream=stream)
                    frames = (frame for packet in container.demux(stream) for frame in stream.decode(packet))
                    expected = range(bisect_left(stamps, key) + 1)  # it may end at an earlier key frame
                for frame in frames:
                    at = -1 if frame.pts is None else bisect_left(stamps, frame.pts)
                    if at not in expected or frame.is_corrupt or stamps[at] != frame.pts:
                        return None
                    expected = range(at + 1, at + 2)
                    if at == number:
                        tiles[number] = prepare(_to_image(frame))
                        break
                else:
                    return None
        except av.error.FFmpegError:
            return None
    return tiles


def decode_all(
    source: Source, numbers: Sequence[int], prepare: Prepare, threads: str
) -> tuple[Tiles, list[int | None]]:
    """The prepared frames of some numbers, as far as they are there, and the presentation times of all."""
    tiles: Tiles = {}
    chosen = set(numbers)
    stamps: list[int | None] = []
    with open_video(source) as (av, container, stream):
        stream.thread_type = threads
        for number, frame in enumerate(_frames(av, container, stream)):
            stamps.append(frame.pts)
            if number in chosen:
                tiles[number] = prepare(_to_image(frame))
    return tiles, stamps


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
