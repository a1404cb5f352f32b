"""Where a bundle runs: which part on which device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.native.llama import can_offload
from onevision.native.ort import has_cuda

if TYPE_CHECKING:
    from onevision.native.device import Device


def expected(device: Device) -> tuple[str, bool]:
    """Device of the encoder, and whether the backbone is offloaded, before either is loaded."""
    encoder = "cuda" if device != "cpu" and has_cuda() else "cpu"
    return encoder, device != "cpu" and can_offload()


def placement(encoder: str, *, offloaded: bool) -> str:
    """Key of a placement in a speed profile.

    Args:
        encoder: Device of the encoder, ``cpu`` or ``cuda``.
        offloaded: The backbone runs on a GPU.
    """
    return f"encoder {encoder}, backbone {'gpu' if offloaded else 'cpu'}"
