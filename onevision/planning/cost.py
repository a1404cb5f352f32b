"""Cost of a prompt, before anything is run.

In: the shape of a model, and the sizes of images and videos. Out: tiles, tokens, floating-point operations,
memory, and rough times. Counts of tiles and visual tokens are exact: a run makes the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from onevision.bundle import BACKBONE, BackboneInfo, Manifest, VideoInfo, VisionInfo
from onevision.models.shapes import ModelConfig, backbone_info, video_info, vision_info
from onevision.runtime.anyres import AnyRes, choose_tiling
from onevision.runtime.container import VideoProbe
from onevision.runtime.options import AnswerOptions
from onevision.runtime.prompt import time_instruction
from onevision.runtime.video import FrameChoice, choose_frames

#: Bytes of a key or a value in llama.cpp's cache (f16), unless the backbone is f32.
KV_BYTES = 2
#: The reference's budget.
REFERENCE = AnswerOptions()


@dataclass(frozen=True)
class Shape:
    """Those facts about a model that its cost depends on."""

    vision: VisionInfo
    backbone: BackboneInfo
    video: VideoInfo
    kv_bytes: int = KV_BYTES

    @classmethod
    def of(cls, manifest: Manifest) -> Shape:
        """Shape of a bundle. One in full precision has its keys and values in f32, too."""
        exact = manifest.files[BACKBONE].precision == "f32"
        kv_bytes = 2 * KV_BYTES if exact else KV_BYTES
        return cls(manifest.vision, manifest.backbone, manifest.video, kv_bytes)

    @classmethod
    def of_config(cls, config: ModelConfig) -> Shape:
        """Shape of a checkpoint, before it is exported."""
        return cls(vision_info(config), backbone_info(config, bits_per_weight=16.0), video_info(config))

    @property
    def anyres(self) -> AnyRes:
        """Tiling of images."""
        return AnyRes.of(self.vision)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the keys and values of one position, all layers."""
        backbone = self.backbone
        width = backbone.kv_heads * (backbone.hidden // backbone.heads)
        return 2 * backbone.layers * width * self.kv_bytes

    def encode_flops(self, tiles: int) -> int:
        """Operations of encoder and projector: two per multiplication, matmuls only."""
        vision, hidden = self.vision, self.vision.hidden
        patches = (vision.image_size // vision.patch_size) ** 2
        projections = 4 * hidden**2 + 2 * hidden * vision.intermediate
        layer = patches * projections + 2 * patches**2 * hidden
        embed = patches * 3 * vision.patch_size**2 * hidden
        project = patches * (hidden * self.backbone.hidden + self.backbone.hidden**2)
        return 2 * tiles * (vision.layers * layer + embed + project)

    @property
    def layer_weights(self) -> int:
        """Weights of a layer of the backbone: matrices only."""
        backbone, hidden = self.backbone, self.backbone.hidden
        kv_width = backbone.kv_heads * (hidden // backbone.heads)
        return 2 * hidden**2 + 2 * hidden * kv_width + 3 * hidden * backbone.intermediate

    @property
    def backbone_weights(self) -> int:
        """Weights that a token is multiplied with: layers and head."""
        backbone = self.backbone
        return backbone.layers * self.layer_weights + backbone.hidden * backbone.vocab_size

    def prefill_flops(self, tokens: int) -> int:
        """Operations of a prefill: causal attention, and the head for the last position only."""
        backbone, hidden = self.backbone, self.backbone.hidden
        layer = tokens * self.layer_weights + tokens * (tokens + 1) * hidden
        return 2 * (backbone.layers * layer + hidden * backbone.vocab_size)

    def decode_flops(self, past: int) -> int:
        """Operations for one token after ``past`` others."""
        backbone = self.backbone
        return 2 * (self.backbone_weights + backbone.layers * 2 * (past + 1) * backbone.hidden)


@dataclass(frozen=True)
class Media:
    """An image or video of known size, in pixels. ``frames`` are those in the file; None for an image.

    ``probe`` is that of a video file.
    """

    path: str
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int | None = None
    probe: VideoProbe | None = None

    def megapixels(self, taken: Sequence[int] = ()) -> float:
        """Millions of pixels, of all frames that are decoded for those that are taken."""
        decoded = self.probe.work(taken) if self.probe else self.frames or 1
        return self.width * self.height * decoded / 1e6


@dataclass(frozen=True)
class MediaCost:
    """Cost of an image or video. ``grid`` is (rows, columns) of tiles besides the base view."""

    path: str
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int | None  # that are taken
    grid: tuple[int, int] | None
    tiles: int
    image_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """One of ``inputs`` in the object that ``onevision plan --json`` prints."""
        data = asdict(self)
        usage = {name: data.pop(name) for name in ("image_tokens", "tiles")}
        return data | {"usage": usage}


@dataclass(frozen=True)
class PromptCost:
    """Cost of a prompt.

    Attributes:
        inputs: By image or video.
        tiles: Of all of them.
        image_tokens: Visual tokens of all of them.
        prompt_tokens: With the text.
        context_length: Most tokens of a prompt and its answer.
        kv_bytes: Size of the KV cache.
        flops: Operations of ``encode`` and ``prefill``.
        seconds: Of the same; None where no rate is known.
        reused_frames: Tiles among all that are not encoded.
    """

    inputs: tuple[MediaCost, ...]
    tiles: int
    image_tokens: int
    prompt_tokens: int
    context_length: int
    kv_bytes: int
    flops: dict[str, int]
    seconds: dict[str, float] | None
    reused_frames: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Part of the object that ``onevision plan --json`` prints, with the names of ``run --json``."""
        usage = ("prompt_tokens", "image_tokens", "tiles", "reused_frames")
        times = self.seconds and {stage: round(value * 1e3, 3) for stage, value in self.seconds.items()}
        return {
            "inputs": [item.to_dict() for item in self.inputs],
            "usage": {name: getattr(self, name) for name in usage},
            "context_length": self.context_length,
            "kv_bytes": self.kv_bytes,
            "flops": self.flops,
            "timings_ms": times,
        }


def prompt_cost(
    shape: Shape,
    media: Sequence[Media],
    *,
    text_tokens: int,
    options: AnswerOptions = REFERENCE,
    reused_frames: int = 0,
) -> PromptCost:
    """Cost of one prompt.

    Args:
        shape: Of the model.
        media: Images and videos of the prompt.
        text_tokens: Tokens of the rest.
        options: Budget of images and videos.
        reused_frames: Video frames that share the features of others.
    """
    several = sum(item.kind == "image" for item in media) > 1
    inputs = tuple(_media_cost(shape, item, several, options) for item in media)
    tiles = sum(item.tiles for item in inputs)
    image_tokens = sum(item.image_tokens for item in inputs)
    tokens = image_tokens + text_tokens + sum(_times_tokens(shape, item, options) for item in media)
    flops = {"encode": shape.encode_flops(tiles - reused_frames), "prefill": shape.prefill_flops(tokens)}
    return PromptCost(
        inputs=inputs,
        tiles=tiles,
        image_tokens=image_tokens,
        prompt_tokens=tokens,
        context_length=shape.backbone.context_length,
        kv_bytes=tokens * shape.kv_bytes_per_token,
        flops=flops,
        seconds=None,
        reused_frames=reused_frames,
    )


def _media_cost(shape: Shape, item: Media, several: bool, options: AnswerOptions) -> MediaCost:
    grid, frames = None, item.frames
    if item.kind == "video":
        tiles = frames = len(frames_taken(shape, item, options))
        tokens = shape.video.tokens(tiles)
    else:
        tiling = choose_tiling(shape.anyres, (item.height, item.width), options, several=several)
        grid, tiles, tokens = tiling.grid, tiling.tiles, tiling.tokens
    return MediaCost(item.path, item.kind, item.width, item.height, frames, grid, tiles, tokens)


def frames_taken(shape: Shape, item: Media, options: AnswerOptions) -> tuple[int, ...]:
    """Numbers of the frames that are taken from a video.

    Raises:
        VideoError: Options name times that the video does not have.
    """
    times = item.probe.times if item.probe else None
    choice = FrameChoice.of(options, shape.video.frames)
    return choose_frames(item.frames or 1, times, choice, item.path or "the video")[0]


def _times_tokens(shape: Shape, item: Media, options: AnswerOptions) -> int:
    """Tokens of the text about a video's frames, as Qwen2 splits it: words, digits, signs."""
    if not shape.video.time_instruction or not item.probe or not item.probe.fps:
        return 0
    taken = frames_taken(shape, item, options)
    text = f"\n{time_instruction(taken, item.probe.frames, item.probe.fps)}"
    return len(re.findall(r"[ .]?[^\W\d]+|.", text, re.DOTALL))
