"""Which frames of a video are taken, and that they are the same however they are decoded."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onevision import OneVision
from onevision.errors import PromptError, VideoError
from onevision.runtime.container import decode_all, decode_near, probe_video
from onevision.runtime.video import FrameChoice, Video, choose_frames, read_video, sample_positions
from tests.runtime.media import encode_video, frame_numbers, noise, numbered_frames
from tests.runtime.test_video import B_FRAMES, cut, prepare, read, rich_video, trim

#: Codecs, containers and ways to hide or reorder frames.
SEEKING = {
    "h264.mp4": {"options": {"bf": "3", "b_strategy": "0"}},
    "open.mp4": {"options": {"bf": "3", "x264-params": "open-gop=1"}},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1"}},
    "h264.mkv": {"options": {"bf": "2"}},
    "h264.ts": {},
    "open.mov": {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:keyint={g}"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "rate": 25, "options": {"bf": "2"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "lag-in-frames": "9"}},
    "hidden.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lookahead=0"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "turned.mp4": {"rotation": 90},
}
#: Those without an index or without presentation times, or whose key frames are not whole.
DECODED_WHOLE = {"h264.ts", "mpeg4.avi", "refresh.mp4"}


def moving(count: int) -> np.ndarray:
    """Noise that moves, frame by frame."""
    wide = np.asarray(noise(6, count + 8).resize(((count + 8) * 8, 48), Image.Resampling.NEAREST))
    return np.stack([wide[:, at * 8 : at * 8 + 64] for at in range(count)])


@pytest.mark.parametrize("gop", [1, 12, 40])
@pytest.mark.parametrize("name", SEEKING)
def test_frames_from_key_frames_are_those_of_a_whole_decode(name, gop, tmp_path):
    settings = dict(SEEKING[name])
    options = {key: value.format(g=gop) for key, value in settings.pop("options", {}).items()}
    path = encode_video(tmp_path / name, moving(110), options={"g": str(gop), **options}, **settings)
    probe = probe_video(path)
    whole, stamps = decode_all(path, range(110), np.asarray, "AUTO")
    assert len(whole) == len(stamps) == probe.frames == 110
    seeks = []
    for numbers in (sample_positions(110, 4), (0,), (109,), (108, 109), (3, 4, 5, 41), (41, 50, 80)):
        near = decode_near(probe, path, numbers, np.asarray)
        assert near is None or list(near) == list(numbers)
        assert all(np.array_equal(frame, whole[number]) for number, frame in (near or {}).items())
        seeks.append(near is not None)
    if name not in DECODED_WHOLE:
        assert all(seeks) if gop < 40 else any(seeks)
    video = read(path, 4)
    assert np.array_equal(video.tiles, [prepare(Image.fromarray(whole[n])) for n in sample_positions(110, 4)])


def test_frames_before_an_edit_list_are_a_way_to_those_after(tmp_path):
    path = encode_video(tmp_path / "a.mp4", moving(100), options={"g": "10"})
    trimmed = trim(path, tmp_path / "trimmed.mp4", Fraction(5, 10))
    probe = probe_video(trimmed)
    whole, _ = decode_all(trimmed, range(95), np.asarray, "AUTO")
    assert probe.frames == len(whole) == 95
    near = decode_near(probe, trimmed, (0, 2, 50), np.asarray)
    assert near is not None
    assert all(np.array_equal(frame, whole[number]) for number, frame in near.items())


def test_few_frames_of_a_long_video_decode_few(tmp_path):
    path = encode_video(tmp_path / "a.mp4", moving(400), options={"g": "10"})
    probe = probe_video(path)
    assert probe.work(sample_positions(400, 4)) <= 40
    assert probe.work(range(0, 400, 5)) == 400
    assert probe.work((7,)) == 8


#: Times of frames; options of the choice; numbers of the frames taken.
STEADY = tuple(number / 10 for number in range(40))
STILL = (0.0, *(10 + number / 30 for number in range(59)))
CHOICES = [
    (STEADY, {"frames": 4}, (0, 13, 26, 39)),
    (STEADY, {"frames": 4, "by": "time"}, (0, 13, 26, 39)),
    (STEADY, {"fps": 1}, (0, 10, 20, 30)),
    (STEADY, {"fps": 0.1}, (0,)),
    (STEADY, {"fps": 2, "start": 1, "end": 2}, (10, 15, 20)),
    (STEADY, {"fps": 5, "frames": 3}, (0, 18, 38)),
    (STEADY, {"frames": 3, "start": 1.0}, (10, 24, 39)),
    (STEADY, {"frames": 3, "end": 1.05}, (0, 5, 10)),
    (STEADY, {"frames": 8, "start": 0.52, "end": 0.58}, (5,)),
    (STEADY, {"frames": 8, "start": 3.9, "end": 99}, (39,)),
    (STEADY, {"frames": 2, "start": 0, "end": 0, "by": "time"}, (0,)),
    (STEADY, {"fps": 25}, tuple(range(40))),
    (STILL, {"frames": 4}, (0, 19, 39, 59)),
    (STILL, {"frames": 4, "by": "time"}, (0, 59)),
    (STILL, {"frames": 13, "by": "time"}, (0, 29, 59)),
    (STILL, {"fps": 1}, (0, 1, 31)),
    (STILL, {"frames": 3, "start": 5, "end": 8}, (0,)),
    (STILL, {"fps": 1, "start": 9.5}, (0, 16, 46)),
    ((0.0,), {"frames": 8, "by": "time"}, (0,)),
    ((0.0,), {"fps": 30}, (0,)),
]


@pytest.mark.parametrize(("times", "options", "numbers"), CHOICES)
def test_choices_by_time(times, options, numbers):
    assert choose_frames(len(times), times, FrameChoice(**options), "a.mp4")[0] == numbers


@given(
    gaps=st.lists(st.floats(0.001, 9), max_size=30),
    frames=st.integers(1, 9),
    fps=st.none() | st.floats(0.05, 50),
    span=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 9)),
    by=st.sampled_from(["number", "time"]),
)
def test_each_frame_is_taken_once_and_is_shown_in_the_part_asked_for(gaps, frames, fps, span, by):
    times = (0.0, *np.cumsum(gaps))
    start = None if span is None else times[-1] * span[0]
    end = None if span is None else start + span[1]
    choice = FrameChoice(frames, fps, start, end, by)
    numbers, _ = choose_frames(len(times), times, choice, "a.mp4")
    assert 1 <= len(numbers) <= frames
    assert list(numbers) == sorted(set(numbers))
    if span is not None:
        until = [*times[1:], np.inf]
        assert all(times[n] <= end + 1e-5 and until[n] >= start - 1e-5 for n in numbers)


def test_warnings_of_choices():
    def warnings(times, **options):
        return choose_frames(len(times), times, FrameChoice(**options), "a.mp4")[1]

    assert "uneven" in warnings(STILL, frames=4)[0]
    assert "uneven" in warnings(STILL, frames=4, start=1)[0]
    assert warnings(STILL, frames=4, by="time") == warnings(STILL, fps=1) == warnings(STEADY, frames=4) == ()
    assert "fewer than 12.5 frames a second" in warnings(STEADY, fps=12.5)[0]
    assert warnings(STEADY, fps=10) == ()


def test_choices_that_cannot_be_made():
    with pytest.raises(VideoError, match=r"from 4 s on, and the last one is at 3\.90 s"):
        choose_frames(40, STEADY, FrameChoice(start=4), "a.mp4")
    with pytest.raises(PromptError, match=r"40 frames of a\.mp4 are too many") as caught:
        choose_frames(40, STEADY, FrameChoice(most=7), "a.mp4")
    assert caught.value.hint == "--frames 7"
    for options in ({"fps": 1}, {"start": 0}, {"end": 1}, {"by": "time"}):
        with pytest.raises(VideoError, match="not known when the frames of the array are shown"):
            read_video(numbered_frames(4), frames=FrameChoice(4, **options), prepare=prepare)


def test_too_many_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(40))
    for name in ("decode_all", "decode_near"):
        monkeypatch.setattr(f"onevision.runtime.video.{name}", None)
    with pytest.raises(PromptError, match="40 frames"):
        read_video(path, frames=FrameChoice(64, most=39), prepare=prepare)


def test_a_part_of_a_file(tmp_path):
    path = encode_video(tmp_path / "a.mp4", numbered_frames(40), options=B_FRAMES)
    video = read_video(path, frames=FrameChoice(fps=2, start=1, end=2.5), prepare=prepare)
    assert video.positions == (10, 15, 20, 25)
    assert video.times == pytest.approx((1, 1.5, 2, 2.5))
    assert frame_numbers(video.tiles) == [10, 15, 20, 25]


def test_times_of_a_damaged_file_are_those_of_the_frames_that_decode(tmp_path):
    path = cut(rich_video(tmp_path / "a.mkv", options=B_FRAMES), 0.6)
    video = read_video(path, frames=FrameChoice(fps=1), prepare=prepare)
    assert "cut off" in video.warnings[0]
    assert video.positions == tuple(range(0, video.total, 10))


@pytest.mark.parametrize("times", [None, (0.0, 1.5)])
def test_a_video_in_a_cache(times):
    tiles = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    video = Video(tiles, (0, 9), times, 10, None, 2.5, ("a.mp4 is cut off",))
    again = Video.from_bytes(memoryview(video.to_bytes("a.mp4")), "b.mp4")
    assert np.array_equal(again.tiles, tiles)
    assert vars(again) | {"tiles": 0} == vars(video) | {"tiles": 0, "warnings": ("b.mp4 is cut off",)}


def test_a_video_of_a_message_has_options_of_its_own(toy_bundle: Path, clip: Path):
    parts = [
        {"type": "video", "video": str(clip), "frames": 3},
        {"type": "video", "video": str(clip), "fps": 10, "from_time": 1, "to_time": "0:01.45"},
        {"type": "video", "video": str(clip)},
    ]
    messages = [{"role": "user", "content": [*parts, "What moves?"]}]
    with OneVision.load(toy_bundle, device="cpu", threads=1) as model:
        assert model.generate(messages=messages, max_tokens=1).usage.tiles == 3 + 5 + 24
        assert model.generate(messages=messages, max_tokens=1, frames=2).usage.tiles == 2 + 2 + 2
