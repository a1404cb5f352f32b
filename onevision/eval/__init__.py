"""Evaluation of a bundle's answers: a suite's or a user's questions, asked, scored and counted.

``questions -> ask -> records (JSONL) -> report``, and ``compare`` for two runs on the same samples. Never
imports torch, transformers, onnx or optimum.
"""

from typing import Literal

#: Visual input that the model gets: ``all`` of it; ``base``, where a single image is squashed to one tile, so
#: that nothing finer than the base view is left; or ``nothing``, no images and no videos.
See = Literal["all", "base", "nothing"]

#: Options of an answer that an evaluation may set; sampling is always greedy.
EVAL_OPTIONS = (
    "max_tokens", "frames", "max_tiles", "detail", "dedup", "exif", "template", "system",
    "json_schema", "regex", "grammar", "choices", "letters",
)  # fmt: skip
#: Enough for the suite's longest sentence; ends an answer that never stops.
EVAL_MAX_TOKENS = 64
