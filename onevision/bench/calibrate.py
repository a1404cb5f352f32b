"""A bundle's speed on this machine, as times to the first token are predicted from.

In: a loaded bundle. Out: a :class:`~onevision.planning.speed.Calibration`. Each part is done once, with
the sizes of usual prompts; a run before it has warmed up.
"""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import numpy as np

from onevision.bench.scenarios import QUESTION, photograph, write_video
from onevision.planning.speed import Calibration, Reading, calibration_path, write_calibration
from onevision.runtime.answer import StageClock
from onevision.runtime.engine import OneVision
from onevision.runtime.options import AnswerOptions
from onevision.runtime.prefill.policy import LEAST, Reader
from onevision.runtime.prompt import conversation_of
from onevision.runtime.video import probe_video, read_video

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from onevision.bundle import Bundle
    from onevision.native.device import Device

_SIZE = (640, 480)
#: Tokens of the prompts that are read: the last about a photograph's. 7,000 are told from them.
_LENGTHS = (32, 256, 1024, 3072)
_TEXTS = 3


def keep_calibration(bundle: Bundle, device: Device, threads: int, on_step: Callable[[str], object]) -> None:
    """Measure a bundle, and keep what times to the first token are predicted from.

    Raises:
        ExportError: The file cannot be written.
        OneVisionError: The bundle cannot be loaded, or a native library refused the work.
    """
    with OneVision(bundle, device=device, threads=threads) as model:
        write_calibration(
            calibration_path(bundle.manifest, model.placement, threads), calibrate(model, on_step)
        )


def calibrate(model: OneVision, on_step: Callable[[str], object] = lambda _: None) -> Calibration:
    """Measure a bundle; its cache, if it has one, should be empty.

    Raises:
        GenerationError: A native library refused the work.
    """
    on_step("calibration, text")
    fixed = min(_text(model) for _ in range(_TEXTS))
    on_step("calibration, picture")
    picture, tile, embeddings = _picture(model)
    on_step("calibration, video")
    video = _video(model)
    prefill = {}
    for reader in get_args(Reader):
        model.prefiller.load(max(_LENGTHS), reader)  # a graph that cannot be used is known from now on
        if model.prefiller.reader(max(_LENGTHS), reader) == reader:
            on_step(f"calibration, prefill by {reader}")
            prefill[reader] = _prefill(model, embeddings, reader)
    return Calibration(fixed, picture, video, tile, prefill)


def _text(model: OneVision) -> float:
    """Seconds to the first token that are not the prompt's."""
    times = model.generate(QUESTION, max_tokens=1).timings
    return (times.ttft - times.prefill) / 1e3


def _picture(model: OneVision) -> tuple[float, float, npt.NDArray[np.float32]]:
    """Seconds per million pixels to read and cut, seconds per tile, and visual tokens float32 [n, H]."""
    conversation = conversation_of(QUESTION, [photograph(_SIZE)], None, None)
    clock = StageClock()
    prepared = model.preparer.prepare(conversation, AnswerOptions(), clock)
    cutting = clock.stages["read"] + clock.stages["preprocess"]
    model.vision_encoder()
    clock = StageClock()
    (embeddings,) = model.encode(prepared, clock)
    megapixels = _SIZE[0] * _SIZE[1] / 1e6
    return cutting / 1e3 / megapixels, sum(clock.stages.values()) / 1e3 / prepared.tiles, embeddings


def _video(model: OneVision) -> float | None:
    """Seconds per million pixels to decode; None without PyAV."""
    with TemporaryDirectory() as folder:
        try:
            path = write_video(Path(folder) / "clip.mp4")
        except ImportError:
            return None
        info = probe_video(path)
        started = time.perf_counter()
        read_video(path, frames=1, prepare=model.preparer.frame)
        return (time.perf_counter() - started) / (info.width * info.height * info.frames / 1e6)


def _prefill(model: OneVision, embeddings: npt.NDArray[np.float32], reader: Reader) -> Reading:
    least = LEAST if reader == "onnx" else 1
    most = model.backbone.context_length - 1
    lengths = sorted({min(length, most) for length in _LENGTHS if length >= least})
    # What is slow the first time is done then.
    model.prefiller.read([np.resize(embeddings, (lengths[0], embeddings.shape[1]))], 1, _nobody, reader)
    times = []
    for length in lengths:
        prompt = np.resize(embeddings, (length, embeddings.shape[1]))
        started = time.perf_counter()
        model.prefiller.read([prompt], 1, _nobody, reader)
        times.append(time.perf_counter() - started)
    return fit_reading(lengths, times)


def fit_reading(tokens: Sequence[int], seconds: Sequence[float]) -> Reading:
    """The curve through some times whose coefficients are not negative, with the least relative error.

    Args:
        tokens: Of prompts.
        seconds: That they took.
    """
    n, wanted = np.asarray(tokens, np.float64), np.asarray(seconds, np.float64)
    # Divided by the time, the residuals are relative ones.
    columns = np.stack([np.ones_like(n), n, n**2], axis=1) / wanted[:, None]
    best, least = np.zeros(3), np.inf
    # At the least of such a problem, some coefficients are 0 and the others are those of plain least squares.
    for kept in (subset for size in (1, 2, 3) for subset in combinations(range(3), size)):
        found, *_ = np.linalg.lstsq(columns[:, kept], np.ones_like(wanted), rcond=None)
        error = float(np.square(columns[:, kept] @ found - 1).sum())
        if (found >= 0).all() and error < least:
            best, least = np.zeros(3), error
            best[list(kept)] = found
    return Reading(*map(float, best))


def _nobody(_: int) -> None:
    """Hears of progress."""
