"""Names of the inputs and outputs of a bundle's ONNX graphs."""

from __future__ import annotations

# vision.onnx
PIXELS = "pixel_values"  # float32 [tiles, 3, S, S]
FEATURES = "image_features"  # float32 [tiles, P, H]
PRECISION = "onevision.precision"  # key of its metadata: fp32 or fp16

# prefill.onnx
EMBEDDINGS = "inputs_embeds"  # float32 [1, n, H]
SEQUENCE_LENGTHS = "seqlens_k"  # int32 [1], positions with this chunk, less one
TOTAL_LENGTH = "total_sequence_length"  # int32 [1], positions with this chunk
#: Keys or values ("key", "value") of a layer, float32 [1, kv_heads, positions, head_dim].
PAST, PRESENT = "past_{}.{}", "present_{}.{}"
