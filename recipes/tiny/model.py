"""The tiny model: LLaVA-OneVision's own classes, with small numbers.

A tile of 70 pixels has 5x5 patches. That is odd, as the published 27x27: pooling a video's frames (5 to 3, as
27 to 14) and unpadding take the same paths.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from onevision.eval.suite.video import FRAMES
from onevision.runtime.anyres import AnyRes

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.export.synth.vocabulary import SynthVocabulary

TILE, PATCH, GRID = 70, 14, 4  # pixels a tile, pixels a patch, most tiles a side
SIDE = TILE // PATCH  # patches a side of a tile
PATCHES = SIDE**2
VISION_HIDDEN, VISION_LAYERS, VISION_HEADS = 192, 6, 4
HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 256, 5, 4, 2, 768
CONTEXT_LENGTH = 4096

PINPOINTS = tuple((TILE * rows, TILE * cols) for rows in range(1, GRID + 1) for cols in range(1, GRID + 1))
SPEC = AnyRes(TILE, SIDE, PINPOINTS, max_tiles=9)


def build_model(vocabulary: SynthVocabulary, seed: int, *, attention: str = "eager") -> Any:  # noqa: ANN401
    """A model with random weights, in float32.

    On CPUs ``eager`` attention is a sixth faster in training than the fused ``sdpa``, whose backward pass is
    slow there.
    """
    import torch
    import transformers

    from onevision.export.tokenizer import END_OF_TEXT, IM_END
    from recipes.tiny.start import start_language_model

    ids = vocabulary.ids
    library: Any = transformers  # leaves much untyped
    config = library.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 4 * VISION_HIDDEN,
            "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": VISION_HEADS,
            "image_size": TILE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "vocab_size": embedding_rows(vocabulary),
            "max_position_embeddings": CONTEXT_LENGTH,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "bos_token_id": ids[END_OF_TEXT],
            "eos_token_id": ids[IM_END],
        },
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{SPEC.max_tiles}",
        image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = library.LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation=attention)
    start_language_model(model, seed)
    model.generation_config = library.GenerationConfig(
        bos_token_id=ids[END_OF_TEXT], eos_token_id=ids[IM_END]
    )
    return model


def embedding_rows(vocabulary: SynthVocabulary) -> int:
    """Tokens, rounded up to a multiple of 64 as the published checkpoints have it."""
    return -(-(len(vocabulary.tokens) + len(vocabulary.specials)) // 64) * 64


def export_checkpoint(model: Any, vocabulary: SynthVocabulary, folder: Path) -> Path:  # noqa: ANN401
    """Write a checkpoint as the ``llava-hf`` repositories have it, weights in bfloat16.

    Args:
        model: Of :func:`build_model`, in float32 or bfloat16. It is not changed.
        vocabulary: Its tokenizer.
        folder: Replaced file by file; made if it is not there.

    Returns:
        ``folder``.
    """
    import torch
    from transformers.models.llava_onevision.image_processing_llava_onevision import (
        LlavaOnevisionImageProcessor,
    )

    from onevision.export.synth.vocabulary import write_json
    from onevision.models.shapes import MEAN, STD

    folder.mkdir(parents=True, exist_ok=True)
    copy = build_model(vocabulary, seed=0).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    vocabulary.write(folder)
    processor: Any = LlavaOnevisionImageProcessor(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=[list(pair) for pair in PINPOINTS],
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    write_json(folder / "preprocessor_config.json", processor.to_dict())
    # Written by hand: transformers makes a video processor only where torchvision is.
    videos = {
        "video_processor_type": "LlavaOnevisionVideoProcessor",
        "do_sample_frames": True,
        "num_frames": FRAMES,
        "size": {"height": TILE, "width": TILE},
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    write_json(folder / "video_preprocessor_config.json", videos)
    return folder


def load_weights(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Put the weights of an exported checkpoint into a model of :func:`build_model`."""
    saved = type(model).from_pretrained(folder)
    model.load_state_dict(saved.state_dict())


def save_atomically(value: object, path: Path) -> None:
    """``torch.save``, such that the file is the old or the new one at any moment."""
    import torch

    draft = path.with_name(f"{path.name}.part")
    torch.save(value, draft)
    os.replace(draft, path)  # noqa: PTH105  # replaces on Windows too
