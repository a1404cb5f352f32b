"""The tiny model's bundle, as it travels in the wheel."""

from __future__ import annotations

from pathlib import Path

from onevision.export.build import ExportOptions, export
from onevision.export.hub import FetchedCheckpoint
from onevision.models import SHIPPED
from onevision.progress import LogProgress

SIZE, VARIANT = "tiny", "ov"

#: The smallest precisions that pass the quality gate: `onevision quant sweep --limit 520`, the tiny suite,
#: against fp32 + f32, which answers 90.8 % correctly.
#:
#:     precisions       MB   mean KL  top-1 agreement  accuracy
#:     fp32 + q8_0    16.5   1.4e-05            99.9 %    91.0 %
#:     fp16 + q8_0    10.8   1.5e-05            99.8 %    91.0 %
#:     int8 + q8_0    13.4   5.4e-05            99.8 %    91.0 %  (most matmuls have to stay in fp32)
OPTIONS = ExportOptions(
    vision="fp16",
    backbone="q8_0",
    size=SIZE,
    variant=VARIANT,
    force=True,
    prove=False,  # where a package is built there is no llama.cpp; reference vectors are shipped
)


def write_tiny_bundle(target: Path) -> None:
    """Write the bundle to ``target``, which may hold an older one. The same versions write the same bytes."""
    export(FetchedCheckpoint(SHIPPED[SIZE, VARIANT], None, None), target, OPTIONS, LogProgress())
