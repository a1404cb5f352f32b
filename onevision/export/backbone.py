"""The Qwen2 backbone as a GGUF file.

In: a checkpoint, read tensor by tensor. Out: a GGUF file, first in a float type written here, then quantised
(:mod:`onevision.native.quantize`). At no time is more than one tensor in memory (two copies of it while its
type changes).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from onevision.errors import ExportError
from onevision.export.tokenizer import CHAT_TEMPLATE, Tokenizer, read_tokenizer
from onevision.files import disk_space, scratch_folder, whole_file
from onevision.native.quantize import FILE_TYPES, FLOAT_BYTES, QUANTIZED_BYTES, RECIPES, quantize_gguf, report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import gguf
    import numpy.typing as npt

    from onevision.export.checkpoint import Checkpoint
    from onevision.models.shapes import ModelConfig, TextConfig
    from onevision.native.quantize import BackboneReport
    from onevision.precisions import BackbonePrecision
    from onevision.progress import Advance

FloatType = Literal["f32", "f16", "bf16"]

_STORAGE: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
}

_QUANTISATION_VERSION = 2  # GGML_QNT_VERSION

_LAYER_TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def export_backbone(
    checkpoint: Checkpoint,
    path: Path,
    precision: BackbonePrecision,
    *,
    name: str,
    threads: int | None = None,
    advance: Advance | None = None,
) -> BackboneReport:
    """Convert a checkpoint's language model to a GGUF file of any precision.

    A quantised file is made from one in the checkpoint's own type, which lies beside it until it is done.

    Args:
        checkpoint: An open checkpoint.
        path: The file to write.
        precision: A name of :data:`BackbonePrecision`.
        name: Model name for the file's metadata.
        threads: Threads for quantising; None: one per core.
        advance: Told the fraction that is done.

    Raises:
        CheckpointError: The tokenizer cannot be read or used.
        ExportError: No disk space, a value that the type cannot hold, or llama.cpp refused.
    """
    if precision in get_args(FloatType):
        write_gguf(checkpoint, path, dtype=precision, name=name, advance=advance)  # type: ignore[arg-type]
        return report(path, RECIPES[precision])
    dtype = own_type(checkpoint)
    weights = sum(prod(tensor.shape) for tensor in _plan(checkpoint, dtype))
    needed = weights * FLOAT_BYTES[dtype] + int(weights * QUANTIZED_BYTES)
    with disk_space(path.absolute().parent, needed), scratch_folder(path) as scratch:
        intermediate = scratch / "float.gguf"
        write_gguf(checkpoint, intermediate, dtype=dtype, name=name, advance=_part(advance, 0))
        return quantize_gguf(
            intermediate, path, RECIPES[precision], threads=threads, advance=_part(advance, 1)
        )


def write_gguf(
    checkpoint: Checkpoint, path: Path, *, dtype: FloatType, name: str, advance: Advance | None = None
) -> None:
    """Write a checkpoint's language model and tokenizer to a GGUF file, tensor by tensor.

    Args:
        checkpoint: An open checkpoint.
        path: The file to write.
        dtype: Type of the matrices; norms and biases are always f32.
        name: Model name for the file's metadata.
        advance: Told the fraction that is done.

    Raises:
        CheckpointError: The tokenizer cannot be read or used.
        ExportError: No disk space, or a value that f16 cannot hold.
    """
    import gguf

    tokenizer = read_tokenizer(checkpoint.folder, checkpoint.config)
    plan = _plan(checkpoint, dtype)
    total = sum(tensor.bytes for tensor in plan)
    with whole_file(path, total) as part:
        writer = gguf.GGUFWriter(part, "qwen2")
        try:
            _add_model(writer, checkpoint.config.text, dtype, name)
            _add_tokenizer(writer, tokenizer)
            for tensor in plan:
                kind = gguf.GGMLQuantizationType[tensor.type.upper()]
                writer.add_tensor_info(tensor.target, tensor.shape, _STORAGE[tensor.type], tensor.bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            done = 0
            for tensor in plan:
                writer.write_tensor_data(_converted(checkpoint.tensor(tensor.source), tensor))
                done += tensor.bytes
                if advance is not None:
                    advance(done / total)
        finally:
            writer.close()


def tensor_names(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Each tensor of the backbone: its name in the checkpoint (transformers, in memory) and in GGUF."""
    yield "model.language_model.embed_tokens.weight", "token_embd.weight"
    for layer in range(config.text.layers):
        for source, target in _LAYER_TENSORS.items():
            yield f"model.language_model.layers.{layer}.{source}", f"blk.{layer}.{target}"
    yield "model.language_model.norm.weight", "output_norm.weight"
    if not config.text.tied:
        yield "lm_head.weight", "output.weight"


@dataclass(frozen=True)
class _PlannedTensor:
    source: str
    target: str
    shape: tuple[int, ...]
    type: FloatType

    @property
    def bytes(self) -> int:
        return prod(self.shape) * FLOAT_BYTES[self.type]


def _plan(checkpoint: Checkpoint, dtype: FloatType) -> list[_PlannedTensor]:
    """The file's tensors in order; vectors (norms, biases) stay f32, as llama.cpp demands."""
    shapes = [(*names, checkpoint.shape(names[0])) for names in tensor_names(checkpoint.config)]
    return [
        _PlannedTensor(source, target, shape, "f32" if len(shape) == 1 else dtype)
        for source, target, shape in shapes
    ]


def _converted(tensor: npt.NDArray[Any], planned: _PlannedTensor) -> npt.NDArray[Any]:
    """A tensor in the planned type; bf16 as its bits, since gguf writes none of ml_dtypes' types."""
    import ml_dtypes

    if planned.type == "bf16":
        return tensor.astype(ml_dtypes.bfloat16, copy=False).view(np.uint16)
    if planned.type == "f32":
        return tensor.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        converted = tensor.astype(np.float16, copy=False)
    if not np.isfinite([converted.min(), converted.max()]).all():
        raise ExportError(
            f"{planned.source} has values that f16 cannot hold (above 65,504)",
            hint="choose bf16 or a quantised type",
        )
    return converted


def own_type(checkpoint: Checkpoint) -> FloatType:
    """The type in which the checkpoint stores its matrices."""
    types: dict[str, FloatType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
    return types[checkpoint.dtype("model.language_model.embed_tokens.weight")]


def _part(advance: Advance | None, half: int) -> Advance | None:
    """``advance`` for the first (0) or second (1) of two halves."""
    return None if advance is None else lambda fraction: advance((half + fraction) / 2)


def _add_model(writer: gguf.GGUFWriter, text: TextConfig, dtype: FloatType, name: str) -> None:
    """Hyper-parameters, as llama.cpp's ``llm_arch`` qwen2 reads them."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_quantization_version(_QUANTISATION_VERSION)
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.context_length)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.heads)
    writer.add_head_count_kv(text.kv_heads)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_eot_token_id(tokenizer.im_end_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
