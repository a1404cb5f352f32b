"""Real pictures, and videos whose frames can be told apart, for the tests of the runtime."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import matplotlib.cbook
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LEVEL_STEP = 5  # between neighbouring frames; lossy codecs move a level by less than half of it
MAX_FRAMES = 48


def photograph(name: str) -> Image.Image:
    """A photograph of 640×427 (china, flower) or 512×600 (hopper), the last upright."""
    if name == "hopper":
        with Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
            return image.convert("RGB")
    return Image.fromarray(load_sample_image(f"{name}.jpg"))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of which every pixel differs from its neighbours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def numbered_frames(count: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """[count, height, width, 3]: frame i is grey of level 8 + 5·i, its upper left quarter red."""
    assert count <= MAX_FRAMES
    width, height = size
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (8 + LEVEL_STEP * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, : height // 2, : width // 2] = (255, 0, 0)
    return frames


def frame_numbers(tiles: NDArray[np.uint8]) -> list[int]:
    """Which of the numbered frames each tile is, by the level of its lower right corner."""
    side = tiles.shape[1]
    corner = tiles[:, side * 5 // 8 :, side * 5 // 8 :].mean(axis=(1, 2, 3))
    return [round((level - 8) / LEVEL_STEP) for level in corner]


def encode_video(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 10,
    options: dict[str, str] | None = None,
    times_ms: Sequence[int] | None = None,
    rotation: int | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Writes ``frames`` [N, H, W, 3] (or 4 channels) to ``path``, whose suffix names the container."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, pixel_values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(
                pixel_values, format="rgb24" if frames.shape[3] == 3 else "rgba"
            )
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def encode_sound(path: Path, seconds: int = 1) -> Path:
    """Writes silence to ``path``."""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=8000, layout="mono")
        samples = np.zeros((1, 8000 * seconds), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def decode_all(path: Path) -> list[Image.Image]:
    """Every frame of a sound video in the order in which they are shown, without rotation."""
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]
