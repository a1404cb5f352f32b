"""A bundle of a published shape with random weights, to judge a device before anything is downloaded.

``random checkpoint -> float bundle -> (int8 encoder) -> bundle with a prefill graph in the user's cache``

Times depend on shapes and precisions, not on the weights' values; no quality gate is run.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

from onevision.bundle import write_bundle
from onevision.export.build import Exported
from onevision.export.cached import cached_bundle
from onevision.export.synth import SynthSpec
from onevision.files import disk_space, scratch_folder
from onevision.models.shapes import SynthSize
from onevision.precisions import BackbonePrecision, EncoderPrecision
from onevision.progress import Progress

#: Calibration tiles of int8: ranges of random weights are as good as any.
_TILES = 2
#: Bytes of tokenizer, tables and graphs.
_REST = 32 << 20


@dataclass(frozen=True)
class Synthetic:
    """A published shape, and precisions."""

    size: SynthSize
    vision: EncoderPrecision = "int8"
    backbone: BackbonePrecision = "q4_0"

    @property
    def name(self) -> str:
        """Name of the model in reports."""
        return f"synthetic-{self.size} (random weights)"


def synthetic_bundle(
    wanted: Synthetic,
    progress: Progress | None = None,
    *,
    threads: int | None = None,
    spec: SynthSpec | None = None,
) -> Path:
    """Folder of the bundle, which is made once: that takes minutes.

    Args:
        wanted: Shape and precisions.
        progress: Progress reporter; None for the log.
        threads: CPU threads to make it with; None for all cores.
        spec: Another shape than the published one.

    Raises:
        UsageError: It has to be made, and the extra ``export`` is not installed.
        ExportError: The cache cannot be written, or the disk is too small.
    """
    from onevision.export.synth import SynthSpec

    spec = spec or SynthSpec.preset(wanted.size)
    return cached_bundle(
        f"synthetic-{wanted.size}-{wanted.vision}-{wanted.backbone}",
        hashlib.sha256(f"{spec} {_TILES} prefill".encode()).hexdigest()[:16],
        partial(_make, spec, wanted, threads),
        progress,
        what=f"a {wanted.size} with random weights ({wanted.vision} + {wanted.backbone})",
        instead="copy the bundle from a machine that has it, and name it: -m FOLDER",
    )


def needed_bytes(spec: SynthSpec, wanted: Synthetic) -> int:
    """Disk space to make a bundle, at most: the checkpoint, and all that is made from it on the way."""
    from onevision.export.synth import weights_of
    from onevision.native.quantize import FLOAT_BYTES, QUANTIZED_BYTES

    tower, backbone = weights_of(spec)
    prefill = backbone
    made = int(FLOAT_BYTES.get(wanted.backbone, QUANTIZED_BYTES) * backbone) + prefill
    checkpoint, in_its_type = 2 * (tower + backbone), 2 * backbone
    exporting = checkpoint + 4 * tower + in_its_type + made
    calibrating = made + (4 + 8 + 1) * tower  # exported, watched in floats and in int8, and quantized
    copying = 2 * made + (4 + 2) * tower
    return max(exporting, calibrating, copying) + _REST


def _make(spec: SynthSpec, wanted: Synthetic, threads: int | None, target: Path, progress: Progress) -> None:
    from onevision.export.build import ExportOptions, export
    from onevision.export.hub import FetchedCheckpoint
    from onevision.export.synth import synthesize

    options = ExportOptions(
        vision="fp32" if wanted.vision == "int8" else wanted.vision,
        backbone=wanted.backbone,
        prefill="int8",
        size=wanted.size,
        name=wanted.name,
        threads=threads,
        prove=False,  # random weights have nothing to prove
    )
    with (
        disk_space(target.parent, needed_bytes(spec, wanted)),
        tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", suffix=".partial", dir=target.parent, ignore_cleanup_errors=True
        ) as scratch,
    ):
        checkpoint = Path(scratch, f"synthetic-{wanted.size}")
        with progress.step("checkpoint with random weights") as advance:
            synthesize(checkpoint, spec, advance=advance)
        floats = Path(scratch, "bundle") if wanted.vision == "int8" else target
        exported = export(FetchedCheckpoint(checkpoint, None, None), floats, options, progress)
        shutil.rmtree(checkpoint)
        if wanted.vision == "int8":
            _quantize(exported, target, threads, progress)


def _quantize(exported: Exported, target: Path, threads: int | None, progress: Progress) -> None:
    """The same bundle with an int8 encoder, whatever its error."""
    from onevision.export.card import seal
    from onevision.proof.verify import Report
    from onevision.quant.candidates import Candidate, GateConfig, Quantizer
    from onevision.quant.gates import Thresholds

    anything = Thresholds(cosine=-1.0, relative_error=inf)
    config = GateConfig(tiles=_TILES, thresholds=anything, threads=threads)
    with write_bundle(target) as folder, scratch_folder(folder) as scratch:
        quantizer = Quantizer(exported.bundle, scratch, config, progress)
        bundle = quantizer.make(Candidate("int8", exported.backbone.precision), folder)
        seal(folder, bundle.manifest, Report(()), **bundle.manifest.quality)
