"""SigLIP tower and projector of a checkpoint to ONNX.

In: an open checkpoint. Out: ``vision.onnx`` and ``vision.onnx.data``, see :mod:`onevision.graphs.siglip`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.graphs.siglip import Siglip, write_siglip

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.export.checkpoint import Checkpoint
    from onevision.precisions import VisionPrecision
    from onevision.progress import Advance


def export_vision(
    checkpoint: Checkpoint,
    path: Path,
    *,
    precision: VisionPrecision = "fp32",
    advance: Advance | None = None,
) -> None:
    """Write the checkpoint's encoder.

    Args:
        checkpoint: Only the tensors of tower and projector are read, one at a time.
        path: The ONNX file to create or replace; its matrices go to ``<name>.data`` beside it.
        precision: Float type of the graph.
        advance: Receives the fraction of the weights that is written.

    Raises:
        CheckpointError: The checkpoint's file changed, or a weight is not finite.
        ExportError: The disk is full, or a weight does not fit in fp16.
    """
    write_siglip(path, siglip_of(checkpoint), precision=precision, advance=advance)


def siglip_of(checkpoint: Checkpoint) -> Siglip:
    """The checkpoint's encoder: sizes, and a reader of its weights."""
    return Siglip(checkpoint.config.vision, checkpoint.config.text.hidden_size, checkpoint.tensor)
