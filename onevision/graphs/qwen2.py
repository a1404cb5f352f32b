"""The prefill graph: the Qwen2 layers without embedding and head, for long prompts.

In: the shape of a backbone and its tensors. Out: ``prefill.onnx`` and ``prefill.onnx.data``: embeddings
float32 [1, n, H] and the keys and values of earlier positions -> keys and values float32 [1, kv_heads,
positions, head_dim] of each layer, keys after RoPE. There are no logits: llama.cpp computes them from the
prompt's last token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from onevision.graphs.kernels import Kernels, Linear, MatmulPrecision
from onevision.graphs.nodes import (
    CONTRIB,
    EMBEDDINGS,
    PAST,
    PRESENT,
    SEQUENCE_LENGTHS,
    TOTAL_LENGTH,
    float_value,
    write_graph,
)
from onevision.models.shapes import TextConfig
from onevision.precisions import PrefillPrecision
from onevision.progress import Advance

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.float32]


#: A scale per token: one token with large activations does not spoil the others, and a prompt that is cut at
#: other places gives the same.
_MATMULS: dict[PrefillPrecision, MatmulPrecision] = {"int8": "int8-token", "fp32": "fp32"}
_WEIGHT_BYTES: dict[PrefillPrecision, int] = {"int8": 1, "fp32": 4}


def write_prefill(
    path: Path,
    config: TextConfig,
    tensor: Callable[[str], npt.NDArray[Any]],
    *,
    precision: PrefillPrecision = "int8",
    advance: Advance | None = None,
) -> None:
    """Write the graph to ``path`` and its matrices to ``<name>.data`` beside it.

    Args:
        path: The ONNX file to create or replace.
        config: Shape of the backbone.
        tensor: Reads a tensor by its name without prefix, ``layers.0.mlp.up_proj.weight``, in any float type;
            matrices are [out, in].
        precision: Of the matmuls with weights; attention and norms are in fp32.
        advance: Receives the fraction of the layers that is written.

    Raises:
        ExportError: The disk is full.
    """
    needed = _weights(config) * _WEIGHT_BYTES[precision] + 4 * config.context_length * config.head_dim

    def build(data: BinaryIO, location: str) -> onnx.ModelProto:
        return _Graph(data, location, config, tensor, _MATMULS[precision]).finish(advance)

    write_graph(path, needed, build)


def _weights(config: TextConfig) -> int:
    """Elements of all matrices, those included that the last layer does not need."""
    projections = 2 * config.hidden_size * (config.hidden_size + config.kv_heads * config.head_dim)
    return config.layers * (projections + 3 * config.hidden_size * config.intermediate_size)


class _Graph(Kernels):
    """The layers, one after the other. The last one ends with its keys and values."""

    def __init__(
        self,
        data: BinaryIO,
        location: str,
        config: TextConfig,
        tensor: Callable[[str], npt.NDArray[Any]],
        precision: MatmulPrecision,
    ) -> None:
        super().__init__(data, location)
        self._config, self._read, self._precision = config, tensor, precision

    def finish(self, advance: Advance | None) -> onnx.ModelProto:
        """The whole graph."""
        from onnx import TensorProto, helper

        config = self._config
        angles = [self.constant(name, values) for name, values in _rope(config).items()]
        stream, branch = EMBEDDINGS, ""
        for layer in range(config.layers):
            x, stream = self._norm(stream, branch, f"{layer}.input_layernorm")
            if layer == config.layers - 1:
                self._keys_and_values(x, layer, angles)
            else:
                branch = self._attention_block(x, layer, angles)
                x, stream = self._norm(stream, branch, f"{layer}.post_attention_layernorm")
                branch = self._mlp(x, layer)
            if advance:
                advance((layer + 1) / config.layers)

        def caches(name: str, positions: str) -> list[onnx.ValueInfoProto]:
            places = [(part, layer) for layer in range(config.layers) for part in ("key", "value")]
            sizes = (1, config.kv_heads, positions, config.head_dim)
            return [float_value(name.format(*place), *sizes) for place in places]

        inputs = [
            float_value(EMBEDDINGS, 1, "n", config.hidden_size),
            helper.make_tensor_value_info(SEQUENCE_LENGTHS, TensorProto.INT32, [1]),
            helper.make_tensor_value_info(TOTAL_LENGTH, TensorProto.INT32, [1]),
            *caches(PAST, "past"),
        ]
        return self.model("prefill", inputs, caches(PRESENT, "positions"))

    def _norm(self, stream: str, branch: str, module: str) -> tuple[str, str]:
        """The normalized sum of stream and branch, and the sum itself; without a branch, of the stream."""
        weight = self.constant(f"{module}.weight", self._tensor(f"{module}.weight"))
        epsilon = self._config.rms_norm_eps
        if not branch:
            return self.add("SimplifiedLayerNormalization", stream, weight, axis=-1, epsilon=epsilon), stream
        outputs = (f"{module}.out", "", "", f"{module}.sum")
        inputs = (stream, branch, weight)
        self._node("SkipSimplifiedLayerNormalization", inputs, outputs, epsilon=epsilon)
        return outputs[0], outputs[3]

    def _attention_block(self, x: str, layer: int, angles: list[str]) -> str:
        qkv = self._linear(x, f"{layer}.self_attn", ("q_proj", "k_proj", "v_proj"), biased=True)
        mixed = self._attention((qkv, "", ""), layer, angles, self._config.heads)
        return self._linear(mixed, f"{layer}.self_attn", ("o_proj",))

    def _keys_and_values(self, x: str, layer: int, angles: list[str]) -> None:
        """Keys and values alone. The keys stand in for the queries; the attention's result is not used."""
        key, value = (
            self._linear(x, f"{layer}.self_attn", (part,), biased=True) for part in ("k_proj", "v_proj")
        )
        self._attention((key, key, value), layer, angles, self._config.kv_heads)

    def _attention(self, qkv: tuple[str, str, str], layer: int, angles: list[str], heads: int) -> str:
        past, present = ([name.format(part, layer) for part in ("key", "value")] for name in (PAST, PRESENT))
        output = f"{layer}.attention"
        self._node(
            "GroupQueryAttention",
            (*qkv, *past, SEQUENCE_LENGTHS, TOTAL_LENGTH, *angles),
            (output, *present),
            num_heads=heads,
            kv_num_heads=self._config.kv_heads,
            do_rotary=1,
        )
        return output

    def _mlp(self, x: str, layer: int) -> str:
        # Two matmuls: a single one would have to be split, which costs more than it gains.
        gate, up = (self._linear(x, f"{layer}.mlp", (part,)) for part in ("gate_proj", "up_proj"))
        silu = self.add("QuickGelu", gate, domain=CONTRIB, alpha=1.0)
        return self._linear(self.add("Mul", silu, up), f"{layer}.mlp", ("down_proj",))

    def _linear(self, x: str, module: str, parts: tuple[str, ...], *, biased: bool = False) -> str:
        """Modules with the same input, in one matmul."""
        # Stored [out, in] and multiplied by [in, out].
        weight = np.concatenate([self._tensor(f"{module}.{part}.weight") for part in parts]).T
        bias = np.concatenate([self._tensor(f"{module}.{part}.bias") for part in parts]) if biased else None
        linear = Linear(f"{module}.{'+'.join(parts)}", np.ascontiguousarray(weight), bias)
        return self.linear(x, linear, self._precision)

    def _node(self, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Any) -> None:  # noqa: ANN401
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], domain=CONTRIB, **attributes))

    def _tensor(self, name: str) -> Array:
        return self._read(f"layers.{name}").astype(np.float32, copy=False)


def _rope(config: TextConfig) -> dict[str, Array]:
    """Cosines and sines of all positions, float32 [context, head_dim / 2]."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    angles = np.arange(config.context_length)[:, None] * config.rope_theta**-exponents
    return {"cosines": np.cos(angles).astype(np.float32), "sines": np.sin(angles).astype(np.float32)}
