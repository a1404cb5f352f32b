"""SigLIP tower and projector of a checkpoint to ONNX.

In: an open checkpoint. Out: ``vision.onnx`` and ``vision.onnx.data``, see :mod:`onevision.graphs.siglip`.
"""

from __future__ import annotations

from pathlib import Path

from onevision.errors import UsageError
from onevision.export.checkpoint import Checkpoint
from onevision.extras import require
from onevision.graphs.siglip import Siglip, write_siglip
from onevision.precisions import Exporter, VisionPrecision
from onevision.progress import Advance


def export_vision(
    checkpoint: Checkpoint,
    path: Path,
    *,
    precision: VisionPrecision = "fp32",
    exporter: Exporter = "onevision",
    advance: Advance | None = None,
) -> None:
    """Write the checkpoint's encoder.

    Args:
        checkpoint: Only the tensors of tower and projector are read, one at a time.
        path: The ONNX file to create or replace; its matrices go to ``<name>.data`` beside it.
        precision: Float type of the graph.
        exporter: Writer of the graph; optimum's is in fp32 and cannot be quantized afterwards.
        advance: Receives the fraction of the weights that is written.

    Raises:
        UsageError: optimum with fp16, or without its extra.
        CheckpointError: The checkpoint's file changed, or a weight is not finite.
        ExportError: The disk is full, or a weight does not fit in fp16.
    """
    if exporter == "onevision":
        write_siglip(path, siglip_of(checkpoint), precision=precision, advance=advance)
        return
    if precision != "fp32":
        raise UsageError("--exporter optimum writes fp32 only", hint="leave out --vision or --exporter")
    require("optimum", "--exporter optimum")
    from onevision.proof.optimum import write_optimum

    write_optimum(path, siglip_of(checkpoint))


def siglip_of(checkpoint: Checkpoint) -> Siglip:
    """The checkpoint's encoder: sizes, and a reader of its weights."""
    return Siglip(checkpoint.config.vision, checkpoint.config.text.hidden_size, checkpoint.tensor)
