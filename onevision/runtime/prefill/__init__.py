"""Prefill: a prompt into the KV cache, by ONNX Runtime or llama.cpp."""
