"""Both config formats, their defaults against transformers' own, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from onevision.bundle import VideoInfo
from onevision.errors import CheckpointError, UnsupportedCheckpointError, UsageError
from onevision.export.config import read_config
from onevision.models.shapes import published_config, video_info
from tests.export.conftest import edit_json, tiny_config

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.models.shapes import ModelConfig

GRID = [384, 768, 1152, 1536, 1920, 2304]

HF_05B: dict[str, Any] = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "image_grid_pinpoints": [[height, width] for height in GRID for width in GRID],
    "image_token_index": 151646,
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "Qwen/Qwen2-0.5B-Instruct",
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 152000,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_image_newline_parameter": True,
    "video_token_index": 151647,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "patch_size": 14,
        "vision_use_head": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}

LMMS_7B: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "image_aspect_ratio": "anyres_max_9",
    "image_crop_resolution": None,
    "image_grid_pinpoints": [[width, height] for width in GRID for height in GRID],
    "image_token_index": 151646,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "mm_hidden_size": 1152,
    "mm_newline_position": "one_token",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "model_type": "llava",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def read(folder: Path, values: object, generation: object = None) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return read_config(folder)


def changed(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with the key at ``path`` (dots between sections) set, or left out for ``...``."""
    values: dict[str, Any] = json.loads(json.dumps(base))
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[key] = value
    if value is ...:
        del section[key]
    return values


def test_published_hf_05b(tmp_path: Path) -> None:
    config = read(tmp_path, HF_05B, {"bos_token_id": 151643, "eos_token_id": 151645})
    assert (config.format, config.aspect_ratio, config.dtype) == ("hf", "anyres_max_9", "float16")
    vision, text = config.vision, config.text
    assert (vision.layers, vision.heads, vision.hidden_size, vision.patches) == (26, 16, 1152, 729)
    assert (text.layers, text.heads, text.kv_heads, text.head_dim) == (24, 14, 2, 64)
    assert (text.hidden_size, text.intermediate_size, text.vocab_size) == (896, 4864, 152000)
    assert (text.context_length, text.rope_theta, text.rms_norm_eps) == (32768, 1e6, 1e-6)
    assert text.tied, "the text section has the flag, the top level of the 0.5b says false"
    assert (text.bos_id, text.eos_ids) == (151643, (151645,))
    assert (config.image_token_id, config.video_token_id) == (151646, 151647)
    assert len(config.grid_pinpoints) == 36


def test_published_lmms_lab_7b(tmp_path: Path) -> None:
    config = read(tmp_path, LMMS_7B)
    assert config.format == "lmms-lab"
    assert config.vision.layers == 26, "one less than the tower has"
    assert (config.vision.patches, config.vision.intermediate_size) == (729, 4304)
    assert not config.text.tied
    assert (config.text.vocab_size, config.text.eos_ids) == (152064, (151645,))
    assert (config.image_token_id, config.video_token_id) == (None, None)
    assert config.grid_pinpoints[:2] == ((384, 384), (768, 384)), "(w, h) in the file, (h, w) here"
    assert read(tmp_path, changed(LMMS_7B, "model_type", "llava_qwen")) == config


def test_llava_video_7b(tmp_path: Path) -> None:
    """Its own keys, as LLaVA-NeXT's ``train.py`` writes them."""
    own = {"mm_newline_position": "grid", "mm_spatial_pool_stride": 2, "add_faster_video": False}
    own |= {"add_time_instruction": True, "force_sample": True, "faster_token_stride": 10}
    config = read(tmp_path, LMMS_7B | own)
    assert video_info(config) == VideoInfo(64, 14, "grid", "bilinear", time_instruction=True)
    assert video_info(config) == video_info(published_config("7b", "lmms-lab", "video"))
    ov = replace(config, frames=32, newline="one_token", time_instruction=False)
    assert ov == read(tmp_path, LMMS_7B), "all else is LLaVA-OneVision"


@pytest.mark.parametrize(("mode", "side"), [("bilinear", 14), ("average", 13), ("max", 13)])
@pytest.mark.parametrize("position", ["grid", "frame", "no_token", "one_token"])
def test_video_of_lmms_lab(mode: str, side: int, position: str, tmp_path: Path) -> None:
    config = read(tmp_path, LMMS_7B | {"mm_newline_position": position, "mm_spatial_pool_mode": mode})
    assert video_info(config) == VideoInfo(32, side, position, mode)  # type: ignore[arg-type]


def transformers_configs() -> dict[str, Any]:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    return {
        "all defaults": LlavaOnevisionConfig(),
        "default sections": LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(), text_config=Qwen2Config(), image_grid_pinpoints=[[224, 448]]
        ),
        "kv heads as heads": LlavaOnevisionConfig(text_config={"num_key_value_heads": None}),
        "tiny": tiny_config(tied=True),
        "tiny untied": tiny_config(tied=False),
    }


@pytest.mark.parametrize(
    "name", ["all defaults", "default sections", "kv heads as heads", "tiny", "tiny untied"]
)
@pytest.mark.parametrize("short", [True, False], ids=["defaults left out", "all keys"])
def test_agrees_with_transformers(name: str, short: bool, tmp_path: Path) -> None:
    reference = transformers_configs()[name]
    (tmp_path / "config.json").write_text(reference.to_json_string(use_diff=short), encoding="utf-8")
    config = read_config(tmp_path)
    theirs, ours = reference.vision_config, config.vision
    assert (ours.image_size, ours.patch_size) == (theirs.image_size, theirs.patch_size)
    assert (ours.hidden_size, ours.intermediate_size) == (theirs.hidden_size, theirs.intermediate_size)
    assert (ours.layers, ours.heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    assert ours.layer_norm_eps == theirs.layer_norm_eps
    theirs, text = reference.text_config, config.text
    assert (text.hidden_size, text.intermediate_size) == (theirs.hidden_size, theirs.intermediate_size)
    assert (text.layers, text.heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    assert text.kv_heads == theirs.num_key_value_heads
    assert (text.vocab_size, text.context_length) == (theirs.vocab_size, theirs.max_position_embeddings)
    rope = getattr(theirs, "rope_parameters", None)  # of transformers 5
    assert text.rope_theta == (rope["rope_theta"] if rope else theirs.rope_theta)
    assert text.rms_norm_eps == theirs.rms_norm_eps
    assert text.tied == theirs.tie_word_embeddings
    assert config.grid_pinpoints == tuple((h, w) for h, w in reference.image_grid_pinpoints)
    assert config.aspect_ratio == reference.vision_aspect_ratio
    assert (config.image_token_id, config.video_token_id) == (
        reference.image_token_index,
        reference.video_token_index,
    )


def test_empty_sections_have_the_class_defaults(tmp_path: Path) -> None:
    """Unlike a section that is left out: that one is the SO400M tower."""
    values = {"model_type": "llava_onevision", "vision_config": {}, "image_grid_pinpoints": [[224, 224]]}
    vision = read(tmp_path, values).vision
    assert (vision.hidden_size, vision.layers, vision.image_size, vision.patch_size) == (768, 12, 224, 16)


def test_what_transformers_5_writes(tmp_path: Path) -> None:
    values = changed(HF_05B, "text_config.rope_theta", ...)
    values["text_config"]["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    values["text_config"]["tie_word_embeddings"] = False
    del values["image_token_index"], values["video_token_index"], values["torch_dtype"]
    values |= {"tie_word_embeddings": True, "image_token_id": 7, "video_token_id": 8, "dtype": "bfloat16"}
    config = read(tmp_path, values)
    assert (config.text.rope_theta, config.text.tied, config.dtype) == (5e5, True, "bfloat16")
    assert (config.image_token_id, config.video_token_id) == (7, 8)


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (151645, None, (151645,)),
        (None, None, (151645,)),
        (151643, None, (151643, 151645)),
        (151643, {"eos_token_id": 151645}, (151645, 151643)),
        (151645, {"eos_token_id": [151645, 151643]}, (151645, 151643)),
        ([151643, 7], {"eos_token_id": None}, (151643, 7, 151645)),
        (151643, {}, (151643, 151645)),
    ],
)
def test_eos(config_eos: object, generation: object, expected: tuple[int, ...], tmp_path: Path) -> None:
    assert read(tmp_path, changed(LMMS_7B, "eos_token_id", config_eos), generation).text.eos_ids == expected
    hf = changed(HF_05B, "text_config.eos_token_id", config_eos)
    assert read(tmp_path, hf, generation).text.eos_ids == expected


def test_im_end_is_no_stop_of_a_smaller_vocabulary(tiny: Path) -> None:
    assert read_config(tiny).text.eos_ids == (498,)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([[384, 768], [768, 384]], ((768, 384), (384, 768))),
        ("[[384, 768], [768, 384]]", ((768, 384), (384, 768))),
        ("[(384, 768), (768, 384)]", ((768, 384), (384, 768))),
        ("(1x1),...,(2x3)", ((384, 384), (768, 384), (1152, 384), (384, 768), (768, 768), (1152, 768))),
        ("(1x1),...,(6x6)", tuple((h, w) for w in GRID for h in GRID)),
    ],
)
def test_lmms_lab_pinpoints(written: object, expected: object, tmp_path: Path) -> None:
    assert read(tmp_path, changed(LMMS_7B, "image_grid_pinpoints", written)).grid_pinpoints == expected


# hidden, intermediate, layers that run, heads, patches
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google/siglip-so400m-patch14-384", (1152, 4304, 26, 16, 729)),
        ("google/siglip-so400m-patch14-224", (1152, 4304, 26, 16, 256)),
        ("google/siglip-base-patch16-224", (768, 3072, 11, 12, 196)),
        ("google/siglip-base-patch16-256", (768, 3072, 11, 12, 256)),
        ("google/siglip-base-patch16-384", (768, 3072, 11, 12, 576)),
        ("google/siglip-base-patch16-512", (768, 3072, 11, 12, 1024)),
        ("google/siglip-large-patch16-256", (1024, 4096, 23, 16, 256)),
        ("google/siglip-large-patch16-384", (1024, 4096, 23, 16, 576)),
        ("google/siglip2-so400m-patch14-384", (1152, 4304, 26, 16, 729)),
        ("google/siglip2-so400m-patch16-512", (1152, 4304, 26, 16, 1024)),
        ("google/siglip2-large-patch16-512", (1024, 4096, 23, 16, 1024)),
        ("google/siglip2-base-patch16-224", (768, 3072, 11, 12, 196)),
        ("siglip-so400m-patch14-384", (1152, 4304, 26, 16, 729)),
        ("/mnt/bn/vl/models/siglip-so400m-patch14-384/", (1152, 4304, 26, 16, 729)),
        ("../checkpoints/siglip2-so400m-patch14-384", (1152, 4304, 26, 16, 729)),
        ("D:\\models\\siglip-so400m-patch14-384", (1152, 4304, 26, 16, 729)),
        (
            "/root/.cache/huggingface/hub/models--google--siglip-so400m-patch14-384/snapshots/9fdffc58afc9",
            (1152, 4304, 26, 16, 729),
        ),
        ("/siglip-base-patch16-224/siglip-so400m-patch14-384", (1152, 4304, 26, 16, 729)),
    ],
)
def test_published_towers(name: str, expected: tuple[int, ...], tmp_path: Path) -> None:
    values = changed(LMMS_7B, "mm_vision_tower", name) | {"mm_hidden_size": expected[0]}
    vision = read(tmp_path, values | {"image_grid_pinpoints": "(1x1),(2x2)"}).vision
    found = (vision.hidden_size, vision.intermediate_size, vision.layers, vision.heads, vision.patches)
    assert found == expected
    assert str(vision.image_size) in name
    assert f"patch{vision.patch_size}" in name


@pytest.mark.parametrize("nested", [True, False])
def test_tower_in_a_folder_of_the_checkpoint(nested: bool, tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    tower = {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 5, "image_size": 64}
    wrapped = {"model_type": "siglip", "vision_config": tower} if nested else tower
    (tmp_path / "tower" / "config.json").write_text(json.dumps(wrapped), encoding="utf-8")
    values = changed(LMMS_7B, "mm_vision_tower", "tower")
    values |= {"mm_hidden_size": 96, "image_grid_pinpoints": [[64, 128]]}
    vision = read(tmp_path, values).vision
    assert (vision.hidden_size, vision.heads, vision.layers, vision.patches) == (96, 6, 4, 16)


def write_tower(folder: Path, **sizes: int) -> Path:
    folder.mkdir(parents=True)
    tower = {"model_type": "siglip_vision_model", "hidden_size": 96, "num_attention_heads": 6, **sizes}
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": tower}))
    return folder


def test_tower_in_a_folder_of_this_machine(tmp_path: Path) -> None:
    """What its config.json says goes before its name."""
    tower = write_tower(tmp_path / "elsewhere" / "siglip-so400m-patch14-384", image_size=64)
    values = LMMS_7B | {
        "mm_vision_tower": str(tower),
        "mm_hidden_size": 96,
        "image_grid_pinpoints": [[64, 64]],
    }
    (tmp_path / "checkpoint").mkdir()
    assert read(tmp_path / "checkpoint", values).vision.hidden_size == 96


def test_a_tower_that_is_named_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vision(tower: str | None) -> tuple[int, int]:
        found = read_config(tmp_path, tower).vision
        return found.hidden_size, found.patches

    read(tmp_path, LMMS_7B)
    (tmp_path / "config.json").write_text(json.dumps(LMMS_7B | {"mm_vision_tower": "/mnt/tower"}))
    with pytest.raises(UnsupportedCheckpointError, match='mm_vision_tower is "/mnt/tower"') as caught:
        read_config(tmp_path)
    assert "--vision-tower google/siglip-so400m-patch14-384" in str(caught.value.hint)
    assert vision("google/siglip2-so400m-patch14-384") == (1152, 729)
    monkeypatch.chdir(tmp_path)
    write_tower(tmp_path / "mine", hidden_size=1152, num_attention_heads=16, image_size=384)
    assert vision("mine") == (1152, 576), "patches of 16 pixels"
    with pytest.raises(UnsupportedCheckpointError, match='--vision-tower is "yours"'):
        read_config(tmp_path, "yours")


def test_a_config_that_describes_its_tower_takes_no_other(tmp_path: Path) -> None:
    read(tmp_path, HF_05B)
    with pytest.raises(UsageError, match="--vision-tower"):
        read_config(tmp_path, "google/siglip-so400m-patch14-384")


UNSUPPORTED: list[tuple[dict[str, Any], str, object]] = [
    (HF_05B, "model_type", "llava_next"),
    (HF_05B, "model_type", ...),
    (HF_05B, "architectures", ["LlavaNextForConditionalGeneration"]),
    (HF_05B, "projector_hidden_act", "relu"),
    (HF_05B, "multimodal_projector_bias", False),
    (HF_05B, "vision_feature_layer", -2),
    (HF_05B, "vision_feature_layer", [-2, -1]),
    (HF_05B, "vision_feature_select_strategy", "default"),
    (HF_05B, "use_image_newline_parameter", False),
    (HF_05B, "vision_aspect_ratio", "pad"),
    (HF_05B, "vision_aspect_ratio", "anyres_max_0"),
    (HF_05B, "vision_aspect_ratio", "anyres_max_"),
    (HF_05B, "vision_aspect_ratio", 9),
    (HF_05B, "quantization_config", {"load_in_4bit": True}),
    (HF_05B, "text_config.model_type", "llama"),
    (HF_05B, "text_config.hidden_act", "gelu"),
    (HF_05B, "text_config.use_sliding_window", True),
    (HF_05B, "text_config.layer_types", ["sliding_attention"] * 24),
    (HF_05B, "text_config.rope_scaling", {"type": "linear", "factor": 2.0}),
    (HF_05B, "text_config.rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
    (HF_05B, "text_config.rope_scaling", {"factor": 4.0}),
    (HF_05B, "text_config.rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e6}),
    (HF_05B, "text_config.head_dim", 128),
    (HF_05B, "text_config.hidden_size", 897),
    (HF_05B, "text_config.num_key_value_heads", 3),
    (HF_05B, "vision_config.model_type", "clip_vision_model"),
    (HF_05B, "vision_config.hidden_act", "quick_gelu"),
    (HF_05B, "vision_config.num_channels", 1),
    (HF_05B, "vision_config.num_attention_heads", 7),
    (LMMS_7B, "architectures", ["LlavaForConditionalGeneration"]),
    (LMMS_7B, "mm_projector_type", "linear"),
    (LMMS_7B, "mm_projector_type", ...),
    (LMMS_7B, "mm_patch_merge_type", "flat"),
    (LMMS_7B, "mm_patch_merge_type", "unpad"),
    (LMMS_7B, "mm_patch_merge_type", ...),
    (LMMS_7B, "mm_spatial_pool_mode", "median"),
    (LMMS_7B, "mm_spatial_pool_mode", ["average"]),
    (LMMS_7B, "mm_spatial_pool_stride", 4),
    (LMMS_7B, "mm_newline_position", "row"),
    (LMMS_7B, "mm_newline_position", 1),
    (LMMS_7B, "add_faster_video", True),
    (LMMS_7B, "mm_resampler_type", "qformer"),
    (LMMS_7B, "mm_use_im_start_end", True),
    (LMMS_7B, "mm_hidden_size", 1024),
    (LMMS_7B, "image_aspect_ratio", "pad"),
    (LMMS_7B, "image_aspect_ratio", ...),
    (LMMS_7B, "mm_vision_tower", "openai/clip-vit-large-patch14-336"),
    (LMMS_7B, "mm_vision_tower", "google/siglip2-so400m-patch16-naflex"),
    (LMMS_7B, "mm_vision_tower", "google/siglip2-giant-opt-patch16-384"),
    (LMMS_7B, "mm_vision_tower", "my-siglip-so400m-patch14-384-tuned"),
    (LMMS_7B, "mm_vision_tower", "x" * 5000),
    (LMMS_7B, "mm_vision_tower", "a\0b"),
    (LMMS_7B, "mm_vision_tower", "../elsewhere"),
    (LMMS_7B, "mm_vision_tower", "/elsewhere"),
    (LMMS_7B, "mm_vision_tower", "C:\\elsewhere"),
    (LMMS_7B, "hidden_act", "gelu"),
    (LMMS_7B, "rope_scaling", {"type": "dynamic", "factor": 2.0}),
    (LMMS_7B, "use_sliding_window", True),
    (LMMS_7B, "num_attention_heads", 27),
]


@pytest.mark.parametrize(("base", "path", "value"), UNSUPPORTED)
def test_unsupported(base: dict[str, Any], path: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError) as caught:
        read(tmp_path, changed(base, path, value))
    assert path.rpartition(".")[2] in caught.value.message.replace(
        "rope_type", "rope_scaling rope_parameters"
    )
    assert "\n" not in caught.value.message
    assert caught.value.hint


NONSENSE: list[tuple[dict[str, Any], str, object]] = [
    (HF_05B, "vision_config", [1]),
    (HF_05B, "text_config", "Qwen/Qwen2-0.5B"),
    (HF_05B, "tie_word_embeddings", "yes"),
    (HF_05B, "text_config.hidden_size", 0),
    (HF_05B, "text_config.hidden_size", -896),
    (HF_05B, "text_config.hidden_size", 896.0),
    (HF_05B, "text_config.hidden_size", "896"),
    (HF_05B, "text_config.num_hidden_layers", True),
    (HF_05B, "text_config.num_hidden_layers", 10**9),
    (HF_05B, "text_config.num_attention_heads", 0),
    (HF_05B, "text_config.vocab_size", -1),
    (HF_05B, "text_config.max_position_embeddings", 0),
    (HF_05B, "text_config.rope_theta", 0),
    (HF_05B, "text_config.rope_theta", float("nan")),
    (HF_05B, "text_config.rope_theta", 10**400),
    (HF_05B, "text_config.rms_norm_eps", float("inf")),
    (HF_05B, "text_config.rms_norm_eps", "1e-6"),
    (HF_05B, "text_config.eos_token_id", 152000),
    (HF_05B, "text_config.eos_token_id", [151645, None]),
    (HF_05B, "text_config.bos_token_id", "<s>"),
    (HF_05B, "vision_config.patch_size", 385),
    (HF_05B, "vision_config.image_size", [384, 384]),
    (HF_05B, "vision_config.layer_norm_eps", -1e-6),
    (HF_05B, "image_token_index", 152000),
    (HF_05B, "video_token_index", -200),
    (HF_05B, "image_grid_pinpoints", []),
    (HF_05B, "image_grid_pinpoints", "(1x1),...,(6x6)"),
    (HF_05B, "image_grid_pinpoints", [[384, 768, 384]]),
    (HF_05B, "image_grid_pinpoints", [[384, 700]]),
    (HF_05B, "image_grid_pinpoints", [[384, 0]]),
    (HF_05B, "image_grid_pinpoints", [384, 768]),
    (HF_05B, "image_grid_pinpoints", [[384, True]]),
    (LMMS_7B, "image_grid_pinpoints", ...),
    (LMMS_7B, "image_grid_pinpoints", "six by six"),
    (LMMS_7B, "image_grid_pinpoints", "(1x1),...,(9999x9999)"),
    (LMMS_7B, "image_grid_pinpoints", "(3x3),...,(1x1)"),
    (LMMS_7B, "image_grid_pinpoints", "[" * 100_000),
    (LMMS_7B, "image_grid_pinpoints", [[336, 672]]),
    (LMMS_7B, "mm_vision_tower", ...),
    (LMMS_7B, "mm_vision_tower", 27),
    (LMMS_7B, "intermediate_size", -1),
    (LMMS_7B, "add_time_instruction", "yes"),
]


@pytest.mark.parametrize(("base", "path", "value"), NONSENSE)
def test_nonsense(base: dict[str, Any], path: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, changed(base, path, value))
    assert not isinstance(caught.value, UnsupportedCheckpointError)
    assert path in caught.value.message, "the key is named with its section"
    assert len(caught.value.message) < 300
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "contents",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe{}", b'{"a": 1}}', b"[" * 100_000, b"version https://git-lfs"],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_no_json(name: str, contents: bytes, tiny: Path) -> None:
    (tiny / name).write_bytes(contents)
    with pytest.raises(CheckpointError, match=name):
        read_config(tiny)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_config(tmp_path)


def test_unreadable_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        read_config(tmp_path)


def test_tower_of_one_layer(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text('{"num_hidden_layers": 1}', encoding="utf-8")
    values = changed(LMMS_7B, "mm_vision_tower", "tower") | {"mm_hidden_size": 768}
    with pytest.raises(CheckpointError, match="one layer"):
        read(tmp_path, values)


def test_fault_in_the_tower_folder_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text('{"hidden_size": -1}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tower/config\.json: hidden_size is -1"):
        read(tmp_path, changed(LMMS_7B, "mm_vision_tower", "tower"))


def test_unused_keys_do_not_matter(tiny: Path) -> None:
    before = read_config(tiny)
    edit_json(
        tiny / "config.json", lambda values: values["vision_config"].update(vision_use_head=True, more=[1])
    )
    assert read_config(tiny) == before


@pytest.mark.parametrize(("written", "expected"), [(None, 32), ({}, 32), (8, 8), ("null", 32), (1, 1)])
def test_frames_are_the_video_processors(written: object, expected: int, tiny: Path) -> None:
    values = {} if written == {} else {"num_frames": None if written == "null" else written}
    if written is not None:
        (tiny / "video_preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    assert read_config(tiny).frames == expected


@pytest.mark.parametrize("contents", ["0", "-8", "8.0", '"8"', "true", "[8]", "x"])
def test_frames_that_make_no_sense(contents: str, tiny: Path) -> None:
    path = tiny / "video_preprocessor_config.json"
    path.write_text(f'{{"num_frames": {contents}}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"video_preprocessor_config\.json"):
        read_config(tiny)


def test_other_pixels_are_refused(tiny: Path) -> None:
    processor = tiny / "preprocessor_config.json"
    processor.write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3})
    )
    read_config(tiny)
    processor.write_text(json.dumps({"image_mean": [0.48, 0.46, 0.41]}))
    with pytest.raises(UnsupportedCheckpointError, match="image_mean"):
        read_config(tiny)
