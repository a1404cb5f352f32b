"""How long things take here: what ``onevision bench`` has measured of a bundle on this machine.

In: counts of a prompt. Out: seconds to its first token. A calibration holds for one bundle, where it runs,
and its threads; it is a file in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from onevision._version import __version__
from onevision.errors import ExportError, UsageError
from onevision.files import cache_folder, whole_file
from onevision.typed import build

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.bundle import Manifest
    from onevision.runtime.prefill.policy import Reader


@dataclass(frozen=True)
class Reading:
    """Seconds to read n tokens: ``constant + linear · n + square · n²``; the last is attention's."""

    constant: float
    linear: float
    square: float

    def seconds(self, tokens: int) -> float:
        """To read so many tokens."""
        return self.constant + self.linear * tokens + self.square * tokens**2


@dataclass(frozen=True)
class Calibration:
    """Seconds by unit.

    Attributes:
        fixed: To tokenise a question and to choose the first token.
        picture: To read and cut a picture, per million pixels.
        video: To decode all frames of a video, per million pixels; None where that could not be measured.
        tile: To encode a tile and pack its features.
        prefill: By what reads the prompt.
    """

    fixed: float
    picture: float
    video: float | None
    tile: float
    prefill: dict[str, Reading]

    def seconds(self, *, reader: Reader, tokens: int, tiles: int) -> dict[str, float] | None:
        """Of ``encode`` and ``prefill``; None if the reader was not measured."""
        if reader not in self.prefill:
            return None
        return {"encode": tiles * self.tile, "prefill": self.prefill[reader].seconds(tokens)}

    def rest(self, *, picture_pixels: int, video_pixels: int) -> float:
        """Seconds of all the rest before the first token; pixels of videos are those of all frames."""
        seen = picture_pixels * self.picture + video_pixels * (self.video or 0.0)
        return self.fixed + seen / 1e6


def calibration_path(manifest: Manifest, device: str, threads: int) -> Path:
    """The file of a bundle's calibration.

    Args:
        manifest: The bundle's: other weights have another one.
        device: Where it runs, see :func:`onevision.native.device.placement`.
        threads: CPU threads.
    """
    facts = json.dumps([__version__, manifest.to_json(), device, threads])
    name = hashlib.sha256(facts.encode()).hexdigest()[:16]
    return cache_folder() / "calibration" / f"{name}.json"


def read_calibration(path: Path) -> Calibration | None:
    """A calibration, or None if there is none that can be read."""
    try:
        return build(Calibration, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def needed_calibration(path: Path, bundle: Path) -> Calibration:
    """A calibration that has to be there.

    Raises:
        UsageError: There is none.
    """
    if found := read_calibration(path):
        return found
    raise UsageError(
        "a target for the first token needs this bundle's speed on this machine, which was not measured yet",
        hint=f"onevision bench --quick -m {bundle}, with the same --device and --threads",
    )


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Keep a calibration, in the place of an earlier one.

    Raises:
        ExportError: The file cannot be written.
    """
    data = json.dumps(asdict(calibration)).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make {path.parent}: {error.strerror or error}") from error
    with whole_file(path, len(data)) as part:
        part.write_bytes(data)
