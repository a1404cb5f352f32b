"""From a checkpoint to a bundle. May import torch, transformers, optimum, onnx and gguf, always lazily."""
