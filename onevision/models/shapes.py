"""Shapes of LLaVA-OneVision models: what a checkpoint's config says, and the published models.

:class:`ModelConfig` describes a checkpoint, whatever its file format. The ``…_info`` functions turn it into
the parts of a bundle's manifest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast

from onevision.bundle import BackboneInfo, NewlinePosition, Pooling, VideoInfo, VisionInfo, pooled_side

CheckpointFormat = Literal["hf", "lmms-lab"]
PublishedSize = Literal["0.5b", "7b", "72b"]
Variant = Literal["ov", "si", "chat", "video"]
#: Names of the tensors in a checkpoint; hf-4.52 and hf-5 are those of later transformers.
Naming = Literal["hf", "hf-4.52", "hf-5", "lmms-lab"]
SynthSize = Literal["0.5b", "7b"]  # of synthetic checkpoints
SynthDtype = Literal["bf16", "f16", "f32"]

#: Default number of video frames (lmms-eval ``max_frames_num``, and training ``frames_upbound``).
DEFAULT_FRAMES = 32
#: That of LLaVA-Video, whose model cards say "at most 64 frames".
LLAVA_VIDEO_FRAMES = 64
#: Pixels are scaled to [-1, 1] (reference: ``siglip_encoder.py``).
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower. ``layers`` counts those that run; the output of the last one is the feature."""

    image_size: int  # S, pixels per side of a tile
    patch_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    layer_norm_eps: float

    @property
    def side(self) -> int:
        """Patches per side of a tile; a "valid" convolution ignores the pixels left over."""
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
    """Shape of a checkpoint and its defaults."""

    format: CheckpointFormat
    vision: VisionConfig
    text: TextConfig
    aspect_ratio: str  # "anyres_max_9", "anyres", …
    grid_pinpoints: tuple[tuple[int, int], ...]  # (height, width) in pixels
    image_token_id: int | None  # None: the checkpoint's tokenizer has no such token
    video_token_id: int | None
    dtype: str | None  # from the config; the tensors decide
    frames: int = DEFAULT_FRAMES  # sampled from a video by default
    newline: NewlinePosition = "one_token"  # in a video
    pooling: Pooling = "bilinear"  # of a video's frames
    time_instruction: bool = False  # about a video's frames, in the prompt


def vision_info(config: ModelConfig) -> VisionInfo:
    """The encoder's shape and the AnyRes grids."""
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
    """The language model's shape."""
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


def video_info(config: ModelConfig) -> VideoInfo:
    """Default frames, and how they become tokens."""
    side = pooled_side(config.vision.side, config.pooling)
    return VideoInfo(config.frames, side, config.newline, config.pooling, config.time_instruction)


SO400M = "google/siglip-so400m-patch14-384"
#: Hidden size, intermediate size, layers and heads of SigLIP and SigLIP 2.
_TOWERS = {"base": (768, 3072, 12, 12), "large": (1024, 4096, 24, 16), "so400m": (1152, 4304, 27, 16)}
#: Last part of a published name; ``--`` stands before it in the Hub's cache.
_TOWER_NAME = re.compile(r"(?:.*--)?siglip2?-(base|large|so400m)-patch(14|16)-(224|256|384|512)")


def siglip_tower(name: str) -> VisionConfig | None:
    """A tower with all its layers, of which LLaVA-OneVision runs all but the last; None for an unknown name.

    Args:
        name: A published name or a trainer's path to a copy: the last part that is a name decides.
    """
    found = [match for part in re.split(r"[\\/]", name) if (match := _TOWER_NAME.fullmatch(part))]
    if not found:
        return None
    hidden, intermediate, layers, heads = _TOWERS[found[-1][1]]
    patch_size, image_size = int(found[-1][2]), int(found[-1][3])
    return VisionConfig(image_size, patch_size, hidden, intermediate, layers, heads, layer_norm_eps=1e-6)


#: Hidden size, intermediate size, layers, heads, KV heads, rows of the embedding.
_BACKBONES: dict[PublishedSize, tuple[int, int, int, int, int, int]] = {
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "7b": (3584, 18944, 28, 28, 4, 152064),
    "72b": (8192, 29568, 80, 64, 8, 152064),
}


def published_config(
    size: PublishedSize, form: CheckpointFormat = "hf", variant: Variant = "ov"
) -> ModelConfig:
    """Shape of a published model.

    Args:
        size: Size of its backbone.
        form: ``hf``, whose embedding has 64 rows more and whose tokenizer has ``<image>`` and ``<video>``, or
            ``lmms-lab``.
        variant: ``video`` is LLaVA-Video; the others have one shape.
    """
    tower, is_hf, is_video = cast("VisionConfig", siglip_tower(SO400M)), form == "hf", variant == "video"
    hidden, intermediate, layers, heads, kv_heads, rows = _BACKBONES[size]
    sides = [tower.image_size * count for count in range(1, 7)]
    return ModelConfig(
        format=form,
        vision=replace(tower, layers=tower.layers - 1),
        text=TextConfig(
            hidden_size=hidden,
            intermediate_size=intermediate,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            vocab_size=rows + 64 * is_hf,
            context_length=32768,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            tied=size == "0.5b",
            bos_id=151643,
            eos_ids=(151645,),
        ),
        aspect_ratio="anyres_max_9",
        grid_pinpoints=tuple((height, width) for height in sides for width in sides),
        image_token_id=151646 if is_hf else None,
        video_token_id=151647 if is_hf else None,
        dtype="float16" if is_hf else "bfloat16",
        frames=LLAVA_VIDEO_FRAMES if is_video else DEFAULT_FRAMES,
        newline="grid" if is_video else "one_token",
        time_instruction=is_video,
    )


def repositories(size: PublishedSize, variant: Variant) -> tuple[str, ...]:
    """Hub ids of a published model, llava-hf's first; none if there is no such model.

    ``chat`` is tuned for conversations, ``video`` is LLaVA-Video, which llava-hf has not.
    """
    if size == "0.5b" and variant in ("chat", "video"):
        return ()
    if variant == "video":
        return (f"lmms-lab/LLaVA-Video-{size.upper()}-Qwen2",)
    name = f"llava-onevision-qwen2-{size}-{'ov-chat' if variant == 'chat' else variant}"
    suffix = "-sft" if (size, variant) == ("72b", "ov") else ""
    return f"llava-hf/{name}-hf", f"lmms-lab/{name}{suffix}"
