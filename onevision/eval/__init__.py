"""How good a bundle's answers are: a suite or a user's questions, asked, scored and counted.

``questions -> ask -> records (JSONL) -> report``, and ``compare`` for two bundles on the same samples. Never
imports torch, transformers, onnx or optimum.
"""
