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
from typing import TYPE_CHECKING

from onevision.bundle import BACKBONE, write_bundle
from onevision.export.cached import cached_bundle
from onevision.files import disk_space

if TYPE_CHECKING:
    from onevision.export.build import Exported
    from onevision.export.synth import SynthSize, SynthSpec
    from onevision.native.quantize import BackbonePrecision
    from onevision.progress import Progress
    from onevision.quant.requantise import EncoderPrecision

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
        what=f"a {wanted.size} with random weights, {wanted.vision} + {wanted.backbone},",
        without=(
            f"making a {wanted.size} with random weights",
            "copy the bundle from a machine that has it, and name it: -m FOLDER",
        ),
    )


def needed_bytes(spec: SynthSpec, wanted: Synthetic) -> int:
    """Disk space to make a bundle, at most: the checkpoint, and all that is made from it on the way."""
    from onevision.export.synth import weights_of
    from onevision.native.quantize import FLOAT_BYTES, QUANTIZED_BYTES

    tower, backbone = weights_of(spec)
    made = (
        int(FLOAT_BYTES.get(wanted.backbone, QUANTIZED_BYTES) * backbone) + backbone
    )  # and the prefill graph
    checkpoint, gguf_in_its_type = 2 * (tower + backbone), 2 * backbone
    exporting = checkpoint + 4 * tower + gguf_in_its_type + made
    calibrating = made + (4 + 8 + 1) * tower  # exported, watched in float and in int8, and quantized
    return max(exporting, calibrating) + _REST


def _make(spec: SynthSpec, wanted: Synthetic, threads: int | None, target: Path, progress: Progress) -> None:
    from onevision.export.build import ExportOptions, export
    from onevision.export.hub import FetchedCheckpoint
    from onevision.export.synth import synthesise

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
        write_bundle(target) as folder,
    ):
        checkpoint = Path(scratch, f"synthetic-{wanted.size}")
        with progress.step("checkpoint with random weights") as advance:
            synthesise(checkpoint, spec, advance=advance)
        source = FetchedCheckpoint(checkpoint, None, None)
        exported = export(source, Path(scratch, "bundle"), options, progress)
        shutil.rmtree(checkpoint)
        if wanted.vision == "int8":
            _quantize(exported, folder, threads, progress)
        else:
            for path in exported.bundle.folder.iterdir():
                path.replace(folder / path.name)


def _quantize(exported: Exported, folder: Path, threads: int | None, progress: Progress) -> None:
    """The same bundle with an int8 encoder, whatever its error."""
    from onevision.proof.verify import Report
    from onevision.quant.calibration import calibration_tiles
    from onevision.quant.gates import Thresholds
    from onevision.quant.requantise import finish, make_draft, make_encoder

    floats = exported.bundle
    anything = Thresholds(cosine=-1.0, relative_error=inf)
    tiles = calibration_tiles(floats.manifest.vision, limit=_TILES)
    encoder = make_encoder(
        floats, "int8", folder, progress, calibration=tiles, thresholds=anything, threads=threads
    )
    floats.path(BACKBONE).replace(folder / BACKBONE)
    finish(make_draft(floats, folder, encoder, exported.backbone), Report(()))
