"""How fast a loaded bundle is, in two figures: a tile through the encoder, and a token of an answer.

For choosing between precisions of one model on one machine. Each figure is the fastest of several runs:
what else the machine does can only add to it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from onevision.runtime import anyres

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.runtime.engine import OneVision

CONTEXT = 256  # tokens that are read before those that are timed
TOKENS = 32  # that are timed
TILES = 5  # that are timed


def milliseconds_per_tile(model: OneVision) -> float:
    """The fastest of :data:`TILES` tiles, after one that warms up."""
    vision, encoder = model.bundle.manifest.vision, model.vision_encoder()
    side = vision.image_size
    noise = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    pixels = anyres.normalize(noise, vision.mean, vision.std)
    encoder.encode(pixels)
    return min(_milliseconds(lambda: encoder.encode(pixels)) for _ in range(TILES))


def milliseconds_per_token(model: OneVision) -> float:
    """The fastest of :data:`TOKENS` tokens behind a context of :data:`CONTEXT`, sampling left out."""
    backbone = model.backbone
    context = min(CONTEXT, backbone.context_length - TOKENS)
    (token, *_) = backbone.vocabulary.encode("a")
    backbone.start(context + TOKENS)
    backbone.prefill([[token] * context])
    return min(_milliseconds(lambda: backbone.append(token)) for _ in range(TOKENS))


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
