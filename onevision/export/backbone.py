"""The Qwen2 backbone as a GGUF file.

In: a checkpoint, read tensor by tensor. Out: a GGUF file. Floats and q8_0 are written here; for the other
types llama.cpp quantizes a file of floats (:mod:`onevision.native.quantize`). One tensor is in memory at a
time, twice while its type changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from onevision.errors import ExportError
from onevision.export.checkpoint import Checkpoint
from onevision.export.tokenizer import CHAT_TEMPLATE, Tokenizer, read_tokenizer
from onevision.files import disk_space, scratch_folder, whole_file
from onevision.models.shapes import ModelConfig, TextConfig
from onevision.native.gguf import TensorInfo
from onevision.native.quantize import (
    FILE_TYPES,
    FLOAT_BYTES,
    QUANTIZED_BYTES,
    RECIPES,
    BackboneReport,
    quantize_gguf,
    report_of,
)
from onevision.precisions import BackbonePrecision
from onevision.progress import Advance

if TYPE_CHECKING:
    import gguf

FloatType = Literal["f32", "f16", "bf16"]
#: Types that are written without llama.cpp.
WrittenType = Literal["f32", "f16", "bf16", "q8_0"]

_Q8_BLOCK = 32  # weights; longer rows that do not divide into blocks stay f16, as with llama.cpp
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION

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

    For a type that llama.cpp quantizes to, a file in the checkpoint's own type lies beside it meanwhile.

    Args:
        checkpoint: An open checkpoint.
        path: The file to write.
        precision: A name of :data:`BackbonePrecision`.
        name: Model name for the file's metadata.
        threads: Threads for llama.cpp's quantization; None: one per core.
        advance: Receives the fraction that is done.

    Raises:
        CheckpointError: The tokenizer cannot be read or used.
        ExportError: No disk space, a value that the type cannot hold, or an error of llama.cpp.
    """
    if precision in get_args(WrittenType):
        return write_gguf(checkpoint, path, dtype=precision, name=name, advance=advance)  # type: ignore[arg-type]
    dtype = own_type(checkpoint)
    weights = sum(prod(tensor.info.shape) for tensor in _plan(checkpoint, dtype))
    needed = weights * FLOAT_BYTES[dtype] + int(weights * QUANTIZED_BYTES)
    with disk_space(path.absolute().parent, needed), scratch_folder(path) as scratch:
        intermediate = scratch / "float.gguf"
        write_gguf(checkpoint, intermediate, dtype=dtype, name=name, advance=_part(advance, 0))
        return quantize_gguf(
            intermediate, path, RECIPES[precision], threads=threads, advance=_part(advance, 1)
        )


def write_gguf(
    checkpoint: Checkpoint, path: Path, *, dtype: WrittenType, name: str, advance: Advance | None = None
) -> BackboneReport:
    """Write a checkpoint's language model and tokenizer to a GGUF file, tensor by tensor.

    Args:
        checkpoint: An open checkpoint.
        path: The file to write.
        dtype: Type of the matrices; norms and biases are always f32.
        name: Model name for the file's metadata.
        advance: Receives the fraction that is done.

    Raises:
        CheckpointError: The tokenizer cannot be read or used.
        ExportError: No disk space, or a value that f16 cannot hold.
    """
    import gguf

    tokenizer = read_tokenizer(checkpoint.folder, checkpoint.config)
    plan = _plan(checkpoint, dtype)
    total = sum(tensor.info.bytes for tensor in plan)
    with whole_file(path, total) as part:
        writer = gguf.GGUFWriter(part, "qwen2")
        try:
            _add_model(writer, checkpoint.config.text, dtype, name)
            _add_tokenizer(writer, tokenizer)
            for info in (tensor.info for tensor in plan):
                kind = gguf.GGMLQuantizationType[info.type.upper()]
                writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.bytes, kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            done = 0
            for tensor in plan:
                writer.write_tensor_data(_converted(checkpoint.tensor(tensor.source), tensor))
                done += tensor.info.bytes
                if advance is not None:
                    advance(done / total)
        finally:
            writer.close()
    return report_of([tensor.info for tensor in plan], RECIPES[dtype], path.stat().st_size)


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
    source: str  # name in the checkpoint
    info: TensorInfo


def _plan(checkpoint: Checkpoint, dtype: WrittenType) -> list[_PlannedTensor]:
    """The file's tensors in order; vectors (norms, biases) stay f32, as llama.cpp demands."""
    return [
        _PlannedTensor(source, _info(target, checkpoint.shape(source), dtype))
        for source, target in tensor_names(checkpoint.config)
    ]


def _info(name: str, shape: tuple[int, ...], dtype: WrittenType) -> TensorInfo:
    kind: WrittenType = "f32" if len(shape) == 1 else dtype
    if kind == "q8_0" and shape[-1] % _Q8_BLOCK:
        kind = "f16"
    # A block of q8_0 has a scale of 2 bytes.
    size = prod(shape) // _Q8_BLOCK * (_Q8_BLOCK + 2) if kind == "q8_0" else prod(shape) * FLOAT_BYTES[kind]
    return TensorInfo(name, kind, shape, size, offset=0)


def _converted(tensor: npt.NDArray[Any], planned: _PlannedTensor) -> npt.NDArray[Any]:
    """A tensor in the planned type; bf16 and q8_0 as bytes."""
    import gguf

    kind = gguf.GGMLQuantizationType[planned.info.type.upper()]
    with np.errstate(over="ignore"):
        converted: npt.NDArray[Any] = gguf.quantize(tensor.astype(np.float32, copy=False), kind)
    if planned.info.type == "f16" and not np.isfinite([converted.min(), converted.max()]).all():
        raise ExportError(
            f"{planned.source} has values that f16 cannot hold (above 65,504)",
            hint="choose bf16 or a quantized type",
        )
    return converted


def own_type(checkpoint: Checkpoint) -> FloatType:
    """The type in which the checkpoint stores its matrices."""
    types: dict[str, FloatType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
    return types[checkpoint.dtype("model.language_model.embed_tokens.weight")]


def _part(advance: Advance | None, half: int) -> Advance | None:
    """``advance`` for the first (0) or second (1) of two halves."""
    return None if advance is None else lambda fraction: advance((half + fraction) / 2)


def _add_model(writer: gguf.GGUFWriter, text: TextConfig, dtype: WrittenType, name: str) -> None:
    """Hyper-parameters, as llama.cpp's ``llm_arch`` qwen2 reads them."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_quantization_version(_QUANTIZATION_VERSION)
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
