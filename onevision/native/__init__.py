"""All foreign memory: ONNX Runtime, llama.cpp and ggml, and what this machine has."""
