"""A bundle of the right shape with random weights, to judge a device before anything is downloaded.

``random checkpoint -> bundle in floats -> (int8 encoder) -> bundle in the user's cache``

It has a prefill graph: what this package can do at best is to be judged.

Times depend on shapes and precisions, not on what the weights are. No quality gate is asked: there is no
quality to lose.
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
    from onevision.export.synth import SynthSpec
    from onevision.models.shapes import PublishedSize
    from onevision.native.quantize import BackbonePrecision
    from onevision.progress import Progress
    from onevision.quant.requantise import EncoderPrecision

#: What int8 is calibrated on. Ranges of random weights are as good as any.
_TILES = 2
#: Bytes of what does not grow with the weights: tokenizer, tables of cosines, graphs.
_REST = 32 << 20


@dataclass(frozen=True)
class Synthetic:
    """What to make: a published shape, and precisions."""

    size: PublishedSize
    vision: EncoderPrecision = "int8"
    backbone: BackbonePrecision = "q4_0"

    @property
    def name(self) -> str:
        """What reports call the model."""
        return f"synthetic-{self.size} (random weights)"


def synthetic_bundle(
    wanted: Synthetic, progress: Progress | None = None, *, threads: int | None = None
) -> Path:
    """Folder of the bundle. It is made if it is not in the cache, which takes minutes.

    Args:
        wanted: What to make.
        progress: Told what goes on if it has to be made; None: the log is.
        threads: CPU threads to make it with; None for all cores.

    Raises:
        UsageError: It has to be made, and the extra ``export`` is not installed.
        ExportError: The cache cannot be written, or the disk is too small.
    """
    from onevision.export.synth import SynthSpec

    return bundle_of(SynthSpec.preset(wanted.size), wanted, progress, threads=threads)


def bundle_of(
    spec: SynthSpec, wanted: Synthetic, progress: Progress | None = None, *, threads: int | None = None
) -> Path:
    """:func:`synthetic_bundle` of any shape."""
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
    """Room on the disk to make a bundle, at most: the checkpoint, and what it becomes on the way."""
    from onevision.export.synth import weights_of
    from onevision.native.quantize import FLOAT_BYTES, QUANTIZED_BYTES

    tower, backbone = weights_of(spec)
    made = int(FLOAT_BYTES.get(wanted.backbone, QUANTIZED_BYTES) * backbone) + backbone  # the prefill graph's
    checkpoint, in_its_type = 2 * (tower + backbone), 2 * backbone
    while_exported = checkpoint + 4 * tower + in_its_type + made
    while_calibrated = made + (4 + 8 + 1) * tower  # exported, watched in floats and in int8, and quantised
    return max(while_exported, while_calibrated) + _REST


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
        prove=False,  # of random weights there is nothing to prove, and it takes longer than all the rest
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
        exported = export(
            FetchedCheckpoint(checkpoint, None, None), Path(scratch, "bundle"), options, progress
        )
        shutil.rmtree(checkpoint)
        if wanted.vision == "int8":
            _in_int8(exported, folder, threads, progress)
        else:
            for path in exported.bundle.folder.iterdir():
                path.replace(folder / path.name)


def _in_int8(exported: Exported, folder: Path, threads: int | None, progress: Progress) -> None:
    """The same bundle with an encoder in int8, however far its features are from those in floats."""
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
