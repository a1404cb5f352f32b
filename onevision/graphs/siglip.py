"""A tower's graph, written anew: fused, and with each product in the precision of a plan.

In: a :class:`~onevision.graphs.tower.Tower` and a :class:`Plan`. Out: ``vision.onnx`` with its data file, of
the same input and output. What the exporter spells out in 87 nodes a layer is said in 18 here: one Gelu, one
MultiHeadAttention, no shapes computed at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from onevision.graphs.kernels import Attention, Kernels, Linear
from onevision.graphs.names import FEATURES, PIXELS
from onevision.graphs.nodes import CONTRIB

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import BinaryIO

    import numpy.typing as npt

    from onevision.graphs.kernels import Precision
    from onevision.graphs.tower import Tower

    Array = npt.NDArray[np.float32]
    from onevision.progress import Advance

Watch = Literal["ranges", "errors"]

_OPSET = 21  # QuantizeLinear with a step per block
_IR_VERSION = 10
_ONE = np.ones(1, np.float32)
_AS_THEY_ARE = np.array([[0], [1]], np.float32)


@dataclass(frozen=True, eq=False)
class Plan:
    """How the products of a tower are computed, see :func:`products`.

    Attributes:
        precision: By product; what is not named is in fp32. Attention has no ``int8-token``.
        means: By product, float32 [in]: the mean of its input before it is divided by the scales.
        scales: By product, float32 [in]: what each channel of its input is divided by, and each row of its
            weight multiplied. Without effect in exact arithmetic.
        keys: By attention, float32 [2, hidden]: what is taken off each channel of the keys, which softmax
            does not see; then what they are divided by, and the queries multiplied.
    """

    precision: Mapping[str, Precision] = field(default_factory=dict)
    means: Mapping[str, Array] = field(default_factory=dict)
    scales: Mapping[str, Array] = field(default_factory=dict)
    keys: Mapping[str, Array] = field(default_factory=dict)


def products(tower: Tower) -> list[str]:
    """Names of what can be quantised, in the order in which it runs."""
    parts = ("qkv", "attention", "out_proj", "fc1", "fc2")
    layers = [f"layers.{layer}.{part}" for layer in range(tower.layers) for part in parts]
    return [*layers, "projector.linear_1", "projector.linear_2"]


def modules(product: str) -> list[str]:
    """Names of a product's weights, without ``.weight``."""
    place, _, part = product.rpartition(".")
    if place == "projector":
        return [f"multi_modal_projector.{part}"]
    inside = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention": (),
        "out_proj": ("self_attn.out_proj",),
        "fc1": ("mlp.fc1",),
        "fc2": ("mlp.fc2",),
    }[part]
    return [f"encoder.{place}.{module}" for module in inside]


def write_encoder(
    tower: Tower, plan: Plan, path: Path, *, watch: Watch | None = None, advance: Advance | None = None
) -> None:
    """Write the graph to ``path`` and its matrices to ``<name>.data`` beside it.

    Args:
        tower: What to write; its matrices are read one at a time.
        plan: How.
        path: The ONNX file to make. A failure leaves it half made: write to a scratch folder.
        watch: More outputs. ``ranges``: for the input of each product, and for queries, keys and values,
            ``<name>:max``, ``:min``, ``:sum`` and ``:squares`` over tiles and patches, float32 [channels].
            ``errors``: everything is computed in fp32, and each module in all other precisions besides.
            ``<product>/<module>:<precision>`` is the sum of the squares of what it then differs by,
            ``:fp32`` that of its result, ``<product>:residual`` that of the stream it is added to.
        advance: Told the fraction of the weights that is written.

    Raises:
        QuantError: Weights that cannot be read, or are not finite.
        OSError: The operating system refused a write.
    """
    from onnx import TensorProto, helper

    data_path = path.with_name(f"{path.name}.data")
    with data_path.open("wb") as data:
        graph = _Graph(tower, plan, data, data_path.name, watch, advance)
        graph.encoder()
    side = tower.image_size
    outputs = [
        helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["tiles", tower.patches, tower.features]),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in graph.watched),
    ]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vision",
            [helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, ["tiles", 3, side, side])],
            outputs,
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)],
        ir_version=_IR_VERSION,
        producer_name="onevision",
    )
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Graph(Kernels):
    """The tower and its projector, block by block."""

    def __init__(
        self,
        tower: Tower,
        plan: Plan,
        data: BinaryIO,
        location: str,
        watch: Watch | None,
        advance: Advance | None,
    ) -> None:
        super().__init__(data, location)
        self.watched: list[str] = []
        self._tower, self._plan, self._watch, self._progress = tower, plan, watch, advance
        self._written = 0

    def encoder(self) -> None:
        """All of it."""
        stream = self._embeddings()
        for layer in range(self._tower.layers):
            stream = self._attention_block(stream, layer)
            stream = self._mlp_block(stream, layer)
        x = self._divided(stream, "projector.linear_1")
        hidden = self._linear(x, "multi_modal_projector.linear_1", "projector.linear_1")
        x = self._divided(self.add("Gelu", hidden), "projector.linear_2")
        self._linear(
            x, "multi_modal_projector.linear_2", "projector.linear_2", after_gelu=True, output=FEATURES
        )

    def _embeddings(self) -> str:
        tower, module = self._tower, "embeddings.patch_embedding"
        square = [tower.patch_size] * 2
        weights = [self._weight(f"{module}.{leaf}") for leaf in ("weight", "bias")]
        planes = self.add("Conv", PIXELS, *weights, kernel_shape=square, strides=square)
        flat = self.add("Reshape", planes, self.integers(0, tower.hidden, tower.patches))
        patches = self.add("Transpose", flat, perm=[0, 2, 1])
        return self.add("Add", patches, self._weight("embeddings.position_embedding.weight"))

    def _attention_block(self, stream: str, layer: int) -> str:
        name, module = f"layers.{layer}", f"encoder.layers.{layer}.self_attn"
        x = self._norm(stream, f"encoder.layers.{layer}.layer_norm1", f"{name}.qkv")
        shift, stretch = self._plan.keys.get(f"{name}.attention", _AS_THEY_ARE)
        squeeze = self._plan.scales.get(f"{name}.out_proj", _ONE)
        root = np.float32(self._tower.head_size**-0.5)
        query = self._linear(x, f"{module}.q_proj", f"{name}.qkv", times=stretch * root)
        key = self._linear(x, f"{module}.k_proj", f"{name}.qkv", minus=shift, times=_ONE / stretch)
        value = self._linear(x, f"{module}.v_proj", f"{name}.qkv", times=_ONE / squeeze)
        mixed = self._attention(query, key, value, f"{name}.attention")
        self._ranges(mixed, f"{name}.out_proj")
        out = self._linear(mixed, f"{module}.out_proj", f"{name}.out_proj")
        return self._residual(stream, out, f"{name}.out_proj")

    def _mlp_block(self, stream: str, layer: int) -> str:
        name, module = f"layers.{layer}", f"encoder.layers.{layer}.mlp"
        x = self._norm(stream, f"encoder.layers.{layer}.layer_norm2", f"{name}.fc1")
        hidden = self._linear(x, f"{module}.fc1", f"{name}.fc1")
        x = self._divided(self.add("Gelu", hidden, approximate="tanh"), f"{name}.fc2")
        out = self._linear(x, f"{module}.fc2", f"{name}.fc2", after_gelu=True)
        return self._residual(stream, out, f"{name}.fc2")

    def _norm(self, x: str, module: str, product: str) -> str:
        """A layer norm, whose output is divided by the product's scales."""
        scale = self._plan.scales.get(product, _ONE)
        weights = [
            self.constant(f"{module}.{leaf}", self._tower.tensor(f"{module}.{leaf}") / scale)
            for leaf in ("weight", "bias")
        ]
        out = self.add("LayerNormalization", x, *weights, epsilon=self._tower.epsilon)
        self._ranges(out, product)
        return out

    def _divided(self, x: str, product: str) -> str:
        """The input of a product that comes from nothing that could take up the scales."""
        if product in self._plan.scales:
            x = self.add("Mul", x, self.constant(f"{product}.scale", 1 / self._plan.scales[product]))
        self._ranges(x, product)
        return x

    def _linear(
        self,
        x: str,
        module: str,
        product: str,
        *,
        minus: Array | float = 0,
        times: Array | float = 1,
        after_gelu: bool = False,
        output: str | None = None,
    ) -> str:
        """A product with a weight; ``minus`` and ``times`` move and scale its columns for what comes next."""
        rows = self._plan.scales.get(product, _ONE)
        weight = self._tower.tensor(f"{module}.weight") * rows[:, None] * np.float32(times)
        bias = (self._tower.tensor(f"{module}.bias") - np.float32(minus)) * np.float32(times)
        self._tell(weight.nbytes)
        mean = self._plan.means.get(product)
        linear = Linear(module, weight, bias, None if mean is None else mean / rows, after_gelu)
        if self._watch != "errors":
            return self.linear(x, linear, self._plan.precision.get(product, "fp32"), output)
        exact = self.linear(x, linear, "fp32")
        others: list[Precision] = ["int8", "int8-token"]
        self._errors(f"{product}/{module}", exact, {name: self.linear(x, linear, name) for name in others})
        return self.add("Identity", exact, output=output)

    def _attention(self, query: str, key: str, value: str, product: str) -> str:
        for letter, x in zip("qkv", (query, key, value), strict=True):
            self._ranges(x, f"{product}.{letter}")
        shape = Attention(self._tower.heads, self._tower.hidden, self._tower.patches)
        if self._watch != "errors":
            precision = self._plan.precision.get(product, "fp32")
            return self.attention(query, key, value, shape, precision)
        exact = self.attention(query, key, value, shape, "fp32")
        self._errors(
            f"{product}/attention", exact, {"int8": self.attention(query, key, value, shape, "int8")}
        )
        return exact

    def _residual(self, stream: str, branch: str, product: str) -> str:
        total = self.add("Add", stream, branch)
        if self._watch == "errors":
            self._square(total, f"{product}:residual")
        return total

    # What is watched.

    def _ranges(self, x: str, name: str) -> None:
        if self._watch != "ranges":
            return
        kinds = {"max": "ReduceMax", "min": "ReduceMin", "sum": "ReduceSum", "squares": "ReduceSumSquare"}
        for kind, op in kinds.items():
            self.watched.append(self.add(op, x, self.integers(0, 1), output=f"{name}:{kind}", keepdims=0))

    def _errors(self, name: str, exact: str, others: Mapping[str, str]) -> None:
        self._square(exact, f"{name}:fp32")
        for precision, other in others.items():
            self._square(self.add("Sub", other, exact), f"{name}:{precision}")

    def _square(self, x: str, name: str) -> None:
        self.watched.append(self.add("ReduceSumSquare", x, output=name, keepdims=0))

    # Weights.

    def _weight(self, name: str) -> str:
        return self.constant(name, self._tower.tensor(name))

    def _tell(self, done: int) -> None:
        self._written += done
        if self._progress:
            self._progress(min(1.0, self._written / self._tower.weight_bytes))
