"""LLaVA-OneVision on a laptop: export to ONNX and GGUF, run without torch, prove the answers."""

__version__ = "0.1.0"
