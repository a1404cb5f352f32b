"""What a checkpoint's config says of its bundle: the parts of a manifest that depend on nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.bundle import BackboneInfo, VideoInfo, VisionInfo
from onevision.export.config import MEAN, STD
from onevision.graphs.qwen2 import QwenShape

if TYPE_CHECKING:
    from onevision.export.config import ModelConfig, TextConfig


def vision_info(config: ModelConfig) -> VisionInfo:
    """The encoder, and how pictures are cut for it."""
    vision = config.vision
    return VisionInfo(
        vision.image_size,
        vision.patch_size,
        vision.hidden_size,
        vision.intermediate_size,
        vision.layers,
        config.grid_pinpoints,
        config.aspect_ratio,
        MEAN,
        STD,
    )


def backbone_info(config: ModelConfig, bits_per_weight: float) -> BackboneInfo:
    """The language model in a type of so many bits per weight."""
    text = config.text
    return BackboneInfo(
        text.hidden_size,
        text.intermediate_size,
        text.layers,
        text.heads,
        text.kv_heads,
        text.context_length,
        text.vocab_size,
        text.eos_ids,
        bits_per_weight,
    )


def qwen_shape(text: TextConfig) -> QwenShape:
    """The backbone as the writer of the prefill graph takes it."""
    return QwenShape(
        text.hidden_size,
        text.intermediate_size,
        text.layers,
        text.heads,
        text.kv_heads,
        text.context_length,
        text.rope_theta,
        text.rms_norm_eps,
    )


def video_info(config: ModelConfig) -> VideoInfo:
    """Frames by default, and features per side of a frame: half of the patches, rounded up."""
    return VideoInfo(config.frames, -(-config.vision.side // 2))
