"""From a checkpoint's config to the shapes that the graphs take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.graphs.qwen2 import QwenShape

if TYPE_CHECKING:
    from onevision.models.shapes import TextConfig


def qwen_shape(text: TextConfig) -> QwenShape:
    """The backbone as the writer of the prefill graph takes it."""
    return QwenShape(
        text.hidden_size,
        text.intermediate_size,
        text.layers,
        text.heads,
        text.kv_heads,
        text.context_length,
        text.rope_theta,
        text.rms_norm_eps,
    )
