"""The frames chosen from a video, with real encoded files."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from onevision.errors import UsageError, VideoError
from onevision.runtime.anyres import squash
from onevision.runtime.container import VideoProbe, probe_video
from onevision.runtime.video import Video, read_video, sample_positions
from tests.runtime.media import decode_all as plain_decode
from tests.runtime.media import (
    encode_sound,
    encode_video,
    frame_numbers,
    noise,
    numbered_frames,
    photograph,
)

SIDE = 16
B_FRAMES = {"bf": "3", "b_strategy": "0"}


def prepare(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return squash(image, SIDE)


def read(source, frames: int = 8) -> Video:
    return read_video(source, frames=frames, prepare=prepare)


def check_plain(path: Path, video: Video, count: int, frames: int) -> None:
    """The chosen frames are those of a plain decode of everything, at the reference's positions."""
    everything = plain_decode(path)
    positions = [int(i) for i in np.linspace(0, count - 1, min(frames, count), dtype=int)]
    assert len(everything) == video.total == count
    assert list(video.positions) == positions
    assert frame_numbers(video.tiles) == positions
    assert np.array_equal(video.tiles, [prepare(everything[i]) for i in positions])


@pytest.mark.parametrize(
    ("total", "frames", "positions"),
    [
        (100, 4, (0, 33, 66, 99)),
        (40, 8, (0, 5, 11, 16, 22, 27, 33, 39)),
        (3, 8, (0, 1, 2)),
        (8, 8, (0, 1, 2, 3, 4, 5, 6, 7)),
        (1, 32, (0,)),
        (50, 1, (0,)),
        (50, 2, (0, 49)),
    ],
)
def test_positions(total, frames, positions):
    assert sample_positions(total, frames) == positions


def test_no_position_is_chosen_twice():
    for total in range(1, 130):
        for frames in range(1, 70):
            positions = sample_positions(total, frames)
            assert len(set(positions)) == len(positions) == min(total, frames)
            assert positions[0] == 0
            assert positions[-1] == (total - 1 if len(positions) > 1 else 0)


FORMATS = {
    "h264.mp4": {},
    "h264-b.mp4": {"options": B_FRAMES},
    "h264.mov": {"options": B_FRAMES},
    "h264.mkv": {"options": B_FRAMES},
    "h264.ts": {},
    "h265.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "mpeg4-b.avi": {"codec": "mpeg4", "options": {"bf": "2", "b": "4M"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"b": "4M"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "rate": 25},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "ffv1.mkv": {"codec": "ffv1", "pixels": "yuv444p"},
    "ten-bits.mkv": {"codec": "ffv1", "pixels": "yuv420p10le"},
    "grey.mkv": {"codec": "ffv1", "pixels": "gray"},
    "wmv2.wmv": {"codec": "wmv2", "options": {"b": "4M"}},
    "sorenson.flv": {"codec": "flv1", "options": {"b": "4M"}},
    "no-container.h264": {"options": B_FRAMES, "rate": 25},
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_against_a_plain_decode(name, tmp_path):
    frames = numbered_frames(37)
    if name.startswith("grey"):
        frames[:] = frames[:, -1:, -1:]
    path = encode_video(tmp_path / name, frames, **FORMATS[name])
    video = read(path, 10)
    check_plain(path, video, 37, 10)
    assert video.warnings == ()
    assert video.tiles.shape == (10, SIDE, SIDE, 3)
    assert video.tiles.dtype == np.uint8
    info = probe_video(path)
    assert (info.width, info.height, info.frames) == (64, 48, 37)
    assert (info.fps, info.duration, info.warnings) == (video.fps, video.duration, ())


def test_rate_and_duration(tmp_path):
    video = read(encode_video(tmp_path / "a.mp4", numbered_frames(40), rate=20))
    assert video.fps == 20
    assert video.duration == pytest.approx(2.0)


@pytest.mark.parametrize("asked", [1, 2, 5, 6, 32])
def test_fewer_frames_than_asked_for(asked, tmp_path):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(5))
    check_plain(path, read(path, asked), 5, asked)


def test_one_frame(tmp_path):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(1))
    video = read(path, 32)
    assert (video.positions, video.total, video.warnings) == ((0,), 1, ())
    assert frame_numbers(video.tiles) == [0]


def test_a_variable_frame_rate_is_sampled_by_frame(tmp_path):
    times = [i * i * 10 for i in range(30)]
    path = encode_video(tmp_path / "a.mp4", numbered_frames(30), times_ms=times, options=B_FRAMES)
    video = read(path, 7)
    check_plain(path, video, 30, 7)
    (warning,) = video.warnings
    assert "uneven" in warning
    assert "--by time" in warning


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_video_that_starts_late_is_whole(suffix, tmp_path):
    times = [60_000 + 100 * i for i in range(20)]
    path = encode_video(tmp_path / f"a.{suffix}", numbered_frames(20), times_ms=times)
    video = read(path, 4)
    check_plain(path, video, 20, 4)
    assert video.warnings == ()


@pytest.mark.parametrize("size", [(65, 49), (33, 20), (2, 2), (1, 1), (400, 8)])
def test_odd_sizes(size, tmp_path):
    path = encode_video(tmp_path / "a.mkv", numbered_frames(6, size), codec="ffv1", pixels="bgr0")
    video = read(path, 6)
    assert np.array_equal(video.tiles, [prepare(image) for image in plain_decode(path)])
    assert (probe_video(path).width, probe_video(path).height) == size


# Where the red quarter of the stored frames is seen: upper left, lower left, lower right, upper right.
@pytest.mark.parametrize(
    ("rotation", "corner", "size"),
    [
        (None, (0, 0), (64, 48)),
        (90, (1, 0), (48, 64)),  # counter-clockwise
        (180, (1, 1), (64, 48)),
        (-180, (1, 1), (64, 48)),
        (-90, (0, 1), (48, 64)),
        (270, (0, 1), (48, 64)),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_rotation(rotation, corner, size, suffix, tmp_path):
    path = encode_video(tmp_path / f"a.{suffix}", numbered_frames(4), rotation=rotation)
    info = probe_video(path)
    assert (info.width, info.height) == size
    for tile in read(path, 4).tiles:
        quarters = tile[SIDE // 4 :: SIDE // 2, SIDE // 4 :: SIDE // 2].astype(int)
        redness = quarters[:, :, 0] - quarters[:, :, 2]
        assert np.unravel_index(redness.argmax(), (2, 2)) == corner
        assert redness.max() > 150


def test_a_picture_is_rotated_as_ffmpeg_says(tmp_path):
    photo = np.asarray(photograph("china").resize((64, 48)))[None]
    path = encode_video(tmp_path / "a.mp4", photo, rotation=-90)
    upright = read_video(path, frames=1, prepare=np.asarray).tiles[0]
    assert np.array_equal(upright, plain_decode(path)[0].rotate(-90, expand=True))


def gif(path: Path, count: int) -> Path:
    frames = [Image.new("P", (20, 10)) for _ in range(count)]
    for i, frame in enumerate(frames):
        frame.putpalette([8 + 5 * i] * 3 + [255, 0, 0])
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    return path


@pytest.mark.parametrize("count", [1, 2, 12])
def test_gif(count, tmp_path):
    path = gif(tmp_path / "a.gif", count)
    video = read(path, 5)
    check_plain(path, video, count, 5)
    assert video.warnings == ()


def test_an_animated_png(tmp_path):
    frames = [Image.fromarray(frame) for frame in numbered_frames(9)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert frame_numbers(read(tmp_path / "a.png", 3).tiles) == [0, 4, 8]


def test_alpha_is_laid_over_white(tmp_path):
    frames = np.zeros((3, 16, 16, 4), np.uint8)
    frames[1] = (255, 0, 0, 255)
    frames[2] = (0, 0, 0, 128)
    path = encode_video(tmp_path / "a.mov", frames, codec="qtrle", pixels="argb")
    levels = read(path, 3).tiles[:, 0, 0]
    assert levels.tolist() == [[255, 255, 255], [255, 0, 0], [127, 127, 127]]


def test_frames_as_an_array():
    frames = numbered_frames(40)
    video = read(frames)
    assert video.positions == sample_positions(40, 8)
    assert frame_numbers(video.tiles) == list(video.positions)
    assert np.array_equal(video.tiles[3], prepare(Image.fromarray(frames[16])))
    assert (video.total, video.fps, video.duration, video.warnings) == (40, None, None, ())
    assert read(frames[:2]).positions == (0, 1)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((2, 0, 4, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_another_form_are_refused(array):
    with pytest.raises(VideoError, match="not a video"):
        read(array)


def rich_video(path: Path, **options) -> Path:
    """48 frames with blocks in their left half that change, so that all frames cost about the same."""
    frames = numbered_frames(48, (160, 120))
    for i in range(48):
        frames[i, :, :80] = noise(6, 4, seed=i).resize((80, 120), Image.Resampling.NEAREST)
    return encode_video(path, frames, **options)


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("index-first.mp4", {"container": {"movflags": "faststart"}, "options": B_FRAMES}),
        (
            "index-first-mpeg4.mp4",
            {"container": {"movflags": "faststart"}, "codec": "mpeg4", "options": {"b": "4M"}},
        ),
        ("a.mkv", {"options": B_FRAMES}),
        ("a.webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_a_broken_tail(name, options, tmp_path):
    path = cut(rich_video(tmp_path / name, **options), 0.6)
    video = read(path, 6)
    assert video.warnings
    assert all(str(path) in warning for warning in video.warnings)
    assert "cut off" in video.warnings[0]
    assert 5 < video.total < 48
    assert video.positions == sample_positions(video.total, 6)
    numbers = frame_numbers(video.tiles)
    assert numbers[:-1] == list(video.positions[:-1])
    assert abs(numbers[-1] - video.positions[-1]) <= 3  # the last is half there, or lacks its B-frames before
    assert "cut off" in probe_video(path).warnings[0]


def test_a_container_that_fails_midway(tmp_path):
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    path = rich_video(tmp_path / "a.mp4", container=fragmented, options={"g": "8", **B_FRAMES})
    data = bytearray(path.read_bytes())
    trun = -1  # the table of a fragment's frames: flags, count, offset, first flags, then entries
    for _ in range(3):
        trun = data.index(b"trun", trun + 1)
    flags = int.from_bytes(data[trun + 4 : trun + 8], "big") & 0xFFFFFF
    assert flags == 0xA05  # an entry is a size and a time shift, of 4 bytes each
    sizes = trun + 20
    data[sizes + 5 * 8 : sizes + 5 * 8 + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    video = read(path, 48)
    assert len(video.warnings) == 1
    assert "cut off" in video.warnings[0]
    assert 16 <= video.total < 24
    assert video.total == probe_video(path).frames  # with those that the decoder still held
    assert frame_numbers(video.tiles)[:16] == list(range(16))


def test_a_container_that_fails_and_never_said_how_long_it_is(tmp_path):
    path = tmp_path / "a.png"
    frames = [Image.fromarray(frame) for frame in numbered_frames(12)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    head, *chunks = path.read_bytes().split(b"fcTL")
    chunks[8] = chunks[8][:-4] + b"\0\0\0\x63"  # the length of the tenth frame's header
    path.write_bytes(b"fcTL".join([head, *chunks]))
    video = read(path, 12)
    assert video.duration is None
    assert "cut off" in video.warnings[0]
    assert video.total >= 8
    assert frame_numbers(video.tiles) == list(video.positions) == list(range(video.total))


def test_a_hole_in_the_middle(tmp_path):
    path = rich_video(tmp_path / "a.mp4", container={"movflags": "faststart"}, options={"g": "8", "bf": "0"})
    data = bytearray(path.read_bytes())
    hole = slice(len(data) // 2, len(data) * 6 // 10)
    data[hole] = np.random.default_rng(0).bytes(hole.stop - hole.start)
    path.write_bytes(data)
    video = read(path, 48)
    assert 24 < video.total < 48
    assert any(f"of {probe_video(path).frames} frames cannot be decoded" in text for text in video.warnings)
    assert video.positions == tuple(range(video.total))
    assert frame_numbers(video.tiles)[:20] == list(range(20))
    assert frame_numbers(video.tiles)[-1] == 47


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.gif"])
def test_damaged_files_never_raise_anything_else(name, tmp_path):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = tmp_path / name
    path = gif(path, 8) if name == "a.gif" else encode_video(path, numbered_frames(8), codec=codec)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = data.copy()
        at = rng.integers(0, min(len(data), 900), rng.integers(1, 30))
        damaged[at] = rng.integers(0, 256, len(at))
        path.write_bytes(damaged.tobytes())
        try:
            video = read(path, 4)
            assert len(video.tiles) == len(video.positions) <= 4
        except VideoError:
            refused += 1
    assert refused


def trim(path: Path, target: Path, seconds: Fraction) -> Path:
    """The same packets, with an edit list that hides the first seconds."""
    with av.open(str(path)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        start = int(seconds / old.streams.video[0].time_base)
        for packet in old.demux(video=0):
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
            new.mux(packet)
    return target


def test_frames_cut_away_by_an_edit_list_are_not_counted(tmp_path):
    source = rich_video(tmp_path / "a.mp4", options={"g": "48", "bf": "0"})
    trimmed = trim(source, tmp_path / "trimmed.mp4", Fraction(1))
    expected = len(plain_decode(trimmed))
    video = read(trimmed, 5)
    assert expected == 38
    assert (video.total, probe_video(trimmed).frames, video.warnings) == (38, 38, ())
    assert frame_numbers(video.tiles) == [10 + position for position in video.positions]


def test_only_the_chosen_frames_are_prepared(tmp_path):
    seen = []

    def record(image):
        seen.append(image.size)
        return prepare(image)

    read_video(encode_video(tmp_path / "a.mp4", numbered_frames(48)), frames=4, prepare=record)
    assert seen == [(64, 48)] * 4


def test_a_file_with_sound_alone(tmp_path):
    with pytest.raises(VideoError, match="has sound and no video"):
        read(encode_sound(tmp_path / "a.m4a"))
    with pytest.raises(VideoError, match="has sound and no video"):
        probe_video(encode_sound(tmp_path / "a.mkv"))


def test_a_cover_picture_is_no_video(tmp_path):
    from av.stream import Disposition

    sound, cover = encode_sound(tmp_path / "a.m4a"), tmp_path / "cover.png"
    photograph("china").resize((32, 32)).save(cover)
    path = tmp_path / "song.m4a"
    with (
        av.open(str(sound)) as tune,
        av.open(str(cover)) as picture,
        av.open(str(path), "w", format="mp4") as out,
    ):
        streams = [out.add_stream_from_template(c.streams[0]) for c in (tune, picture)]
        streams[1].disposition = Disposition.attached_pic
        for container, stream in zip((picture, tune), reversed(streams), strict=True):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoError, match="has sound and no video"):
        read(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_picture_is_no_video(form, tmp_path):
    path = tmp_path / "a.mp4"
    noise(20, 30).save(path, form)
    with pytest.raises(VideoError, match=f"{form} image, not a video".replace("WEBP", "WebP")) as caught:
        read(path)
    assert "--image" in caught.value.hint


FILES = {
    "text.mp4": (b"hello world\n" * 100, "is not a video that can be read"),
    "ansi.txt": (b"\x1b[31mred\x1b[0m\n" * 100, "is not a video that can be read"),
    "list.m3u8": (
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "is not a video that can be read",
    ),
    "list.ffconcat": (b"ffconcat version 1.0\nfile a.mp4\n", "is not a video that can be read"),
    "page.mp4": (b"<!DOCTYPE html><html></html>", "is a web page, not a video"),
    "a.pdf": (b"%PDF-1.7\n" + bytes(100), "is a PDF document, not a video"),
    "empty.mp4": (b"", "is empty"),
    "head.mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "MP4 video and is damaged|no video in it"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_videos(name, tmp_path):
    data, message = FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VideoError, match=message) as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    with pytest.raises(VideoError, match=message):
        probe_video(tmp_path / name)


def test_an_mp4_that_lost_its_index(tmp_path):
    path = cut(rich_video(tmp_path / "a.mp4"), 0.5)
    with pytest.raises(VideoError, match="starts as an MP4 video and is damaged"):
        read(path)


def test_a_video_of_which_nothing_decodes(tmp_path):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(5))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = b"\xff" * (data.index(b"moov") - 4 - start)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"no frame of .* can be decoded"):
        read(path)


def test_an_unknown_codec(tmp_path):
    path = encode_video(tmp_path / "a.avi", numbered_frames(5), codec="mpeg4")
    data = path.read_bytes()
    assert b"FMP4" in data
    path.write_bytes(data.replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(VideoError, match="unknown codec"):
        read(path)


def test_an_absurd_resolution_is_refused_before_decoding(tmp_path):
    path = encode_video(tmp_path / "a.avi", numbered_frames(2), codec="rawvideo", pixels="bgr24")
    data = bytearray(path.read_bytes())
    width = data.index(b"strf") + 12
    data[width : width + 8] = (15_000).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(VideoError, match="too large: 15000x15000"):
        read(path)


def test_paths_that_cannot_be_opened(tmp_path):
    for source, message in [
        (tmp_path / "none.mp4", "none.mp4 does not exist"),
        (tmp_path, "is a folder without images"),
        ("", "does not exist"),
        ("https://example.org/a.mp4", "is an address, not a file"),
        ("a\0b.mp4", "not a path"),
        (b"bytes", "the video of 5 bytes is not a video that can be read"),
        (3, "a path is needed, not a value of type int"),
        (None, "a path is needed"),
    ]:
        with pytest.raises(VideoError, match=message):
            read(source)


@pytest.mark.parametrize(
    "name", ["pipe:0", "concat:a.mp4|b.mp4", "data:video", "100%d.mp4", "mit Leerzeichen ü.mp4"]
)
@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not allow")
def test_names_that_ffmpeg_would_read_otherwise(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = encode_video(tmp_path / "plain.mp4", numbered_frames(4))
    Path(name).write_bytes(path.read_bytes())
    assert read(name, 4).total == 4


@pytest.mark.parametrize("frames", [0, -1])
def test_fewer_than_one_frame_is_wrong_usage(frames, tmp_path):
    for source in (tmp_path / "none.mp4", numbered_frames(2)):
        with pytest.raises(UsageError, match="at least 1"):
            read(source, frames)


def test_nothing_is_printed(tmp_path, capfd):
    read(encode_video(tmp_path / "a.mp4", numbered_frames(6), options={"x264-params": "log-level=none"}))
    capfd.readouterr()
    read(tmp_path / "a.mp4")
    path = cut(rich_video(tmp_path / "b.mkv", options={"x264-params": "log-level=none"}), 0.5)
    read(path)
    with pytest.raises(VideoError):
        read(Path(__file__))
    assert capfd.readouterr() == ("", "")


def test_without_pyav_the_error_names_the_extra(tmp_path):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(3))
    script = (
        "import sys; sys.modules['av'] = None\n"
        "from onevision.errors import VideoError\n"
        "from onevision.runtime.container import probe_video\n"
        f"try: probe_video({str(path)!r})\n"
        "except VideoError as error: print(error.message, '|', error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reading videos needs PyAV | pip install 'onevision[video]'"


def test_pyav_is_imported_only_when_a_file_is_read():
    script = "import sys, onevision.runtime.video; sys.exit('av' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_travels_cannot_be_changed(tmp_path):
    info = probe_video(encode_video(tmp_path / "a.mp4", numbered_frames(3)))
    assert isinstance(info, VideoProbe)
    with pytest.raises(AttributeError):
        info.frames = 4
