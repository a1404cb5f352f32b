"""Videos that are given as images: animations, folders, lists, arrays; and files in memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onevision.errors import UsageError, VideoError
from onevision.planning.budget import video_size
from onevision.runtime.messages import VideoPart, conversation_of, parse_messages
from onevision.runtime.video import FrameChoice, read_video
from tests.runtime.media import encode_video, frame_numbers, numbered_frames

COUNT = 12
FRAMES = [Image.fromarray(frame) for frame in numbered_frames(COUNT)]


def square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((48, 48)))


def read(source, **choice):
    return read_video(source, frames=FrameChoice(**choice or {"frames": COUNT}), prepare=square)


def animated(form: str, durations) -> bytes:
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {"quality": 100}
    FRAMES[0].save(buffer, form, save_all=True, append_images=FRAMES[1:], duration=durations, **options)
    return buffer.getvalue()


def folder(path: Path, names) -> Path:
    for name, frame in zip(names, FRAMES, strict=False):
        frame.save(path / name)
    return path


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "file"])
@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
def test_animations(form, kind, tmp_path):
    (tmp_path / "a").write_bytes(data := animated(form, 50))
    path = tmp_path / "a"
    video = read({"path": path, "text": str(path), "bytes": data, "file": io.BytesIO(data)}[kind], frames=4)
    assert frame_numbers(video.tiles) == [0, 3, 7, 11] == list(video.positions)
    assert (video.total, video.fps, video.warnings) == (COUNT, pytest.approx(20), ())
    assert video.duration == pytest.approx(0.6)
    assert video.times == pytest.approx((0, 0.15, 0.35, 0.55))


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
def test_times_of_an_animation(form):
    data = animated(form, [1000] + [100] * (COUNT - 1))
    assert read(data, frames=3, by="time").positions == (0, 1, 11)
    assert read(data, fps=1.0).positions == (0, 1, 11)
    assert read(data, start=1.5, end=1.8).positions == (6, 7, 8, 9)
    (warning,) = read(data, frames=3).warnings
    assert "the frame rate of" in warning


def test_an_animation_without_durations_has_no_times():
    video = read(animated("WEBP", 0), frames=4)
    assert (video.positions, video.times, video.fps, video.duration) == ((0, 3, 7, 11), None, None, None)
    with pytest.raises(VideoError, match="it is not known when the frames of"):
        read(animated("WEBP", 0), fps=1.0)


def test_damaged_animations():
    data = animated("WEBP", 50)
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(VideoError):
            read(data[: int(part * len(data))])


@pytest.mark.parametrize("form", ["WEBP", "AVIF", "PNG", "TIFF"])
def test_a_still_image_is_no_video(form):
    buffer = io.BytesIO()
    FRAMES[0].save(buffer, form)
    with pytest.raises(VideoError, match="image, not a video") as caught:
        read(buffer.getvalue())
    assert "--image" in caught.value.hint


def test_a_folder_is_sorted_by_its_numbers(tmp_path):
    folder(tmp_path, [f"shot2-{number}.png" for number in range(COUNT)])
    assert frame_numbers(read(tmp_path).tiles) == list(range(COUNT))
    video = read(str(tmp_path), frames=3)
    assert (video.positions, video.times, video.total, video.warnings) == ((0, 5, 11), None, COUNT, ())


def test_names_without_and_with_leading_zeros(tmp_path):
    folder(tmp_path, ["a.png", "a1.png", "a02.png", "A3.png", "a10.png", "b1.png"])
    assert frame_numbers(read(tmp_path).tiles) == [0, 1, 2, 3, 4, 5]


def test_other_files_of_a_folder_are_named(tmp_path):
    folder(tmp_path, ["1.png", "2.png"])
    for name in ("notes.txt", ".DS_Store"):
        (tmp_path / name).write_text("x")
    (tmp_path / "raw").mkdir()
    assert read(tmp_path).warnings == (f"{tmp_path}: 2 of 4 files are no images, and are left out",)


def test_only_the_chosen_frames_of_a_folder_are_read(tmp_path):
    folder(tmp_path, [f"{number}.png" for number in range(COUNT)])
    (tmp_path / "1.png").write_bytes(b"no image")
    assert frame_numbers(read(tmp_path, frames=2).tiles) == [0, 11]
    with pytest.raises(VideoError, match=r"frame 2 of .*1\.png is not an image"):
        read(tmp_path)


def test_warnings_about_frames(tmp_path):
    buffer = io.BytesIO()
    FRAMES[1].save(buffer, "JPEG")
    video = read([FRAMES[0], buffer.getvalue()[:-2], buffer.getvalue()[:-2]])
    assert [warning.partition(" is ")[2] for warning in video.warnings] == [
        "cut off: only its end marker is missing"
    ]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_frames(kind, tmp_path):
    FRAMES[1].save(tmp_path / "1.png")
    sources = kind([FRAMES[0], tmp_path / "1.png", np.asarray(FRAMES[2]), (tmp_path / "1.png").read_bytes()])
    assert frame_numbers(read(sources).tiles) == [0, 1, 2, 1]


def test_bytes_of_a_video(tmp_path):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(COUNT))
    expected = read(path)
    for source in (path.read_bytes(), io.BytesIO(path.read_bytes())):
        video = read(source)
        assert np.array_equal(video.tiles, expected.tiles)
        assert (video.positions, video.times, video.warnings) == (expected.positions, expected.times, ())
    with pytest.raises(VideoError, match=r"the video of \d+ bytes starts as an MP4 video and is damaged"):
        read(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "the list of frames is empty"),
        (b"", "the video has 0 bytes"),
        (b"x", "the video of 1 bytes is not a video"),
        (["no.png"], "frame 1 of the list: no.png does not exist"),
        ([[1]], "frame 1 of the list: an image cannot be read from a value of type list"),
        (io.StringIO("x"), "the file is open as text"),
    ],
)
def test_what_is_no_video(source, says):
    with pytest.raises(VideoError, match=says):
        read(source)


def test_a_list_of_videos_is_explained(tmp_path):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(3))
    with pytest.raises(
        VideoError, match=r"frame 1 of the list: .*a\.mp4 is an MP4 video, not an image"
    ) as caught:
        read([path, path])
    assert "videos=" in caught.value.hint


def test_an_empty_folder(tmp_path):
    with pytest.raises(VideoError, match="is a folder without images"):
        read(tmp_path)


def test_sizes_for_a_plan(tmp_path):
    folder(tmp_path, [f"{number}.png" for number in range(3)])
    for source in (tmp_path, FRAMES[:3], numbered_frames(3)):
        media = video_size(source)
        assert (media.width, media.height, media.frames) == (64, 48, 3)


def test_frames_in_messages(tmp_path):
    part = {"type": "video", "video": ["a.png", f"file://{tmp_path}/b.png", FRAMES[0]]}
    (message,) = parse_messages([{"role": "user", "content": [part, {"type": "text", "text": "Hi"}]}])
    assert message.content[0] == VideoPart(["a.png", tmp_path / "b.png", FRAMES[0]])


def test_one_video_or_several():
    (message,) = conversation_of("Hi", ["a.png"], None, None, ["a.mp4", "b.mp4"])
    assert [type(part).__name__ for part in message.content] == ["ImagePart", "VideoPart", "VideoPart", "str"]
    (message,) = conversation_of("Hi", (), ["a.png", "b.png"], None)
    assert message.content == (VideoPart(["a.png", "b.png"]), "Hi")
    with pytest.raises(UsageError, match="either video or videos"):
        conversation_of("Hi", (), "a.mp4", None, ["b.mp4"])
    with pytest.raises(UsageError, match="videos must be a list"):
        conversation_of("Hi", (), None, None, "b.mp4")
    with pytest.raises(UsageError, match="either messages or a prompt"):
        conversation_of(None, (), None, [{"role": "user", "content": "Hi"}], ["b.mp4"])
