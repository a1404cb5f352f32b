"""What a prompt will cost, before anything is run.

In: the shape of a model, and sizes of pictures and videos. Out: tiles, tokens, floating-point operations,
memory, and a rough time. Counts are exact; they are the ones that a run then makes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onevision.bundle import BACKBONE, BackboneInfo, VideoInfo, VisionInfo
from onevision.models.shapes import PublishedSize, backbone_info, published_config, video_info, vision_info
from onevision.runtime.anyres import AnyRes, choose_tiling
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.bundle import Manifest

#: Bytes of a key or a value in llama.cpp's cache (f16), unless the backbone is f32.
KV_BYTES = 2
#: Share of the rate of one large NumPy product that the stages reach; seen on AVX2 and AVX-512 machines.
EFFICIENCY = 0.8
#: What the reference spends.
REFERENCE = AnswerOptions()


@dataclass(frozen=True)
class Shape:
    """What a model costs depends on."""

    vision: VisionInfo
    backbone: BackboneInfo
    video: VideoInfo
    kv_bytes: int = KV_BYTES

    @classmethod
    def of(cls, manifest: Manifest) -> Shape:
        """Shape of a bundle. One in full precision keeps its keys and values so too."""
        exact = manifest.files[BACKBONE].precision == "f32"
        kv_bytes = 2 * KV_BYTES if exact else KV_BYTES
        return cls(manifest.vision, manifest.backbone, manifest.video, kv_bytes)

    @property
    def anyres(self) -> AnyRes:
        """How pictures are cut."""
        return AnyRes.of(self.vision)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one position, all layers."""
        backbone = self.backbone
        width = backbone.kv_heads * (backbone.hidden // backbone.heads)
        return 2 * backbone.layers * width * self.kv_bytes

    def encode_flops(self, tiles: int) -> int:
        """Encoder and projector: two operations per multiplication, matrix products only."""
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
        """Backbone over a prompt: causal attention, and the head for the last position only."""
        backbone, hidden = self.backbone, self.backbone.hidden
        layer = tokens * self.layer_weights + tokens * (tokens + 1) * hidden
        return 2 * (backbone.layers * layer + hidden * backbone.vocab_size)

    def decode_flops(self, past: int) -> int:
        """Backbone for one token after ``past`` others."""
        backbone = self.backbone
        return 2 * (self.backbone_weights + backbone.layers * 2 * (past + 1) * backbone.hidden)


@dataclass(frozen=True)
class Input:
    """A picture or video of known size. ``frames`` are those in the file; None for a picture."""

    path: str
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int | None = None


@dataclass(frozen=True)
class PlannedInput:
    """What an input becomes. ``grid`` is (rows, columns) of tiles besides the base view."""

    path: str
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int | None
    grid: tuple[int, int] | None
    tiles: int
    image_tokens: int


@dataclass(frozen=True)
class Plan:
    """Costs of a prompt.

    ``seconds`` is None where no rate was given. Of the tiles, ``reused_frames`` are not encoded.
    """

    inputs: tuple[PlannedInput, ...]
    tiles: int
    image_tokens: int
    prompt_tokens: int
    context_length: int
    kv_bytes: int
    flops: dict[str, int]
    seconds: dict[str, float] | None
    reused_frames: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision plan --json`` prints."""
        return asdict(self)


def plan(
    shape: Shape,
    inputs: Sequence[Input],
    *,
    text_tokens: int,
    budget: AnswerOptions = REFERENCE,
    flops_per_second: float | None = None,
    reused_frames: int = 0,
) -> Plan:
    """Cost of one prompt.

    Args:
        shape: Of the model.
        inputs: Pictures and videos of the prompt.
        text_tokens: Tokens of the prompt besides them.
        budget: What may be spent on pictures and videos.
        flops_per_second: Rate to predict times with.
        reused_frames: Frames of videos that take the features of others.
    """
    pictures = sum(item.kind == "image" for item in inputs)
    planned = tuple(_planned(shape, item, pictures > 1, budget) for item in inputs)
    tiles = sum(item.tiles for item in planned)
    image_tokens = sum(item.image_tokens for item in planned)
    tokens = image_tokens + text_tokens
    flops = {"encode": shape.encode_flops(tiles - reused_frames), "prefill": shape.prefill_flops(tokens)}
    seconds = None
    if flops_per_second:
        seconds = {stage: count / flops_per_second for stage, count in flops.items()}
    return Plan(
        inputs=planned,
        tiles=tiles,
        image_tokens=image_tokens,
        prompt_tokens=tokens,
        context_length=shape.backbone.context_length,
        kv_bytes=tokens * shape.kv_bytes_per_token,
        flops=flops,
        seconds=seconds,
        reused_frames=reused_frames,
    )


def _planned(shape: Shape, item: Input, several: bool, budget: AnswerOptions) -> PlannedInput:
    grid, used = None, item.frames
    if item.kind == "video":
        used = min(budget.frames or shape.video.frames, item.frames or 1)
        tiles, tokens = used, used * shape.video.pooled_side**2 + 1
    else:
        chosen = choose_tiling(shape.anyres, (item.height, item.width), budget, several=several)
        grid, tiles, tokens = chosen.grid, chosen.tiles, chosen.tokens
    return PlannedInput(item.path, item.kind, item.width, item.height, used, grid, tiles, tokens)


def machine_rate() -> float:
    """Floating-point operations a second that a stage can be expected to reach here: one product, timed."""
    side = 1024
    matrix = np.ones((side, side), np.float32)
    matrix @ matrix  # the first product starts the threads
    repeats, started = 0, time.perf_counter()
    while repeats < 4 or time.perf_counter() - started < 0.2:
        matrix @ matrix
        repeats += 1
    return EFFICIENCY * repeats * 2 * side**3 / (time.perf_counter() - started)


def published(size: PublishedSize) -> Shape:
    """Shape of a published model, for planning before anything is downloaded."""
    config = published_config(size)
    return Shape(vision_info(config), backbone_info(config, bits_per_weight=16.0), video_info(config))
