"""What the tensors of a checkpoint are called and how they are shaped.

Four naming schemes are about: lmms-lab's files, llava-hf's files (what transformers 4 saves), and the names
in memory of transformers 4.52 to 4.57 and of 5. Those of 4.52 are the canonical ones here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onevision.models.shapes import ModelConfig, TextConfig, VisionConfig

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
TEXT_PREFIX = "model.language_model."  # before "layers.0.…" and "norm.weight"

_VISION = "model.vision_tower.vision_model."
_PROJECTOR = "model.multi_modal_projector."
_NEWLINE = "model.image_newline"

# The first prefix that fits is replaced. A scheme's longer prefixes stand before the shorter of another.
_PREFIXES = (
    ("model.vision_tower.vision_tower.vision_model.", _VISION),  # lmms-lab
    ("model.vision_tower.vision_model.", _VISION),  # transformers 4.52
    ("model.vision_tower.", _VISION),  # transformers 5
    ("vision_tower.vision_model.", _VISION),  # llava-hf
    ("vision_tower.", _VISION),  # files of transformers 5
    ("model.mm_projector.0.", f"{_PROJECTOR}linear_1."),  # lmms-lab: a Sequential of Linear, GELU, Linear
    ("model.mm_projector.2.", f"{_PROJECTOR}linear_2."),
    ("multi_modal_projector.", _PROJECTOR),  # llava-hf
    ("image_newline", _NEWLINE),
    ("language_model.model.", TEXT_PREFIX),
    ("language_model.lm_head.", "lm_head."),
    ("model.embed_tokens.", f"{TEXT_PREFIX}embed_tokens."),  # lmms-lab
    ("model.layers.", f"{TEXT_PREFIX}layers."),
    ("model.norm.", f"{TEXT_PREFIX}norm."),
)


def canonical_name(stored: str) -> str:
    """The name of transformers 4.52 for a name of any of the four schemes; unknown names stay as they are."""
    for prefix, canonical in _PREFIXES:
        if stored.startswith(prefix):
            return canonical + stored[len(prefix) :]
    return stored


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name and shape of every tensor that a checkpoint of this shape must have."""
    text, vision = config.text, config.vision
    hidden = text.hidden_size
    head = {} if text.tied else {HEAD: (text.vocab_size, hidden)}
    return {
        EMBEDDING: (text.vocab_size, hidden),
        **{
            f"{TEXT_PREFIX}layers.{layer}.{leaf}": shape
            for layer in range(text.layers)
            for leaf, shape in _text_layer(text).items()
        },
        f"{TEXT_PREFIX}norm.weight": (hidden,),
        **head,
        f"{_VISION}embeddings.patch_embedding.weight": (vision.hidden_size, 3, *[vision.patch_size] * 2),
        f"{_VISION}embeddings.patch_embedding.bias": (vision.hidden_size,),
        f"{_VISION}embeddings.position_embedding.weight": (vision.patches, vision.hidden_size),
        **{
            f"{_VISION}encoder.layers.{layer}.{leaf}": shape
            for layer in range(vision.layers)
            for leaf, shape in _vision_layer(vision).items()
        },
        **_linear(f"{_PROJECTOR}linear_1", vision.hidden_size, hidden),
        **_linear(f"{_PROJECTOR}linear_2", hidden, hidden),
        _NEWLINE: (hidden,),
    }


def optional_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensors that published files have and the model does not use: the norm after the last layer."""
    return _norm(f"{_VISION}post_layernorm", config.vision.hidden_size)


def is_unused(name: str, config: ModelConfig) -> bool:
    """Whether a tensor that is neither expected nor optional is known to be harmless.

    These are the pooling head of the tower, the last layer that lmms-lab leaves out of it, and buffers that
    old versions of transformers saved.

    Args:
        name: A canonical name.
        config: The checkpoint's shape.
    """
    dropped = (f"{_VISION}encoder.layers.{config.vision.layers}.",) if config.format == "lmms-lab" else ()
    return name.startswith((f"{_VISION}head.", *dropped)) or name.endswith(
        (".rotary_emb.inv_freq", ".embeddings.position_ids")
    )


def _text_layer(text: TextConfig) -> dict[str, tuple[int, ...]]:
    hidden, kv = text.hidden_size, text.kv_heads * text.head_dim
    return {
        "input_layernorm.weight": (hidden,),
        **_linear("self_attn.q_proj", hidden, hidden),
        **_linear("self_attn.k_proj", hidden, kv),
        **_linear("self_attn.v_proj", hidden, kv),
        "self_attn.o_proj.weight": (hidden, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (text.intermediate_size, hidden),
        "mlp.up_proj.weight": (text.intermediate_size, hidden),
        "mlp.down_proj.weight": (hidden, text.intermediate_size),
    }


def _vision_layer(vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    hidden = vision.hidden_size
    return {
        **_norm("layer_norm1", hidden),
        **_norm("layer_norm2", hidden),
        **_linear("self_attn.q_proj", hidden, hidden),
        **_linear("self_attn.k_proj", hidden, hidden),
        **_linear("self_attn.v_proj", hidden, hidden),
        **_linear("self_attn.out_proj", hidden, hidden),
        **_linear("mlp.fc1", hidden, vision.intermediate_size),
        **_linear("mlp.fc2", vision.intermediate_size, hidden),
    }


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
