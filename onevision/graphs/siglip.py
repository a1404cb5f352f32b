"""The vision encoder's graph: SigLIP with its projector, in fp32, fp16 or int8.

In: a :class:`Siglip`, sizes and weights. Out: ``vision.onnx`` and ``vision.onnx.data``: pixel_values float32
[tiles, 3, S, S] -> image_features float32 [tiles, P, H]. The feature is the output of the last layer before
``post_layernorm``, projected.

Attention is ONNX Runtime's MultiHeadAttention: a tile of the 0.5b tower takes 0.90 of the time of the graph
that torch's exporter writes (2.90 s and 3.22 s on one core). Measured and no faster: one matmul for queries,
keys and values (0.93), biases inside MultiHeadAttention (0.91), ai.onnx Attention (0.92), com.microsoft
Attention (0.95), FastGelu (0.95; with the bias 0.93), SkipLayerNormalization (0.96), FusedMatMul (0.92), Gemm
(0.94).

In fp16 all weights and values are float16, for GPUs. On a CPU, ONNX Runtime converts the weights to float32
when it loads the graph: 1 to 3 s and 2 GB of memory, where fp32 maps its file in 0.05 s; a tile takes the
same time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from onevision.errors import ExportError
from onevision.graphs.kernels import Attention, Kernels, Linear, MatmulPrecision
from onevision.graphs.nodes import FEATURES, PIXELS, PRECISION, float_value, write_graph
from onevision.models.shapes import VisionConfig
from onevision.precisions import VisionPrecision
from onevision.progress import Advance

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[np.float32]

Watch = Literal["ranges", "errors"]

#: Names of weights in a checkpoint, and of the graph's initializers.
TOWER = "model.vision_tower.vision_model."
PROJECTOR = "model.multi_modal_projector."
POSITIONS = f"{TOWER}embeddings.position_embedding.weight"
#: Key of the model's metadata with the encoder's sizes.
SIZES = "onevision.encoder"

_FLOATS: dict[VisionPrecision, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}
_ONE = np.ones(1, np.float32)
_UNCHANGED = np.array([[0], [1]], np.float32)


@dataclass(frozen=True, eq=False)
class Siglip:
    """A vision encoder.

    Attributes:
        shape: Sizes of the tower.
        features: H, width of an image feature.
        tensor: Reads a weight by its name in the checkpoint, in any float type; matrices are [out, in].
    """

    shape: VisionConfig
    features: int
    tensor: Callable[[str], npt.NDArray[Any]]

    @property
    def weights(self) -> int:
        """Elements of all matrices."""
        shape, hidden = self.shape, self.shape.hidden_size
        embeddings = hidden * (3 * shape.patch_size**2 + shape.patches)
        layers = shape.layers * hidden * (4 * hidden + 2 * shape.intermediate_size)
        return embeddings + layers + self.features * (hidden + self.features)

    def sizes(self) -> str:
        """Text of the sizes, for a model's metadata."""
        return json.dumps({**asdict(self.shape), "features": self.features})


@dataclass(frozen=True, eq=False)
class EncoderPlan:
    """Precisions and smoothing scales of an encoder, by the names of :func:`matmuls`.

    Attributes:
        precision: Precisions other than fp32. Attention has no ``int8-token``.
        means: float32 [in]: mean of the input, before it is divided by the smoothing scales.
        scales: float32 [in]: smoothing scales. Each channel of the input is divided by its scale, and the
            weight's row multiplied; without effect in exact arithmetic.
        keys: By attention, float32 [2, hidden]: what is subtracted from each channel of the keys, without
            effect on the softmax; then what they are divided by, and the queries multiplied.
    """

    precision: Mapping[str, MatmulPrecision] = field(default_factory=dict)
    means: Mapping[str, Array] = field(default_factory=dict)
    scales: Mapping[str, Array] = field(default_factory=dict)
    keys: Mapping[str, Array] = field(default_factory=dict)


def matmuls(shape: VisionConfig) -> list[str]:
    """Names of the matmuls that can be quantized, in the order in which they run."""
    parts = ("qkv", "attention", "out_proj", "fc1", "fc2")
    layers = [f"layers.{layer}.{part}" for layer in range(shape.layers) for part in parts]
    return [*layers, "projector.linear_1", "projector.linear_2"]


def modules(matmul: str) -> list[str]:
    """Names of a matmul's weights in the checkpoint, without ``.weight``."""
    place, _, part = matmul.rpartition(".")
    if place == "projector":
        return [f"{PROJECTOR}{part}"]
    inside = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention": (),
        "out_proj": ("self_attn.out_proj",),
        "fc1": ("mlp.fc1",),
        "fc2": ("mlp.fc2",),
    }[part]
    return [f"{TOWER}encoder.{place}.{module}" for module in inside]


def write_siglip(
    path: Path,
    siglip: Siglip,
    *,
    precision: VisionPrecision = "fp32",
    plan: EncoderPlan | None = None,
    watch: Watch | None = None,
    advance: Advance | None = None,
) -> None:
    """Write the graph to ``path`` and its matrices to ``<name>.data`` beside it.

    Args:
        path: The ONNX file to create or replace.
        siglip: The encoder; its matrices are read one at a time.
        precision: Float type of the graph.
        plan: Which matmuls are quantized, and how; only with fp32.
        watch: Additional outputs. ``ranges``: for the input of each matmul, and for queries, keys and values,
            ``<name>:max``, ``:min``, ``:sum`` and ``:squares`` over tiles and patches, float32 [channels].
            ``errors``: everything is computed in fp32, and each module in all other precisions besides.
            ``<matmul>/<module>:<precision>`` is the sum of the squares of the difference to fp32, ``:fp32``
            that of its result, ``<matmul>:residual`` that of the stream it is added to.
        advance: Receives the fraction of the weights that is written.

    Raises:
        ExportError: The disk is full, or a weight does not fit in fp16.
    """

    def build(data: BinaryIO, location: str) -> onnx.ModelProto:
        graph = _Graph(data, location, siglip, precision, plan or EncoderPlan(), watch, advance)
        return graph.finish()

    most = 5 if watch == "errors" else np.dtype(_FLOATS[precision]).itemsize  # bytes per weight
    write_graph(path, most * siglip.weights, build)


class _Graph(Kernels):
    """The tower and its projector, block by block."""

    def __init__(
        self,
        data: BinaryIO,
        location: str,
        siglip: Siglip,
        precision: VisionPrecision,
        plan: EncoderPlan,
        watch: Watch | None,
        advance: Advance | None,
    ) -> None:
        super().__init__(data, location)
        self._siglip, self._shape, self._float = siglip, siglip.shape, _FLOATS[precision]
        self._plan, self._watch, self._advance = plan, watch, advance
        self._watched: list[str] = []
        self._written = 0

    def finish(self) -> onnx.ModelProto:
        """The whole graph."""
        from onnx import TensorProto

        shape = self._shape
        stream = self._embeddings()
        for layer in range(shape.layers):
            stream = self._attention_block(stream, layer)
            stream = self._mlp_block(stream, layer)
        x = self._smoothed(stream, "projector.linear_1")
        hidden = self._linear(x, f"{PROJECTOR}linear_1", "projector.linear_1")
        x = self._smoothed(self.add("Gelu", hidden), "projector.linear_2")
        half = self._float is np.float16
        name = None if half else FEATURES
        out = self._linear(x, f"{PROJECTOR}linear_2", "projector.linear_2", after_gelu=True, output=name)
        if half:
            self.add("Cast", out, to=TensorProto.FLOAT, output=FEATURES)
        return self.model(
            "vision",
            [float_value(PIXELS, "tiles", 3, shape.image_size, shape.image_size)],
            [
                float_value(FEATURES, "tiles", shape.patches, self._siglip.features),
                *map(float_value, self._watched),
            ],
            {SIZES: self._siglip.sizes(), PRECISION: "fp16" if half else "fp32"},
        )

    def _embeddings(self) -> str:
        from onnx import TensorProto

        shape, module = self._shape, f"{TOWER}embeddings.patch_embedding"
        square = [shape.patch_size] * 2
        weights = [self._weight(f"{module}.{leaf}") for leaf in ("weight", "bias")]
        half = self._float is np.float16
        pixels = self.add("Cast", PIXELS, to=TensorProto.FLOAT16) if half else PIXELS
        planes = self.add("Conv", pixels, *weights, kernel_shape=square, strides=square)
        flat = self.add("Reshape", planes, self.integers(0, shape.hidden_size, shape.patches))
        patches = self.add("Transpose", flat, perm=[0, 2, 1])
        return self.add("Add", patches, self._weight(POSITIONS))

    def _attention_block(self, stream: str, layer: int) -> str:
        name, module = f"layers.{layer}", f"{TOWER}encoder.layers.{layer}"
        x = self._norm(stream, f"{module}.layer_norm1", f"{name}.qkv")
        shift, stretch = self._plan.keys.get(f"{name}.attention", _UNCHANGED)
        squeeze = self._plan.scales.get(f"{name}.out_proj", _ONE)
        query = self._linear(x, f"{module}.self_attn.q_proj", f"{name}.qkv", times=stretch)
        key = self._linear(x, f"{module}.self_attn.k_proj", f"{name}.qkv", minus=shift, times=_ONE / stretch)
        value = self._linear(x, f"{module}.self_attn.v_proj", f"{name}.qkv", times=_ONE / squeeze)
        mixed = self._attention(query, key, value, f"{name}.attention")
        self._watch_range(mixed, f"{name}.out_proj")
        out = self._linear(mixed, f"{module}.self_attn.out_proj", f"{name}.out_proj")
        return self._residual(stream, out, f"{name}.out_proj")

    def _mlp_block(self, stream: str, layer: int) -> str:
        name, module = f"layers.{layer}", f"{TOWER}encoder.layers.{layer}"
        x = self._norm(stream, f"{module}.layer_norm2", f"{name}.fc1")
        hidden = self._linear(x, f"{module}.mlp.fc1", f"{name}.fc1")
        x = self._smoothed(self.add("Gelu", hidden, approximate="tanh"), f"{name}.fc2")
        out = self._linear(x, f"{module}.mlp.fc2", f"{name}.fc2", after_gelu=True)
        return self._residual(stream, out, f"{name}.fc2")

    def _norm(self, x: str, module: str, matmul: str) -> str:
        """A layer norm whose output is divided by the matmul's smoothing scales."""
        scale = self._plan.scales.get(matmul, _ONE)
        weights = [self._weight(f"{module}.{leaf}", _ONE / scale) for leaf in ("weight", "bias")]
        out = self.add("LayerNormalization", x, *weights, epsilon=self._shape.layer_norm_eps)
        self._watch_range(out, matmul)
        return out

    def _smoothed(self, x: str, matmul: str) -> str:
        """The input of a matmul, divided by its smoothing scales where no weight before it can do that."""
        if matmul in self._plan.scales:
            x = self.add("Mul", x, self.constant(f"{matmul}.scale", 1 / self._plan.scales[matmul]))
        self._watch_range(x, matmul)
        return x

    def _linear(
        self,
        x: str,
        module: str,
        matmul: str,
        *,
        minus: Array | float = 0,
        times: Array | float = 1,
        after_gelu: bool = False,
        output: str | None = None,
    ) -> str:
        """A matmul with a weight; ``minus`` and ``times`` shift and scale its columns."""
        rows = self._plan.scales.get(matmul, _ONE)
        weight = self._read(f"{module}.weight").T * rows[:, None] * np.float32(times)
        bias = (self._read(f"{module}.bias") - np.float32(minus)) * np.float32(times)
        mean = self._plan.means.get(matmul)
        linear = Linear(
            module,
            self._fit(f"{module}.weight", weight),
            self._fit(f"{module}.bias", bias),
            None if mean is None else mean / rows,
            after_gelu,
        )
        if self._watch != "errors":
            return self.linear(x, linear, self._plan.precision.get(matmul, "fp32"), output)
        exact = self.linear(x, linear, "fp32", output)
        others: list[MatmulPrecision] = ["int8", "int8-token"]
        self._watch_errors(
            f"{matmul}/{module}", exact, {name: self.linear(x, linear, name) for name in others}
        )
        return exact

    def _attention(self, query: str, key: str, value: str, matmul: str) -> str:
        for letter, x in zip("qkv", (query, key, value), strict=True):
            self._watch_range(x, f"{matmul}.{letter}")
        shape = Attention(self._shape.heads, self._shape.hidden_size, self._shape.patches)
        if self._watch != "errors":
            return self.attention(query, key, value, shape, self._plan.precision.get(matmul, "fp32"))
        exact = self.attention(query, key, value, shape, "fp32")
        self._watch_errors(
            f"{matmul}/attention", exact, {"int8": self.attention(query, key, value, shape, "int8")}
        )
        return exact

    def _residual(self, stream: str, branch: str, matmul: str) -> str:
        total = self.add("Add", stream, branch)
        if self._watch == "errors":
            self._watch_square(total, f"{matmul}:residual")
        return total

    # Watched values.

    def _watch_range(self, x: str, name: str) -> None:
        if self._watch != "ranges":
            return
        kinds = {"max": "ReduceMax", "min": "ReduceMin", "sum": "ReduceSum", "squares": "ReduceSumSquare"}
        for kind, op in kinds.items():
            self._watched.append(self.add(op, x, self.integers(0, 1), output=f"{name}:{kind}", keepdims=0))

    def _watch_errors(self, name: str, exact: str, others: Mapping[str, str]) -> None:
        self._watch_square(exact, f"{name}:fp32")
        for precision, other in others.items():
            self._watch_square(self.add("Sub", other, exact), f"{name}:{precision}")

    def _watch_square(self, x: str, name: str) -> None:
        self._watched.append(self.add("ReduceSumSquare", x, output=name, keepdims=0))

    # Weights.

    def _weight(self, name: str, times: Array | float = 1) -> str:
        """A weight in the layout of the checkpoint, multiplied."""
        return self.constant(name, self._fit(name, self._read(name) * np.float32(times)))

    def _read(self, name: str) -> Array:
        tensor: Array = self._siglip.tensor(name).astype(np.float32, copy=False)
        self._written += tensor.size if tensor.ndim > 1 else 0
        if self._advance:
            self._advance(self._written / self._siglip.weights)
        return tensor

    def _fit(self, name: str, weight: Array) -> npt.NDArray[Any]:
        """The weight in the graph's float type."""
        with np.errstate(over="ignore"):
            fit = weight.astype(self._float, copy=False)
        if self._float is np.float16 and not np.isfinite(fit).all():
            raise ExportError(
                f"{name} does not fit in fp16: it reaches {np.abs(weight).max():.3g}",
                hint="choose --vision fp32 or int8",
            )
        return fit
