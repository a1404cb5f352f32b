"""The Qwen2 backbone without embedding and head, as a graph that reads prompts fast.

In: an open checkpoint. Out: ``prefill.onnx`` and ``prefill.onnx.data``: inputs_embeds float32 [1, n, H] and
the keys and values of what came before -> keys and values float32 [1, kv_heads, positions, head_dim] of each
layer, keys after RoPE. There are no logits: the last token of a prompt is llama.cpp's, and gives them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from onevision.files import disk_space, scratch_folder
from onevision.graphs.kernels import Kernels, Linear
from onevision.graphs.nodes import CONTRIB
from onevision.runtime.prefill.graph import EMBEDS, LENGTH, PAST, PRESENT, SEQLENS

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, BinaryIO

    import numpy.typing as npt
    import onnx

    from onevision.export.checkpoint import Checkpoint
    from onevision.export.config import TextConfig
    from onevision.graphs.kernels import Precision

    Array = npt.NDArray[np.float32]
    from onevision.progress import Advance

PrefillPrecision = Literal["int8", "fp32"]

#: A step per token: one token with large activations does not spoil the others, and a prompt cut in other
#: places gives the same.
_PRODUCTS: dict[PrefillPrecision, Precision] = {"int8": "int8-token", "fp32": "fp32"}
_WEIGHT_BYTES: dict[PrefillPrecision, int] = {"int8": 1, "fp32": 4}

_OPSET = 21  # QuantizeLinear with a step per block
_IR_VERSION = 10
_PREFIX = "model.language_model.layers"


def export_prefill(
    checkpoint: Checkpoint,
    path: Path,
    *,
    precision: PrefillPrecision = "int8",
    advance: Advance | None = None,
) -> None:
    """Write the graph to ``path`` and its matrices to ``<name>.data`` beside it.

    Args:
        checkpoint: Only the backbone's layers are read, a module at a time.
        path: The ONNX file to make or replace.
        precision: Of the products with weights; attention and norms are in fp32.
        advance: Told the fraction of the layers that is written.

    Raises:
        ExportError: The disk is full.
    """
    data_path = path.with_name(f"{path.name}.data")
    text = checkpoint.config.text
    needed = _weights(text) * _WEIGHT_BYTES[precision] + 4 * text.context_length * text.head_dim
    with disk_space(path.absolute().parent, needed), scratch_folder(path) as scratch:
        part, data_part = scratch / path.name, scratch / data_path.name
        with data_part.open("wb") as data:
            graph = _Graph(checkpoint, precision, data, data_path.name)
            model = graph.model(advance)
        part.write_bytes(model.SerializeToString(deterministic=True))
        data_part.replace(data_path)
        part.replace(path)


def _weights(text: TextConfig) -> int:
    """Elements of all matrices; what the last layer leaves out is little."""
    projections = 2 * text.hidden_size * (text.hidden_size + text.kv_heads * text.head_dim)
    return text.layers * (projections + 3 * text.hidden_size * text.intermediate_size)


class _Graph(Kernels):
    """The layers, one after the other. The last one ends with its keys and values."""

    def __init__(
        self, checkpoint: Checkpoint, precision: PrefillPrecision, data: BinaryIO, location: str
    ) -> None:
        super().__init__(data, location)
        self._checkpoint, self._text = checkpoint, checkpoint.config.text
        self._precision = _PRODUCTS[precision]

    def model(self, advance: Advance | None) -> onnx.ModelProto:
        """All of it."""
        from onnx import TensorProto, helper

        text = self._text
        angles = [self.constant(name, values) for name, values in _rope(text).items()]
        stream, branch = EMBEDS, ""
        for layer in range(text.layers):
            x, stream = self._norm(stream, branch, f"{layer}.input_layernorm")
            if layer == text.layers - 1:
                self._keys_and_values(x, layer, angles)
            else:
                branch = self._attention_block(x, layer, angles)
                x, stream = self._norm(stream, branch, f"{layer}.post_attention_layernorm")
                branch = self._mlp(x, layer)
            if advance:
                advance((layer + 1) / text.layers)
        floats, integers = TensorProto.FLOAT, TensorProto.INT32
        ends = {
            kind: [
                helper.make_tensor_value_info(
                    name.format(part, layer), floats, [1, text.kv_heads, positions, text.head_dim]
                )
                for layer in range(text.layers)
                for part in ("key", "value")
            ]
            for kind, name, positions in (("in", PAST, "past"), ("out", PRESENT, "positions"))
        }
        inputs = [
            helper.make_tensor_value_info(EMBEDS, floats, [1, "n", text.hidden_size]),
            helper.make_tensor_value_info(SEQLENS, integers, [1]),
            helper.make_tensor_value_info(LENGTH, integers, [1]),
            *ends["in"],
        ]
        return helper.make_model(
            helper.make_graph(self.nodes, "prefill", inputs, ends["out"], self.initializers),
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)],
            ir_version=_IR_VERSION,
            producer_name="onevision",
        )

    def _norm(self, stream: str, branch: str, module: str) -> tuple[str, str]:
        """The sum of stream and branch, normalised, and the sum itself; without a branch, of the stream."""
        weight = self.constant(f"{module}.weight", self._tensor(f"{module}.weight"))
        epsilon = self._text.rms_norm_eps
        if not branch:
            return self.add("SimplifiedLayerNormalization", stream, weight, axis=-1, epsilon=epsilon), stream
        outputs = (f"{module}.out", "", "", f"{module}.sum")
        inputs = (stream, branch, weight)
        self._node("SkipSimplifiedLayerNormalization", inputs, outputs, epsilon=epsilon)
        return outputs[0], outputs[3]

    def _attention_block(self, x: str, layer: int, angles: list[str]) -> str:
        qkv = self._linear(x, f"{layer}.self_attn", ("q_proj", "k_proj", "v_proj"))
        mixed = self._attention((qkv, "", ""), layer, angles, self._text.heads)
        return self._linear(mixed, f"{layer}.self_attn", ("o_proj",))

    def _keys_and_values(self, x: str, layer: int, angles: list[str]) -> None:
        """Keys and values alone. The keys stand in for the queries, and nobody reads the result."""
        key, value = (self._linear(x, f"{layer}.self_attn", (part,)) for part in ("k_proj", "v_proj"))
        self._attention((key, key, value), layer, angles, self._text.kv_heads)

    def _attention(self, qkv: tuple[str, str, str], layer: int, angles: list[str], heads: int) -> str:
        past, present = ([name.format(part, layer) for part in ("key", "value")] for name in (PAST, PRESENT))
        output = f"{layer}.attention"
        self._node(
            "GroupQueryAttention",
            (*qkv, *past, SEQLENS, LENGTH, *angles),
            (output, *present),
            num_heads=heads,
            kv_num_heads=self._text.kv_heads,
            do_rotary=1,
        )
        return output

    def _mlp(self, x: str, layer: int) -> str:
        # Two products: one for both would have to be split, which costs more than it gains.
        gate, up = (self._linear(x, f"{layer}.mlp", (part,)) for part in ("gate_proj", "up_proj"))
        silu = self.add("QuickGelu", gate, domain=CONTRIB, alpha=1.0)
        return self._linear(self.add("Mul", silu, up), f"{layer}.mlp", ("down_proj",))

    def _linear(self, x: str, module: str, parts: tuple[str, ...]) -> str:
        """Modules with the same input, in one product."""
        name = f"{module}.{'+'.join(parts)}"
        # Stored [out, in] and multiplied by [in, out].
        weight = np.concatenate([self._tensor(f"{module}.{part}.weight") for part in parts]).T
        biased = f"{_PREFIX}.{module}.{parts[0]}.bias" in self._checkpoint.names
        bias = np.concatenate([self._tensor(f"{module}.{part}.bias") for part in parts]) if biased else None
        return self.linear(x, Linear(name, np.ascontiguousarray(weight), bias), self._precision)

    def _node(self, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attributes: Any) -> None:  # noqa: ANN401
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], domain=CONTRIB, **attributes))

    def _tensor(self, name: str) -> Array:
        array: Array = self._checkpoint.tensor(f"{_PREFIX}.{name}").float().numpy()
        return array


def _rope(text: TextConfig) -> dict[str, Array]:
    """Cosines and sines of all positions, float32 [context, head_dim / 2]."""
    exponents = np.arange(0, text.head_dim, 2) / text.head_dim
    angles = np.arange(text.context_length)[:, None] * text.rope_theta**-exponents
    return {"cosines": np.cos(angles).astype(np.float32), "sines": np.sin(angles).astype(np.float32)}
