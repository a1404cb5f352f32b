"""Names and shapes of a checkpoint's tensors.

Checkpoints come in several naming schemes: files of llava-hf (which transformers 4 writes), files of
transformers 5, files of lmms-lab, and the names in memory of transformers 4.52 to 4.57 and of 5. Those of
4.52 are the canonical ones.
"""

from __future__ import annotations

from onevision.models.shapes import ModelConfig, Naming, TextConfig, VisionConfig

EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
TEXT_PREFIX = "model.language_model."  # before "layers.0.…" and "norm.weight"

_VISION = "model.vision_tower.vision_model."
_PROJECTOR = "model.multi_modal_projector."
_NEWLINE = "model.image_newline"

#: Canonical prefixes, and the prefixes in files of ``hf``, ``hf-5`` and ``lmms-lab``.
_PREFIXES = {
    TEXT_PREFIX: ("language_model.model.", "language_model.model.", "model."),
    "lm_head.": ("language_model.lm_head.", "language_model.lm_head.", "lm_head."),
    _VISION: ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    f"{_PROJECTOR}linear_1.": (*["multi_modal_projector.linear_1."] * 2, "model.mm_projector.0."),
    f"{_PROJECTOR}linear_2.": (*["multi_modal_projector.linear_2."] * 2, "model.mm_projector.2."),
    _NEWLINE: ("image_newline", "image_newline", _NEWLINE),
}
_IN_MEMORY_OF_5 = ("model.vision_tower.", _VISION)

#: Prefixes and what replaces them, the longest first.
_CANONICAL = sorted(
    [
        _IN_MEMORY_OF_5,
        *((stored, name) for name, others in _PREFIXES.items() for stored in dict.fromkeys((name, *others))),
    ],
    key=lambda pair: -len(pair[0]),
)


def canonical_name(stored: str) -> str:
    """The canonical name of a tensor in any of the naming schemes; an unknown name gives no known one."""
    for prefix, canonical in _CANONICAL:
        if stored.startswith(prefix):
            return canonical + stored[len(prefix) :]
    return stored


def stored_name(name: str, naming: Naming) -> str:
    """The name of a tensor in the files of a naming scheme.

    Args:
        name: A canonical name.
        naming: The scheme.
    """
    if naming == "hf-4.52":
        return name
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[prefix][("hf", "hf-5", "lmms-lab").index(naming)] + name.removeprefix(prefix)


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
    """Tensors of published files that the model does not use: the norm after the last layer."""
    return _norm(f"{_VISION}post_layernorm", config.vision.hidden_size)


def is_unused(name: str, config: ModelConfig) -> bool:
    """Whether a tensor that is neither expected nor optional can be ignored.

    That is: the tower's pooling head, its last layer in lmms-lab checkpoints, and buffers that old versions
    of transformers saved.

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
