"""Names of precisions, in a module that loads nothing: the command line needs them for its options."""

from __future__ import annotations

from typing import Literal

#: Of a vision encoder in floats.
VisionPrecision = Literal["fp32", "fp16"]
#: Of the vision encoder.
EncoderPrecision = Literal[VisionPrecision, "int8"]
#: Writer of the vision encoder's graph: this package, or optimum by tracing transformers' modules.
Exporter = Literal["onevision", "optimum"]
#: Of the language model: the recipes of :data:`onevision.native.quantize.RECIPES`.
BackbonePrecision = Literal[
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl",
    "q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k",
    "q4_0-pure", "iq4_nl-pure", "q4_0-attn-q8_0", "iq4_nl-attn-q8_0",
]  # fmt: skip

#: Of the prefill graph.
PrefillPrecision = Literal["int8", "fp32"]

#: The same as options; auto is the smallest that passes the quality gate.
EncoderChoice = Literal[EncoderPrecision, "auto"]
BackboneChoice = Literal[BackbonePrecision, "auto"]
