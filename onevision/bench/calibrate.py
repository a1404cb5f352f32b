"""Measurement of a bundle's speed profile, from which times to the first token are predicted.

In: a loaded bundle. Out: a :class:`~onevision.planning.speed.SpeedProfile`. Each part is measured once, on
sizes of usual prompts, after a run to warm up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import numpy.typing as npt

from onevision.bench.scenarios import QUESTION, photograph, write_video
from onevision.bundle import Bundle
from onevision.native.device import Device
from onevision.planning.speed import PrefillSpeed, SpeedProfile, profile_path, read_profile, write_profile
from onevision.runtime.container import decode_all, probe_video
from onevision.runtime.engine import OneVision
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions
from onevision.runtime.pipeline import Pipeline
from onevision.runtime.prefill.policy import LEAST, PrefillBackend

_SIZE = (640, 480)
#: Tokens of the prompts; the last is about a photograph's, and times for 7,000 are extrapolated.
_LENGTHS = (32, 256, 1024, 3072)
#: The same in a hurry.
_FEW_LENGTHS = (32, 256, 1024)
_TEXTS = 3
#: Maximum size of a bundle that is measured unasked: that takes a second or two.
_SMALL_BYTES = 200_000_000


def keep_profile(bundle: Bundle, device: Device, threads: int, on_step: Callable[[str], object]) -> None:
    """Measure the speed profile of a bundle, and write it to the cache.

    Raises:
        ExportError: The file cannot be written.
        OneVisionError: The bundle cannot be loaded, or a native library refused the work.
    """
    with OneVision(bundle, device=device, threads=threads) as model:
        write_profile(profile_path(bundle, device, threads), measure_profile(model, on_step))


def small_profile(bundle: Bundle, device: Device, threads: int | None) -> SpeedProfile | None:
    """The kept speed profile of a bundle, or one of a small bundle that is measured now, in a hurry.

    Returns:
        None for a large bundle that was not measured.

    Raises:
        OneVisionError: As for :func:`keep_profile`.
    """
    kept = read_profile(profile_path(bundle, device, threads))
    if kept or bundle.bytes > _SMALL_BYTES:
        return kept
    with OneVision(bundle, device=device, threads=threads) as model:
        return measure_profile(model, lengths=_FEW_LENGTHS)


def measure_profile(
    model: OneVision, on_step: Callable[[str], object] = lambda _: None, lengths: Sequence[int] = _LENGTHS
) -> SpeedProfile:
    """Measure the speed profile of a bundle; its cache, if it has one, should be empty.

    Args:
        model: The loaded bundle.
        on_step: Called with the name of each part.
        lengths: Tokens of the prompts.

    Raises:
        GenerationError: A native library refused the work.
    """
    pipeline = model.pipeline
    on_step("speed profile, text")
    fixed = min(_text(model) for _ in range(_TEXTS))
    on_step("speed profile, image")
    image, tile, embeddings = _image(pipeline)
    on_step("speed profile, video")
    video = _video(pipeline)
    prefill, runner = {}, pipeline.prefill_runner
    for backend in get_args(PrefillBackend):
        runner.load(max(lengths), backend)  # a graph that cannot be used is known from now on
        if runner.backend(max(lengths), backend) == backend:
            on_step(f"speed profile, prefill by {backend}")
            prefill[backend] = _prefill(pipeline, embeddings, backend, lengths)
    return SpeedProfile(fixed, image, video, tile, prefill)


def _text(model: OneVision) -> float:
    """Seconds to the first token besides prefill."""
    times = model.generate(QUESTION, max_tokens=1).timings
    return (times.ttft - times.prefill) / 1e3


def _image(pipeline: Pipeline) -> tuple[float, float, npt.NDArray[np.float32]]:
    """Seconds per million pixels to read and tile, seconds per tile, and visual tokens float32 [n, H]."""
    pipeline.vision_encoder()
    prepared = pipeline.prepare(conversation_of(QUESTION, [photograph(_SIZE)], None, None), AnswerOptions())
    tiling = sum(pipeline.clock.stages.values()) - pipeline.clock.stages["tokenize"]
    before = sum(pipeline.clock.stages.values())
    (embeddings,) = pipeline.encode(prepared)
    encoding = sum(pipeline.clock.stages.values()) - before
    return tiling / 1e3 / (_SIZE[0] * _SIZE[1] / 1e6), encoding / 1e3 / prepared.tiles, embeddings


def _video(pipeline: Pipeline) -> float | None:
    """Seconds per million pixels to decode; None without PyAV."""
    with TemporaryDirectory() as folder:
        try:
            path = write_video(Path(folder) / "clip.mp4")
        except ImportError:
            return None
        started = time.perf_counter()
        probe = probe_video(path)
        decode_all(path, (0,), pipeline.preparer.frame, "AUTO")
        return (time.perf_counter() - started) / (probe.width * probe.height * probe.frames / 1e6)


def _prefill(
    pipeline: Pipeline, embeddings: npt.NDArray[np.float32], backend: PrefillBackend, wanted: Sequence[int]
) -> PrefillSpeed:
    least = LEAST if backend == "onnx" else 1
    most = pipeline.backbone.context_length - 1
    lengths = sorted({min(length, most) for length in wanted if length >= least})

    def seconds(length: int) -> float:
        prompt = np.resize(embeddings, (length, embeddings.shape[1]))
        started = time.perf_counter()
        pipeline.prefill_runner.run([prompt], 1, choice=backend)
        return time.perf_counter() - started

    seconds(lengths[0])  # to warm up
    return PrefillSpeed.fit(lengths, list(map(seconds, lengths)))
