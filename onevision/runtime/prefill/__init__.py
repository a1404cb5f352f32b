"""Prefill: a prompt to the KV cache.

* :mod:`~onevision.runtime.prefill.policy`: which backend, and its run
* :mod:`~onevision.runtime.prefill.graph`: embeddings to keys and values, in ONNX Runtime
* :mod:`~onevision.runtime.prefill.state`: keys and values into llama.cpp
* :mod:`~onevision.runtime.prefill.reuse`: the beginning of a prompt that is known already
"""
