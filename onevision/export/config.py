"""The shape of a LLaVA-OneVision checkpoint, read from either config format.

In: ``config.json`` of a ``llava-hf/…-hf`` (``model_type: llava_onevision``) or an ``lmms-lab/…`` checkpoint
(``model_type: llava``). Out: one :class:`ModelConfig`, whichever it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onevision.errors import CheckpointError, UnsupportedCheckpointError

if TYPE_CHECKING:
    from pathlib import Path

CheckpointFormat = Literal["hf", "lmms-lab"]

IMAGE_TOKEN = "<image>"  # noqa: S105
VIDEO_TOKEN = "<video>"  # noqa: S105


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower. ``layers`` counts those that run: the output of the last one is the feature."""

    image_size: int  # S, pixels per side of a tile
    patch_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    layer_norm_eps: float

    @property
    def side(self) -> int:
        """Patches per side of a tile ("valid" convolution: pixels left over are never seen)."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """P, image features per tile."""
        return self.side**2


@dataclass(frozen=True)
class TextConfig:
    """Qwen2 backbone."""

    hidden_size: int  # H
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int  # rows of the embedding, at least as many as the tokenizer has tokens
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    tied: bool  # the head is the embedding
    bos_id: int | None
    eos_ids: tuple[int, ...]

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class ModelConfig:
    """All that the export needs to know of a checkpoint's shape."""

    format: CheckpointFormat
    vision: VisionConfig
    text: TextConfig
    aspect_ratio: str  # "anyres_max_9", "anyres", …
    grid_pinpoints: tuple[tuple[int, int], ...]  # (height, width) in pixels
    image_token_id: int | None  # None: the checkpoint's tokenizer has no such token
    video_token_id: int | None
    dtype: str | None  # as the config says; the tensors decide
