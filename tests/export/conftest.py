"""Small checkpoints with random weights, made by transformers and renamed to the other schemes."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any, Literal, get_args

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Scheme = Literal["llava-hf", "lmms-lab", "transformers 4.52", "transformers 5", "transformers 5 files"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

# From what transformers 4 writes: the names of reference.md §6.
_RENAMES: dict[Scheme, list[tuple[str, str]]] = {
    "llava-hf": [],
    "lmms-lab": [
        (r"^language_model\.model\.", "model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^vision_tower\.", "model.vision_tower.vision_tower."),
        (r"^multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"^multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
        (r"^image_newline$", "model.image_newline"),
    ],
    "transformers 4.52": [
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^(vision_tower|multi_modal_projector|image_newline)", r"model.\1"),
    ],
    "transformers 5": [
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^vision_tower\.vision_model\.", "model.vision_tower."),
        (r"^(multi_modal_projector|image_newline)", r"model.\1"),
    ],
    "transformers 5 files": [(r"^vision_tower\.vision_model\.", "vision_tower.")],
}


def renamed(stored: str, scheme: Scheme) -> str:
    """A name that transformers 4 writes, in another scheme."""
    for pattern, replacement in _RENAMES[scheme]:
        stored = re.sub(pattern, replacement, stored)
    return stored


def tiny_config(*, tied: bool) -> Any:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "max_position_embeddings": 512,
            "rope_theta": 1e6,
            "tie_word_embeddings": tied,
            "bos_token_id": 499,
            "eos_token_id": 498,
        },
        image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
        image_token_index=500,
        video_token_index=501,
        tie_word_embeddings=tied,
    )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, dict[str, Any]]]:
    """By whether the head is tied: a folder as transformers saves it, and the model's own tensors."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    models = {}
    for tied in (True, False):
        torch.manual_seed(7)
        model = LlavaOnevisionForConditionalGeneration(tiny_config(tied=tied))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        folder = tmp_path_factory.mktemp("tied" if tied else "untied")
        model.save_pretrained(folder)
        edit_tensors(folder, as_transformers_4)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        as_transformers_4(state)
        models[tied] = (folder, state)
    return models


def as_transformers_4(tensors: dict[str, Any]) -> None:
    """Put ``vision_model.`` where transformers 5 leaves it out."""
    for name in list(tensors):
        longer = re.sub(r"(^|\.)vision_tower\.(?!vision_model\.)", r"\1vision_tower.vision_model.", name)
        tensors[longer] = tensors.pop(name)


@pytest.fixture
def tiny(tiny_models: dict[bool, tuple[Path, dict[str, Any]]], tmp_path: Path) -> Path:
    """A tied checkpoint to damage."""
    return shutil.copytree(tiny_models[True][0], tmp_path / "tiny")


@pytest.fixture
def untied(tiny_models: dict[bool, tuple[Path, dict[str, Any]]], tmp_path: Path) -> Path:
    """An untied checkpoint to damage."""
    return shutil.copytree(tiny_models[False][0], tmp_path / "untied")


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of ``model.safetensors`` in place."""
    from safetensors.torch import load_file, save_file

    # Copied: the file they are mapped from is written anew.
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rename_tensors(folder: Path, scheme: Scheme) -> None:
    """Change the names of the tensors in ``model.safetensors`` to another scheme's."""

    def change(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[renamed(name, scheme)] = tensors.pop(name)

    edit_tensors(folder, change)


def as_lmms_lab(folder: Path, *, stored_layers: int = 2) -> None:
    """Turn a tiny HF checkpoint into an lmms-lab one whose tower has three layers, two of which run."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text, vision = values["text_config"], values["vision_config"]
    (folder / "tower").mkdir()
    tower = {"model_type": "siglip", "vision_config": {**vision, "num_hidden_layers": 3}}
    (folder / "tower" / "config.json").write_text(json.dumps(tower), encoding="utf-8")
    config = {
        **text,
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
        "image_token_index": 500,
        "mm_hidden_size": 32,
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "tower",
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rename_tensors(folder, "lmms-lab")
    if stored_layers == 3:
        prefix = "model.vision_tower.vision_tower.vision_model.encoder.layers."

        def add_unused_layer(tensors: dict[str, Any]) -> None:
            for name in list(tensors):
                if name.startswith(f"{prefix}1."):
                    tensors[name.replace(f"{prefix}1.", f"{prefix}2.")] = tensors[name] + 1

        edit_tensors(folder, add_unused_layer)
