"""How close two arrays of floats are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SMALLEST = 1e-30  # of a norm, so that zeros are no division by zero


def relative_error(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    """Euclidean norm of the difference over that of ``theirs``; both have the same shape."""
    expected = theirs.astype(np.float64)
    return float(np.linalg.norm(ours - expected) / max(float(np.linalg.norm(expected)), _SMALLEST))


def cosine(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    """Cosine of the angle between two arrays of the same shape, each taken as one vector."""
    a, b = ours.ravel().astype(np.float64), theirs.ravel().astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), _SMALLEST))
