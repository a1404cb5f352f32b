"""The vision encoder by an independent exporter: optimum's graph of transformers' modules.

In: an encoder's sizes and weights. Out: its ONNX graph as optimum-onnx traces it, or the relative error
between the image features of that graph and of another. Needs the extra ``optimum``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.errors import ExportError
from onevision.files import disk_space, scratch_folder
from onevision.graphs.nodes import FEATURES, PIXELS
from onevision.graphs.siglip import PROJECTOR, TOWER, Siglip
from onevision.metrics import relative_error
from onevision.proof.reference import siglip_config
from onevision.runtime.vision import VisionEncoder

if TYPE_CHECKING:
    import torch

#: Largest relative error between image features of the two graphs in fp32.
TOLERANCE = 1e-4

_OPSET = 18  # LayerNormalization is one operator since 17


def write_optimum(path: Path, siglip: Siglip) -> None:
    """Write optimum's fp32 graph to ``path`` and its matrices to ``<name>.data`` beside it.

    Weights are traced with the graph: the 0.5b tower takes about 7 GB of memory.

    Raises:
        ExportError: The disk is full.
    """
    import onnx
    from optimum.exporters.onnx.convert import export_pytorch

    data_path = path.with_name(f"{path.name}.data")
    needed = 8 * siglip.weights  # optimum's file and the one with external data
    with disk_space(path.absolute().parent, needed), scratch_folder(path) as scratch:
        with _quiet():
            module = _module(siglip)
            config = _onnx_config(module, siglip.shape.image_size)
            export_pytorch(module, config, _OPSET, scratch / "whole.onnx", do_constant_folding=False)
        del module
        model = onnx.load(scratch / "whole.onnx")
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = siglip.shape.patches
        part = scratch / path.name
        onnx.save_model(model, part, save_as_external_data=True, location=data_path.name, size_threshold=1024)
        (scratch / data_path.name).replace(data_path)
        part.replace(path)


def optimum_error(path: Path, siglip: Siglip) -> float:
    """Relative error of a graph's image features against those of optimum's graph, on a random tile.

    Raises:
        ExportError: It is larger than :data:`TOLERANCE`.
    """
    side = siglip.shape.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    with scratch_folder(path) as scratch:
        write_optimum(scratch / "vision.onnx", siglip)
        features = []
        for graph in (path, scratch / "vision.onnx"):
            with closing(VisionEncoder(graph, device="cpu")) as encoder:
                features.append(encoder.encode(pixels))
    ours, theirs = features
    error = relative_error(ours, theirs)
    if not error <= TOLERANCE:
        raise ExportError(
            f"the vision encoder differs from optimum's export: relative error {error:.1e}, "
            f"allowed {TOLERANCE:.0e}",
            hint="please report this, with the checkpoint's config.json",
        )
    return error


def _module(siglip: Siglip) -> torch.nn.Module:
    """Transformers' tower and projector in fp32: pixel values -> image features."""
    import torch
    from transformers import LlavaOnevisionConfig
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector
    from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipVisionEmbeddings

    whole = LlavaOnevisionConfig(  # type: ignore[no-untyped-call]
        vision_config=siglip_config(siglip.shape),
        text_config={"model_type": "qwen2", "hidden_size": siglip.features},
        attn_implementation="eager",
    )

    class Encoder(torch.nn.Module):
        """Parameters are named as in the checkpoint, without their prefixes."""

        def __init__(self) -> None:
            super().__init__()
            self.config = whole.vision_config
            self.embeddings = SiglipVisionEmbeddings(self.config)
            self.encoder = SiglipEncoder(self.config)
            self.projector = LlavaOnevisionMultiModalProjector(whole)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(self.embeddings(pixel_values)).last_hidden_state
            features: torch.Tensor = self.projector(hidden)
            return features

    with torch.device("meta"):
        module = Encoder().eval()
    module.embeddings.position_ids = torch.arange(siglip.shape.patches)[None]  # a constant, not a weight
    weights = {}
    for name in module.state_dict():
        own = name.removeprefix("projector.")
        stored = siglip.tensor(f"{TOWER}{name}" if own == name else f"{PROJECTOR}{own}")
        weights[name] = torch.from_numpy(np.ascontiguousarray(stored, dtype=np.float32))
    module.load_state_dict(weights, assign=True)
    return module


def _onnx_config(module: torch.nn.Module, image_size: int) -> Any:  # noqa: ANN401
    """Names and shapes of input and output, as optimum wants them."""
    import torch
    from optimum.exporters.onnx.config import VisionOnnxConfig
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
            return {PIXELS: torch.zeros((1, 3, image_size, image_size))}

    return EncoderOnnxConfig(module.config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and log lines of torch, transformers and optimum off the screen."""
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
