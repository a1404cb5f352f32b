"""The config files of a synthetic checkpoint, key by key as the published ones have them.

In: a :class:`~onevision.export.synth.SynthSpec` and the ids of its special tokens. Out: JSON objects by file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onevision.export.config import IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.tokenizer import END_OF_TEXT, IM_END
from onevision.models.shapes import SIGLIP_TOWERS

if TYPE_CHECKING:
    from onevision.export.synth import SynthSpec

CONTEXT_LENGTH = 32768
TORCH_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}

_SO400M = "google/siglip-so400m-patch14-384"
_TOWER_FOLDER = "vision_tower"

Json = dict[str, Any]


def config_files(spec: SynthSpec, ids: dict[str, int]) -> dict[str, Json]:
    """All of a checkpoint's JSON files but the tokenizer's and the index, by path in its folder.

    Args:
        spec: The checkpoint.
        ids: Ids of the special tokens by their text.
    """
    return _lmms_lab(spec, ids) if spec.naming == "lmms-lab" else _hf(spec, ids)


def _hf(spec: SynthSpec, ids: dict[str, int]) -> dict[str, Json]:
    """``llava-hf/llava-onevision-qwen2-…-hf``."""
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": _pinpoints(spec),
        "image_token_index": ids[IMAGE_TOKEN],
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **_text(spec, ids),
        },
        "tie_word_embeddings": False,  # as published, also where the text section says true
        "torch_dtype": TORCH_DTYPES[spec.dtype],
        "transformers_version": "4.45.0",
        "use_image_newline_parameter": True,
        "video_token_index": ids[VIDEO_TOKEN],
        "vision_aspect_ratio": spec.aspect_ratio,
        "vision_config": {**_tower(spec, spec.vision_layers), "vision_use_head": False},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    processor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": _pinpoints(spec),
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": spec.image_size, "width": spec.image_size},
    }
    generation = {"bos_token_id": ids[END_OF_TEXT], "eos_token_id": ids[IM_END]}
    return {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": processor,
    }


def _lmms_lab(spec: SynthSpec, ids: dict[str, int]) -> dict[str, Json]:
    """``lmms-lab/llava-onevision-qwen2-…``; a tower other than SO400M is described in a sub-folder."""
    tower = _tower(spec, spec.vision_layers + 1)  # LLaVA-NeXT drops the last
    published = tower == _published_tower()
    config = {
        "architectures": ["LlavaQwenForCausalLM"],
        "image_aspect_ratio": spec.aspect_ratio,
        "image_crop_resolution": None,
        "image_grid_pinpoints": _pinpoints(spec),
        "image_split_resolution": None,
        "image_token_index": 151646,  # as published, and nowhere used
        "mm_hidden_size": spec.vision_hidden,
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": _SO400M if published else _TOWER_FOLDER,
        "model_type": "llava",
        "tokenizer_model_max_length": CONTEXT_LENGTH,
        "tokenizer_padding_side": "right",
        "torch_dtype": TORCH_DTYPES[spec.dtype],
        "transformers_version": "4.40.0.dev0",
        "use_mm_proj": True,
        "use_pos_skipping": False,
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
    if not published:
        files[f"{_TOWER_FOLDER}/config.json"] = {"model_type": "siglip", "vision_config": tower}
    return files


def _text(spec: SynthSpec, ids: dict[str, int]) -> Json:
    """Qwen2's keys: a section of their own in llava-hf's files, at the top level in lmms-lab's."""
    return {
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[IM_END],
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "max_position_embeddings": CONTEXT_LENGTH,
        "max_window_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": CONTEXT_LENGTH,
        "tie_word_embeddings": spec.tied,
        "use_sliding_window": False,
        "vocab_size": spec.vocab,
    }


def _tower(spec: SynthSpec, layers: int) -> Json:
    return {
        "hidden_size": spec.vision_hidden,
        "image_size": spec.image_size,
        "intermediate_size": spec.vision_intermediate,
        "model_type": "siglip_vision_model",
        "num_attention_heads": spec.vision_heads,
        "num_hidden_layers": layers,
        "patch_size": spec.patch_size,
    }


def _published_tower() -> Json:
    so400m = SIGLIP_TOWERS[_SO400M]
    return {
        "hidden_size": so400m.hidden_size,
        "image_size": so400m.image_size,
        "intermediate_size": so400m.intermediate_size,
        "model_type": "siglip_vision_model",
        "num_attention_heads": so400m.heads,
        "num_hidden_layers": so400m.layers,
        "patch_size": so400m.patch_size,
    }


def _pinpoints(spec: SynthSpec) -> list[list[int]]:
    """All grids up to ``grid`` tiles a side, in pixels, in the published order."""
    sides = [spec.image_size * count for count in range(1, spec.grid + 1)]
    return [[first, second] for first in sides for second in sides]
