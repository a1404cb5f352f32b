"""OpenVINO for the vision encoder alone: the bundle's own graph, a tile at a time, as ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.bench.result import Counts
from onevision.bench.subject import Asked, question
from onevision.bundle import BACKBONE, NEWLINE, VISION
from onevision.errors import BundleError, UsageError
from onevision.graphs.names import PIXELS
from onevision.runtime import anyres
from onevision.runtime.answer import StageClock
from onevision.runtime.backbone import vocabulary_of
from onevision.runtime.features import encode_once
from onevision.runtime.options import AnswerOptions
from onevision.runtime.prepare import Preparer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from onevision.bench.peers import Setup
    from onevision.bench.scenarios import Inputs, Scenario
    from onevision.bundle import Bundle


class OpenVinoEncoder:
    """A bundle's ``vision.onnx`` in OpenVINO, which computes in bf16 where the CPU can."""

    name = "openvino"
    resident = None

    def __init__(self, bundle: Bundle, setup: Setup) -> None:
        import openvino

        core: Any = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setup.threads}
        try:
            self._model = core.compile_model(core.read_model(bundle.path(VISION)), "CPU", options)
        except RuntimeError as error:  # its translator's, some pages long
            precision = bundle.manifest.files[VISION].precision
            raise BundleError(
                f"OpenVINO cannot read this bundle's {precision} encoder",
                hint="measure one in fp32; bench/peers/openvino_vision.py has OpenVINO's own int8",
            ) from error
        self._bundle = bundle

    def ask(self, scenario: Scenario, inputs: Inputs, new_clock: Callable[[], StageClock]) -> Asked:
        """See :class:`~onevision.bench.subject.Subject`. The answer has no tokens."""
        manifest = self._bundle.manifest
        with vocabulary_of(self._bundle.path(BACKBONE)) as vocabulary:
            preparer = Preparer(manifest, vocabulary, np.load(self._bundle.path(NEWLINE)))
            prepared = preparer.prepare(question(inputs), AnswerOptions(frames=scenario.frames), StageClock())
        if not prepared.tiles or scenario.again:
            raise UsageError("it encodes pictures and answers nothing")
        clock = new_clock()

        def encode(
            tiles: npt.NDArray[np.uint8], _on_tile: Callable[[int, int], None]
        ) -> npt.NDArray[np.float32]:
            with clock.stage("preprocess"):
                pixels = anyres.normalize(tiles, manifest.vision.mean, manifest.vision.std)
            features = []
            with clock.stage("encode"):
                for number in range(len(pixels)):
                    features.append(self._model({PIXELS: pixels[number : number + 1]})[0])
                    clock.lap()
            return np.concatenate(features)

        shape = (preparer.anyres.side**2, manifest.backbone.hidden)
        for visual in prepared.visuals:
            encode_once(visual.tiles, encode, None, (), shape)
        counts = Counts(prepared.tokens, prepared.image_tokens, 0, prepared.tiles)
        return Asked(counts, (), clock, None, clock.elapsed())
