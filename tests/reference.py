"""Where transformers 4 and 5 differ for those who call them as an oracle."""

from __future__ import annotations

from typing import Any

import transformers

#: The image processor on Pillow: transformers 5 gave the plain name to the one on torchvision.
PillowProcessor: Any = getattr(transformers, "LlavaOnevisionImageProcessorPil", None)
PillowProcessor = PillowProcessor or transformers.LlavaOnevisionImageProcessor


def pooled(features: Any) -> Any:
    """What ``get_image_features`` and ``get_video_features`` give: in transformers 5 a part of an object."""
    return getattr(features, "pooler_output", features)
