"""An exported vision encoder, read back as what it is: sizes, and weights by the names of its modules.

In: ``vision.onnx`` and its data file as :mod:`onevision.export.vision` writes them, in fp32 or fp16. Out: a
:class:`Tower`, which maps a matrix when it is asked for. Neither the checkpoint nor torch is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.errors import QuantError
from onevision.graphs.names import FEATURES, PIXELS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnx

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_LAYER_WEIGHTS = {
    f"{module}.{leaf}"
    for module in (
        "layer_norm1",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    )
    for leaf in ("weight", "bias")
}
_OTHER_WEIGHTS = {
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embedding.bias",
    "embeddings.position_embedding.weight",
    "multi_modal_projector.linear_1.weight",
    "multi_modal_projector.linear_1.bias",
    "multi_modal_projector.linear_2.weight",
    "multi_modal_projector.linear_2.bias",
}
_HINT = "quantise a bundle that was exported with --vision fp32 or fp16"


@dataclass(frozen=True, eq=False)
class Tower:
    """A SigLIP tower with its projector. Matrices are stored as they are multiplied by, [in, out]."""

    path: Path
    image_size: int  # S, pixels per side of a tile
    patch_size: int
    patches: int  # P, of a tile
    hidden: int  # width of the residual stream
    heads: int
    layers: int
    features: int  # H, width of an image feature
    epsilon: float  # of all layer norms
    _tensors: Mapping[str, onnx.TensorProto]

    @classmethod
    def read(cls, path: Path) -> Tower:
        """Read the graph, and leave the matrices where they are.

        Raises:
            QuantError: No file, not an ONNX file, or a graph that the export does not write.
        """
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        try:
            graph = onnx.load(path, load_external_data=False).graph
        except (OSError, DecodeError) as error:
            raise QuantError(
                f"cannot read {path}: {error}", hint="copy or export the bundle again"
            ) from error
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        layers = 1 + max((int(match[1]) for name in tensors if (match := _LAYER.match(name))), default=-1)
        wanted = _OTHER_WEIGHTS | {
            f"encoder.layers.{layer}.{leaf}" for layer in range(layers) for leaf in _LAYER_WEIGHTS
        }
        ends = [value.name for value in (*graph.input, *graph.output)]
        if not layers or set(tensors) != wanted or ends != [PIXELS, FEATURES]:
            raise QuantError(f"{path} is not a vision encoder as the export writes it", hint=_HINT)
        hidden, _, patch_size, _ = tensors["embeddings.patch_embedding.weight"].dims
        head_size = round(_attention_scale(graph, path) ** -2)
        return cls(
            path=path,
            image_size=graph.input[0].type.tensor_type.shape.dim[2].dim_value,
            patch_size=patch_size,
            patches=tensors["embeddings.position_embedding.weight"].dims[0],
            hidden=hidden,
            heads=hidden // head_size,
            layers=layers,
            features=tensors["multi_modal_projector.linear_2.weight"].dims[1],
            epsilon=_epsilon(graph),
            _tensors=tensors,
        )

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.hidden // self.heads

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in fp32."""
        return 4 * sum(int(np.prod(tensor.dims)) for tensor in self._tensors.values())

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """A weight in fp32, mapped from the file where it is stored so.

        Raises:
            QuantError: The data file is missing or short, or the weight is not finite.
        """
        from onnx import helper, numpy_helper

        tensor = self._tensors[name]
        if tensor.external_data:
            place = {entry.key: entry.value for entry in tensor.external_data}
            data = self.path.with_name(place["location"])
            try:
                stored: npt.NDArray[Any] = np.memmap(
                    data,
                    helper.tensor_dtype_to_np_dtype(tensor.data_type),
                    "r",
                    int(place["offset"]),
                    tuple(tensor.dims),
                )
            except (OSError, ValueError) as error:
                raise QuantError(
                    f"cannot read {name} from {data}: {error}", hint="copy or export the bundle again"
                ) from error
        else:
            stored = numpy_helper.to_array(tensor)
        if not np.isfinite(stored).all():
            raise QuantError(
                f"{self.path} is damaged: {name} is not finite", hint="fetch the checkpoint and export again"
            )
        return stored.astype(np.float32, copy=False)


def _attention_scale(graph: onnx.GraphProto, path: Path) -> float:
    """What attention scores are multiplied by: head_size ** -0.5. The graph holds no other trace of heads."""
    from onnx import numpy_helper

    made_by = {node.output[0]: node for node in graph.node}
    softmax = next((node for node in graph.node if node.op_type == "Softmax"), None)
    scaling = made_by.get(softmax.input[0]) if softmax else None
    factor = made_by.get(scaling.input[1]) if scaling and scaling.op_type == "Mul" else None
    if factor is None or factor.op_type != "Constant":
        raise QuantError(f"{path} is not a vision encoder as the export writes it", hint=_HINT)
    return float(numpy_helper.to_array(factor.attribute[0].t))


def _epsilon(graph: onnx.GraphProto) -> float:
    norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
    return next(float(attribute.f) for attribute in norm.attribute if attribute.name == "epsilon")
