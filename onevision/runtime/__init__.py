"""From a bundle, a prompt and pictures to an answer. Never imports torch, transformers, onnx or optimum."""
