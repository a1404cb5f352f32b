"""Speed profile: what ``onevision bench`` has measured of a bundle on this machine.

In: counts of a prompt. Out: seconds to its first token. A profile holds for one bundle, machine, device and
number of threads; it is a file in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from onevision._version import __version__
from onevision.bundle import Bundle
from onevision.errors import ExportError, UsageError
from onevision.files import cache_folder, os_errors, whole_file
from onevision.native.device import Device, cpu_name, default_threads
from onevision.native.llama import can_offload
from onevision.native.ort import has_cuda
from onevision.runtime.prefill.policy import PrefillBackend
from onevision.typed import build, read_json


@dataclass(frozen=True)
class PrefillSpeed:
    """Seconds to prefill n tokens: ``constant + linear · n + square · n²``; the last is attention's."""

    constant: float
    linear: float
    square: float

    def seconds(self, tokens: int) -> float:
        """Seconds for so many tokens."""
        return self.constant + self.linear * tokens + self.square * tokens**2

    @classmethod
    def fit(cls, tokens: Sequence[int], seconds: Sequence[float]) -> PrefillSpeed:
        """The curve with coefficients of 0 or more and the least relative error.

        Args:
            tokens: Lengths of prompts.
            seconds: Measured times, one for each.
        """
        n, wanted = np.asarray(tokens, np.float64), np.asarray(seconds, np.float64)
        # Divided by the time, the residuals are relative ones.
        columns = np.stack([np.ones_like(n), n, n**2], axis=1) / wanted[:, None]
        best, least = np.zeros(3), np.inf
        # Non-negative least squares: some coefficients are 0, the others those of plain least squares.
        for chosen in (list(subset) for size in (1, 2, 3) for subset in combinations(range(3), size)):
            fitted, *_ = np.linalg.lstsq(columns[:, chosen], np.ones_like(wanted), rcond=None)
            error = float(np.square(columns[:, chosen] @ fitted - 1).sum())
            if (fitted >= 0).all() and error < least:
                best, least = np.zeros(3), error
                best[chosen] = fitted
        return cls(*map(float, best))


@dataclass(frozen=True)
class SpeedProfile:
    """Seconds of the parts of a time to the first token.

    Attributes:
        fixed: To tokenize a question and to sample the first token.
        image: To read and tile an image, per million pixels.
        video: To decode all frames of a video, per million pixels; None where that could not be measured.
        tile: To encode a tile and pack its features.
        prefill: By prefill backend.
    """

    fixed: float
    image: float
    video: float | None
    tile: float
    prefill: dict[str, PrefillSpeed]

    def seconds(self, *, backend: PrefillBackend, tokens: int, tiles: int) -> dict[str, float] | None:
        """Seconds of ``encode`` and ``prefill``; None if the backend was not measured."""
        if backend not in self.prefill:
            return None
        return {"encode": tiles * self.tile, "prefill": self.prefill[backend].seconds(tokens)}


def placement(device: Device) -> str:
    """Devices that a bundle will run on, before it is loaded."""
    gpu = device != "cpu"
    encoder, backbone = "cuda" if gpu and has_cuda() else "cpu", "gpu" if gpu and can_offload() else "cpu"
    return f"encoder {encoder}, backbone {backbone}"


def profile_path(bundle: Bundle, device: Device, threads: int | None) -> Path:
    """File of a bundle's speed profile.

    Args:
        bundle: Other weights have another profile.
        device: As it is loaded with.
        threads: CPU threads; None for all cores.
    """
    machine = platform.node(), cpu_name(), placement(device), threads or default_threads()
    facts = json.dumps([__version__, bundle.manifest.to_json(), machine])
    name = hashlib.sha256(facts.encode()).hexdigest()[:16]
    return cache_folder() / "speed" / f"{name}.json"


def read_profile(path: Path) -> SpeedProfile | None:
    """A speed profile, or None if there is none that can be read."""
    try:
        return build(SpeedProfile, read_json(path))
    except (OSError, ValueError):
        return None


def needed_profile(bundle: Bundle, device: Device, threads: int | None) -> SpeedProfile:
    """The speed profile of a bundle.

    Raises:
        UsageError: There is none.
    """
    if profile := read_profile(profile_path(bundle, device, threads)):
        return profile
    raise UsageError(
        "a target for the first token needs this bundle's speed on this machine, which was not measured yet",
        hint=f"onevision bench --quick -m {bundle.folder}, with the same --device and --threads",
    )


def write_profile(path: Path, profile: SpeedProfile) -> None:
    """Write a speed profile, in the place of an earlier one.

    Raises:
        ExportError: The file cannot be written.
    """
    data = json.dumps(asdict(profile)).encode() + b"\n"
    with os_errors(f"make {path.parent}", ExportError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, len(data)) as part:
        part.write_bytes(data)
