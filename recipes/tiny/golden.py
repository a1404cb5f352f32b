"""Reference vectors of the shipped checkpoint, for proving its bundle without torch.

    python -m recipes.tiny.golden

writes ``onevision/models/tiny/golden.npz``. Run it again whenever the checkpoint changes.
"""

from __future__ import annotations

from onevision.bundle import GOLDEN
from onevision.export.checkpoint import Checkpoint
from onevision.export.reference import load_reference
from onevision.models import SHIPPED
from onevision.progress import LogProgress
from onevision.proof.golden import ReferenceCase, save_golden
from onevision.proof.reference import golden_cases

FOLDER = SHIPPED["tiny", "ov"]


def cases() -> list[ReferenceCase]:
    """The standard cases of the shipped checkpoint, from transformers."""
    with Checkpoint.open(FOLDER) as checkpoint:
        return golden_cases(load_reference(checkpoint, LogProgress()))


if __name__ == "__main__":
    save_golden(FOLDER / GOLDEN, cases())
