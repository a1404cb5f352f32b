"""Shape of a synthetic checkpoint, and its config files, with the keys that the published ones have.

In: a :class:`SynthSpec` and the ids of its special tokens. Out: JSON objects by file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from onevision.errors import UsageError
from onevision.export.config import ASPECT_RATIO, IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.synth.vocabulary import QWEN2_TOKENS, SynthVocabulary
from onevision.export.tokenizer import END_OF_TEXT, IM_END
from onevision.models.shapes import (
    MEAN,
    SO400M,
    STD,
    ModelConfig,
    Naming,
    SynthDtype,
    SynthSize,
    VisionConfig,
    published_config,
    siglip_tower,
)

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}

_TOWER_FOLDER = "vision_tower"

Json = dict[str, Any]
_SPARE_ROWS = 8  # rows of a small embedding beyond its tokenizer
#: Fields of a spec, and of the language model's and the tower's shapes.
_TEXT_FIELDS = {
    "layers": "layers", "hidden": "hidden_size", "heads": "heads", "kv_heads": "kv_heads",
    "intermediate": "intermediate_size", "vocab": "vocab_size", "tied": "tied",
}  # fmt: skip
_VISION_FIELDS = {
    "vision_layers": "layers", "vision_hidden": "hidden_size", "vision_heads": "heads",
    "vision_intermediate": "intermediate_size", "image_size": "image_size", "patch_size": "patch_size",
}  # fmt: skip


@dataclass(frozen=True)
class SynthSpec:
    """What to synthesize. The defaults are a toy with 0.5 M parameters.

    Raises:
        UsageError: Sizes that contradict each other.
    """

    layers: int = 2
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    vocab: int = 768  # rows of the embedding; from 151,648 on the vocabulary is Qwen2's
    tied: bool = True
    vision_layers: int = 2  # that run; lmms-lab's config counts one more
    vision_hidden: int = 64
    vision_heads: int = 4
    vision_intermediate: int = 128
    image_size: int = 56
    patch_size: int = 14
    aspect_ratio: str = "anyres_max_9"
    grid: int = 6  # most tiles per side
    naming: Naming = "hf"
    dtype: SynthDtype = "bf16"
    shards: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: value for name, value in vars(self).items() if type(value) is int and name != "seed"}
        rules = {
            "sizes must be positive": min(counts.values()) > 0,
            "hidden must divide by heads": self.heads > 0 and self.hidden % self.heads == 0,
            "hidden / heads must be even": self.heads > 0 and self.hidden // self.heads % 2 == 0,
            "heads must divide by kv-heads": self.kv_heads > 0 and self.heads % self.kv_heads == 0,
            "vision-hidden must divide by vision-heads": (
                self.vision_heads > 0 and self.vision_hidden % self.vision_heads == 0
            ),
            "patch-size must not exceed image-size": self.patch_size <= self.image_size,
            "aspect-ratio must be anyres or anyres_max_N": bool(ASPECT_RATIO.fullmatch(self.aspect_ratio)),
            f"vocab must be at least {256 + 5 + _SPARE_ROWS}": self.vocab >= 256 + 5 + _SPARE_ROWS,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise UsageError(f"no model has this shape: {broken[0]}")

    @classmethod
    def preset(cls, size: SynthSize, naming: Naming = "hf") -> SynthSpec:
        """The shape of a published checkpoint; use :func:`dataclasses.replace` to change parts of it."""
        config = published_config(size, "lmms-lab" if naming == "lmms-lab" else "hf")
        text = {own: getattr(config.text, field) for own, field in _TEXT_FIELDS.items()}
        vision = {own: getattr(config.vision, field) for own, field in _VISION_FIELDS.items()}
        return cls(**text, **vision, naming=naming, shards=16 if size == "7b" else 1)

    @property
    def vocabulary(self) -> SynthVocabulary:
        """Its tokenizer."""
        with_media = self.naming != "lmms-lab"
        most = self.vocab - (5 if with_media else 3)
        tokens = QWEN2_TOKENS if most >= QWEN2_TOKENS else most - _SPARE_ROWS
        return SynthVocabulary.of_size(tokens, with_media=with_media)

    @property
    def config(self) -> ModelConfig:
        """The shape as the export reads it; ids of special tokens are left at the published ones."""
        base = published_config("7b", "lmms-lab" if self.naming == "lmms-lab" else "hf")
        vision = replace(base.vision, **{field: getattr(self, own) for own, field in _VISION_FIELDS.items()})
        text = replace(base.text, **{field: getattr(self, own) for own, field in _TEXT_FIELDS.items()})
        sides = [self.image_size * count for count in range(1, self.grid + 1)]
        pairs = tuple((first, second) for first in sides for second in sides)
        return replace(base, vision=vision, text=text, aspect_ratio=self.aspect_ratio, grid_pinpoints=pairs)


def config_files(spec: SynthSpec, ids: dict[str, int]) -> dict[str, Json]:
    """All JSON files of a checkpoint except its tokenizer and index, by path in its folder.

    Args:
        spec: The checkpoint.
        ids: Ids of the special tokens by their text.
    """
    return _lmms_lab(spec, ids) if spec.naming == "lmms-lab" else _hf(spec, ids)


def _hf(spec: SynthSpec, ids: dict[str, int]) -> dict[str, Json]:
    """``llava-hf/llava-onevision-qwen2-…-hf``."""
    pinpoints = [list(pair) for pair in spec.config.grid_pinpoints]
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_grid_pinpoints": pinpoints,
        "image_token_index": ids[IMAGE_TOKEN],
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **_text(spec, ids)},
        "tie_word_embeddings": False,  # as published, even where the text section says true
        "torch_dtype": DTYPES[spec.dtype],
        "transformers_version": "4.45.0",
        "use_image_newline_parameter": True,
        "video_token_index": ids[VIDEO_TOKEN],
        "vision_aspect_ratio": spec.aspect_ratio,
        "vision_config": {**_tower(spec.config.vision, spec.vision_layers), "vision_use_head": False},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    processor = {
        "image_grid_pinpoints": pinpoints,
        "image_mean": list(MEAN),
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": list(STD),
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "size": {"height": spec.image_size, "width": spec.image_size},
    }
    generation = {"bos_token_id": ids[END_OF_TEXT], "eos_token_id": ids[IM_END]}
    return {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": processor,
    }


def _lmms_lab(spec: SynthSpec, ids: dict[str, int]) -> dict[str, Json]:
    """``lmms-lab/llava-onevision-qwen2-…``; a tower other than SO400M is described in a subfolder."""
    vision = replace(spec.config.vision, layers=spec.vision_layers + 1)  # LLaVA-NeXT drops the last
    tower, is_published = _tower(vision, vision.layers), vision == siglip_tower(SO400M)
    config = {
        "architectures": ["LlavaQwenForCausalLM"],
        "image_aspect_ratio": spec.aspect_ratio,
        "image_grid_pinpoints": [list(pair) for pair in spec.config.grid_pinpoints],
        "image_token_index": 151646,  # as published; not used
        "mm_hidden_size": spec.vision_hidden,
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": SO400M if is_published else _TOWER_FOLDER,
        "model_type": "llava",
        "torch_dtype": DTYPES[spec.dtype],
        "transformers_version": "4.40.0.dev0",
        **_text(spec, ids),
    }
    generation = {
        "bos_token_id": ids[END_OF_TEXT],
        "do_sample": True,
        "eos_token_id": [ids[IM_END], ids[END_OF_TEXT]],
        "pad_token_id": ids[END_OF_TEXT],
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }
    files = {"config.json": config, "generation_config.json": generation}
    if not is_published:
        files[f"{_TOWER_FOLDER}/config.json"] = {"model_type": "siglip", "vision_config": tower}
    return files


def _text(spec: SynthSpec, ids: dict[str, int]) -> Json:
    """Keys of Qwen2: in a section of llava-hf's config, at the top level of lmms-lab's."""
    text = spec.config.text
    return {
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[IM_END],
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.context_length,
        "max_window_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "num_key_value_heads": text.kv_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "sliding_window": text.context_length,
        "tie_word_embeddings": text.tied,
        "use_sliding_window": False,
        "vocab_size": text.vocab_size,
    }


def _tower(vision: VisionConfig, layers: int) -> Json:
    return {
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.intermediate_size,
        "model_type": "siglip_vision_model",
        "num_attention_heads": vision.heads,
        "num_hidden_layers": layers,
        "patch_size": vision.patch_size,
    }
