"""SigLIP tower and projector to ONNX.

In: an open checkpoint. Out: ``vision.onnx`` (the graph, and vectors such as biases) and ``vision.onnx.data``
(the matrices, which ONNX Runtime maps): pixel_values float32 [tiles, 3, S, S] -> image_features float32
[tiles, P, H]. The feature is the output of the last layer before ``post_layernorm``, projected.

optimum exports the graph from a model on torch's meta device, which has shapes and no weights; those go from
the checkpoint to the file one at a time. Exported with its weights, the 0.5b tower (1.6 GB) took 7.4 GB of
memory: they were transposed, put into a protobuf and serialised, each time as a copy.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onevision.errors import ExportError
from onevision.files import disk_space, scratch_folder
from onevision.graphs.names import FEATURES, PIXELS
from onevision.proof.reference import siglip_config
from onevision.runtime.vision import VisionEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    import numpy.typing as npt
    import onnx
    import torch

    from onevision.export.checkpoint import Checkpoint
    from onevision.models.shapes import ModelConfig
    from onevision.progress import Advance

VisionPrecision = Literal["fp32", "fp16"]  # those of floats

#: Largest relative error against torch in fp32. In fp16 only the stored matrices are rounded: nothing is lost
#: of an fp16 checkpoint, little of another (7e-4 of a random fp32 tower of the published size).
TOLERANCE: dict[VisionPrecision, float] = {"fp32": 1e-4, "fp16": 5e-3}

_OPSET = 18  # LayerNormalization is one operator since 17
_PAGE = 4096  # each matrix starts on one, to be mapped
_CHECKED_TILES = 2  # in one call, traced with another number: it is free


@dataclass(frozen=True)
class VisionExport:
    """The files written, and how far their features are from torch's on random tiles."""

    path: Path
    data_path: Path
    relative_error: float  # norm of the difference / norm of the features
    max_error: float


def export_vision(
    checkpoint: Checkpoint,
    path: Path,
    *,
    precision: VisionPrecision = "fp32",
    advance: Advance | None = None,
) -> VisionExport:
    """Write tower and projector as ONNX, and compare the result with torch's.

    Args:
        checkpoint: Only the tower's and the projector's tensors are read.
        path: The ONNX file to make or replace. Its matrices go to ``<name>.data`` beside it.
        precision: How the matrices are stored. Input, output and arithmetic are float32 in both.
        advance: Told the fraction of the weights that is written.

    Raises:
        ExportError: The disk is full, a weight does not fit in fp16, or the features are not torch's. The
            files are then not made, and not replaced.
    """
    data_path = path.with_name(f"{path.name}.data")
    with _quiet():
        encoder = _encoder(checkpoint.config)
    needed = sum(weight.numel() for weight in encoder.parameters()) * np.dtype(_STORED[precision]).itemsize
    with disk_space(path.absolute().parent, needed), scratch_folder(path) as scratch:
        part, data_part = scratch / path.name, scratch / data_path.name
        with _quiet():
            model = _export_graph(encoder, checkpoint.config, part)
        with data_part.open("wb") as data:
            writer = WeightWriter(data, data_path.name, precision)
            _add_weights(model, checkpoint, writer, advance)
        part.write_bytes(model.SerializeToString(deterministic=True))
        relative_error, max_error = _errors(encoder, checkpoint, part)
        if not relative_error <= TOLERANCE[precision]:  # nan as well
            raise ExportError(
                f"the ONNX vision encoder is not what torch computes: relative error {relative_error:.1e}, "
                f"{TOLERANCE[precision]:.0e} is allowed",
                hint="use the versions of constraints.txt, or --vision fp32",
            )
        data_part.replace(data_path)
        part.replace(path)
    return VisionExport(path, data_path, relative_error, max_error)


# The model, and its graph.


def _encoder(config: ModelConfig) -> torch.nn.Module:
    """Transformers' tower and projector on the meta device, in fp32: pixel values -> image features."""
    import torch
    from transformers import LlavaOnevisionConfig
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector
    from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipVisionEmbeddings

    # Eager attention is what the reference computes; scaled_dot_product_attention is no faster in the graph.
    whole = LlavaOnevisionConfig(  # type: ignore[no-untyped-call]
        vision_config=siglip_config(config.vision),
        text_config={"model_type": "qwen2", "hidden_size": config.text.hidden_size},
        attn_implementation="eager",
    )

    class Encoder(torch.nn.Module):
        """Parameters are named as in the checkpoint, behind the prefixes of :func:`_checkpoint_name`."""

        def __init__(self) -> None:
            super().__init__()
            self.config = whole.vision_config
            self.embeddings = SiglipVisionEmbeddings(self.config)
            self.encoder = SiglipEncoder(self.config)
            self.multi_modal_projector = LlavaOnevisionMultiModalProjector(whole)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(self.embeddings(pixel_values)).last_hidden_state
            features: torch.Tensor = self.multi_modal_projector(hidden)
            return features

    with torch.device("meta"):
        encoder = Encoder().eval()
    encoder.embeddings.position_ids = torch.arange(config.vision.patches)[None]  # a constant, not a weight
    return encoder


def _checkpoint_name(name: str) -> str:
    is_projector = name.startswith("multi_modal_projector.")
    return f"model.{name}" if is_projector else f"model.vision_tower.vision_model.{name}"


def _export_graph(encoder: torch.nn.Module, config: ModelConfig, path: Path) -> onnx.ModelProto:
    """The graph by optimum's exporter: weights are inputs behind the pixels, named as torch's parameters."""
    import onnx
    import torch
    from optimum.exporters.onnx.config import VisionOnnxConfig
    from optimum.exporters.onnx.convert import export_pytorch
    from optimum.utils import NormalizedVisionConfig

    class EncoderOnnxConfig(VisionOnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedVisionConfig

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {PIXELS: {0: "tiles"}}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {FEATURES: {0: "tiles"}}

        def generate_dummy_inputs(self, framework: str = "pt", **_: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401, ARG002
            side = config.vision.image_size
            return {PIXELS: torch.empty((1, 3, side, side), device="meta")}

    with _weights_left_out():
        # Folding would compute with the weights; all it could fold of them is done in _add_weights.
        export_pytorch(encoder, EncoderOnnxConfig(encoder.config), _OPSET, path, do_constant_folding=False)
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = config.vision.patches
    return model


@contextmanager
def _weights_left_out() -> Iterator[None]:
    """Makes torch export parameters as inputs, an option of it that optimum does not hand on."""
    import torch

    export = torch.onnx.export
    lean = partial(export, export_params=False, keep_initializers_as_inputs=True)
    torch.onnx.export = lean
    try:
        yield
    finally:
        torch.onnx.export = export


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings and log lines of torch, transformers and optimum off the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optimum.exporters.onnx  # noqa: F401 (it sets up the loggers that are silenced here)

        loggers = [logging.getLogger(name) for name in ("optimum", "transformers", "torch.onnx")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


# Its weights.

_STORED: dict[VisionPrecision, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True)
class WeightWriter:
    """Makes initializers: vectors go into the graph as float32, matrices to the data file."""

    data: BinaryIO
    location: str  # name of the data file, as the graph holds it
    precision: VisionPrecision

    def write(self, name: str, weight: npt.NDArray[np.float32]) -> onnx.TensorProto:
        """One initializer.

        Raises:
            ExportError: The weight does not fit in fp16.
        """
        from onnx import TensorProto, helper, numpy_helper

        if weight.ndim < 2:
            return numpy_helper.from_array(weight, name)
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(weight, dtype=_STORED[self.precision])
        if not np.isfinite(matrix).all() and np.isfinite(weight).all():
            raise ExportError(
                f"{_checkpoint_name(name)} does not fit in fp16, it reaches {np.abs(weight).max():.3g}",
                hint="export with --vision fp32",
            )
        self.data.write(bytes(-self.data.tell() % _PAGE))
        place = {"location": self.location, "offset": self.data.tell(), "length": matrix.nbytes}
        self.data.write(matrix.data)
        tensor = TensorProto(
            name=name,
            dims=matrix.shape,
            data_type=helper.np_dtype_to_tensor_dtype(matrix.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def _add_weights(
    model: onnx.ModelProto, checkpoint: Checkpoint, writer: WeightWriter, advance: Advance | None
) -> None:
    """Turn the weights from inputs into initializers, filled from the checkpoint.

    Linear layers multiply by the transpose of their weight: it is stored so, and the node that would
    transpose it goes.
    """
    graph = model.graph
    names = [value.name for value in graph.input if value.name != PIXELS]
    turns = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in set(names)]
    turned = {node.input[0] for node in turns}
    source = {node.output[0]: node.input[0] for node in turns}
    for index, name in enumerate(names):
        weight = checkpoint.tensor(_checkpoint_name(name)).astype(np.float32)
        graph.initializer.append(writer.write(name, weight.T if name in turned else weight))
        if advance:
            advance((index + 1) / len(names))
    nodes = [node for node in graph.node if node.output[0] not in source]
    _rename_inputs(nodes, source)
    del graph.node[:], graph.input[1:]
    graph.node.extend(nodes)
    cast_halves(graph)


def cast_halves(graph: onnx.GraphProto) -> None:
    """Cast matrices that are stored in fp16 back, by nodes that ONNX Runtime runs once, when it loads."""
    from onnx import TensorProto, helper

    halves = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    casts = [
        helper.make_node("Cast", [name], [f"{name}.fp32"], f"{name}.Cast", to=TensorProto.FLOAT)
        for name in halves
    ]
    nodes = list(graph.node)
    _rename_inputs(nodes, {name: f"{name}.fp32" for name in halves})
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def _rename_inputs(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


# The proof.


def _errors(encoder: torch.nn.Module, checkpoint: Checkpoint, path: Path) -> tuple[float, float]:
    """Relative and largest error of the file against torch, on a random tile given twice in one call.

    Raises:
        ExportError: Torch's own features are not finite.
    """
    import torch

    side = checkpoint.config.vision.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    weights = {
        name: torch.from_numpy(checkpoint.tensor(_checkpoint_name(name)).astype(np.float32))
        for name in encoder.state_dict()
    }
    encoder.load_state_dict(weights, assign=True)
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(pixels)).numpy()
    del weights
    encoder.to("meta")  # frees the weights before the session maps its own
    if not np.isfinite(expected).all():
        raise ExportError(
            "the checkpoint's image features are not finite",
            hint="its vision weights are damaged: fetch it again",
        )
    with closing(VisionEncoder(path, device="cpu")) as runtime:
        features = runtime.encode(np.repeat(pixels, _CHECKED_TILES, axis=0), batch=_CHECKED_TILES)
    difference = features - expected
    scale = np.linalg.norm(expected) * _CHECKED_TILES**0.5
    return float(np.linalg.norm(difference) / scale), float(np.abs(difference).max())
