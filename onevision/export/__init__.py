"""From a checkpoint to a bundle. May import torch, transformers, optimum, onnx and gguf, always lazily."""

from __future__ import annotations

from importlib.util import find_spec

#: What the extra ``export`` brings, and the base install lacks.
NEEDED = (
    "torch", "transformers", "optimum", "onnx", "gguf", "safetensors", "huggingface_hub", "filelock",
)  # fmt: skip


def missing_packages() -> list[str]:
    """Those of :data:`NEEDED` that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]
