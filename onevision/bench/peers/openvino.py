"""OpenVINO for the vision encoder alone: the bundle's own graph, one tile per call, as ours on a CPU.

``openvino`` computes in bf16 where the CPU can; ``openvino-int8`` quantizes an fp32 graph with NNCF first, by
its recipe for transformers: activations per tensor, weights per channel, SmoothQuant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.bench.peers import TargetSetup
from onevision.bench.result import Counts
from onevision.bench.scenarios import Scenario, photograph
from onevision.bench.target import NewClock, Target, TimedAnswer
from onevision.bundle import BACKBONE, NEWLINE, VISION, Bundle
from onevision.errors import BundleError, UsageError
from onevision.graphs.nodes import PIXELS
from onevision.runtime import anyres
from onevision.runtime.clock import StageClock
from onevision.runtime.messages import ImagePart, Message
from onevision.runtime.prepare import PreparedPrompt, Preparer
from onevision.runtime.tokenizer import open_tokenizer
from onevision.runtime.vision import encode_once

_CALIBRATION_IMAGES = 8


class OpenVinoTarget(Target):
    """A bundle's ``vision.onnx`` in OpenVINO.

    Raises:
        BundleError: OpenVINO cannot read the graph.
    """

    def __init__(self, name: str, bundle: Bundle, setup: TargetSetup) -> None:
        import openvino

        self.name, self._bundle, self._options = name, bundle, setup.options
        core: Any = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setup.threads}
        try:
            graph = core.read_model(bundle.path(VISION))
            if name == "openvino-int8":
                graph = self._quantize(graph)
            self._model = core.compile_model(graph, "CPU", options)
        except RuntimeError as error:  # its message has pages
            precision = bundle.manifest.files[VISION].precision
            raise BundleError(
                f"OpenVINO cannot read this bundle's {precision} encoder",
                hint="measure an fp32 bundle, with openvino-int8 for OpenVINO's own int8",
            ) from error

    def ask(
        self, scenario: Scenario, messages: Sequence[Message], new_clock: NewClock = StageClock
    ) -> TimedAnswer:
        """See :meth:`Target.ask`. The answer has no tokens."""
        prepared = self._prepare(messages, scenario.frames)
        if not prepared.tiles or scenario.again:
            raise UsageError("it encodes images and answers nothing")
        vision = self._bundle.manifest.vision
        shape = ((vision.image_size // vision.patch_size) ** 2, self._bundle.manifest.backbone.hidden)
        clock = new_clock()

        def encode(
            tiles: npt.NDArray[np.uint8], _on_tile: Callable[[int, int], None]
        ) -> npt.NDArray[np.float32]:
            with clock.stage("preprocess"):
                pixels = anyres.normalize(tiles, vision.mean, vision.std)
            features = []
            with clock.stage("encode"):
                for tile in pixels:
                    features.append(self.features(tile[None]))
                    clock.lap()
            return np.concatenate(features)

        for visual in prepared.visuals:
            encode_once(visual.tiles, encode, None, (), shape)
        counts = Counts(prepared.tokens, prepared.image_tokens, 0, prepared.tiles)
        return TimedAnswer(counts, (), tuple(clock.laps), None, clock.elapsed())

    def features(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Pixel values float32 [1, 3, S, S] to image features float32 [1, P, H]."""
        return np.asarray(self._model({PIXELS: pixels})[0])

    def _quantize(self, graph: Any) -> Any:  # noqa: ANN401
        """The graph in NNCF's int8, calibrated on tiles of generated images."""
        import nncf

        vision = self._bundle.manifest.vision
        photos = [ImagePart(photograph((640, 480), seed)) for seed in range(100, 100 + _CALIBRATION_IMAGES)]
        visuals = self._prepare([Message("user", tuple(photos))]).visuals
        tiles = [anyres.normalize(visual.tiles, vision.mean, vision.std) for visual in visuals]
        samples = [{PIXELS: tile[None]} for tile in np.concatenate(tiles)]
        return nncf.quantize(
            graph,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
        )

    def _prepare(self, messages: Sequence[Message], frames: int | None = None) -> PreparedPrompt:
        with open_tokenizer(self._bundle.path(BACKBONE)) as tokenizer:
            preparer = Preparer(self._bundle.manifest, tokenizer, np.load(self._bundle.path(NEWLINE)))
            return preparer.prepare(tuple(messages), replace(self._options, frames=frames))
