"""Reading a few frames of a long clip: by its key frames, and by decoding all of it.

    python benchmarks/video.py [--minutes 10] [--frames 8] [--gop 60] [--rounds 3]

Makes an H.264 clip of 640x360 at 30 frames a second, checks that both ways give the same frames, and prints
medians in seconds as JSON.
"""

import json
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import av
import numpy as np
import typer
from PIL import Image

from onevision.runtime.anyres import squash
from onevision.runtime.container import decode_all, probe_video
from onevision.runtime.video import read_video, sample_positions

RATE, SIZE = 30, (640, 360)


def prepare(image: Image.Image) -> np.ndarray:
    """A frame as the model takes it."""
    return squash(image, 384)


def write_clip(path: Path, minutes: float, gop: int) -> None:
    """A clip of moving noise with a key frame every ``gop`` frames."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 80, 3), np.uint8)
    scene = np.asarray(Image.fromarray(noise).resize((2 * SIZE[0], SIZE[1])))
    with av.open(str(path), "w") as output:
        options = {"g": str(gop), "preset": "veryfast", "bf": "2"}
        stream = output.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(round(minutes * 60 * RATE)):
            left = 2 * number % SIZE[0]
            frame = np.ascontiguousarray(scene[:, left : left + SIZE[0]])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        output.mux(stream.encode())


def main(minutes: float = 10, frames: int = 8, gop: int = 60, rounds: int = 3) -> None:
    """Measure, and print."""
    with TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        write_clip(clip, minutes, gop)
        times: dict[str, list[float]] = {"read": [], "decoded whole": []}
        for _ in range(rounds):
            started = time.perf_counter()
            near = read_video(clip, frames=frames, prepare=prepare)
            times["read"].append(time.perf_counter() - started)
            started = time.perf_counter()
            probe = probe_video(clip)
            whole, _ = decode_all(clip, sample_positions(probe.frames, frames), prepare, "AUTO")
            times["decoded whole"].append(time.perf_counter() - started)
            if near.positions != tuple(whole) or not np.array_equal(near.tiles, list(whole.values())):
                raise SystemExit("the frames differ")
        read, decoded = (median(each) for each in times.values())
    result = {"frames": probe.frames, "read": read, "decoded whole": decoded, "ratio": read / decoded}
    print(json.dumps({name: round(value, 4) for name, value in result.items()}, indent=2))


if __name__ == "__main__":
    typer.run(main)
