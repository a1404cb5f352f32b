"""Reference vectors: outputs of the reference implementation, stage by stage, for a few inputs.

:mod:`onevision.proof.reference` computes them. A bundle carries them in ``golden.npz``, so that ``onevision
verify`` needs no torch.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.arrays import parse_array
from onevision.bundle import GOLDEN, Bundle
from onevision.errors import BundleError
from onevision.typed import build, parse_json

#: Stands for a whole image or video in ``prompt_ids`` (LLaVA's IMAGE_TOKEN_INDEX).
VISUAL_ID = -200
#: Length of the greedy continuation.
GREEDY_STEPS = 32
#: Rows of a matrix that ``golden.npz`` keeps in full; of the others it keeps the norms.
KEPT_ROWS = 48
#: Largest size of the unpacked arrays, whatever the bundle; those of the 72b take 20 MB.
_MAX_BYTES = 64 << 20
#: What a bundle's arrays take at most: cases, tiles with the images that they are cut of, and the rest.
_CASES, _MAX_TILES, _SMALL = 4, 64, 1 << 20

# Errors of zipfile on damaged archives; they have no common base.
_DAMAGE = (EOFError, OSError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Rows:
    """A matrix of vectors [N, H], some of them in full.

    Attributes:
        index: int64 [K], which rows are in ``values``.
        values: float32 [K, H]
        norms: float32 [N], Euclidean norm of every row: none can be wrong, swapped or missing unnoticed.
    """

    index: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float32]

    @classmethod
    def of(cls, matrix: npt.NDArray[np.float32], keep: int | None = None) -> Rows:
        """Keep all rows of a matrix float32 [..., H], or ``keep`` evenly spread ones, ends included."""
        flat = matrix.reshape(-1, matrix.shape[-1])
        count = len(flat) if keep is None else min(keep, len(flat))
        index = np.linspace(0, len(flat) - 1, count).astype(np.int64)
        return cls(index, flat[index], np.linalg.norm(flat, axis=1))


@dataclass(frozen=True)
class ReferenceCase:
    """One input and the reference's outputs for it.

    Attributes:
        name: ``image``, ``images``, ``video`` or ``text`` for the ones in a bundle.
        prompt: The question, in the training format after the images.
        images: uint8 [h, w, 3] each.
        video: Frames uint8 [N, h, w, 3], all of which are used, or None.
        prompt_ids: int64 [n], with :data:`VISUAL_ID` in the place of an image or video.
        tiles: uint8 [T, S, S, 3], of all images in their order.
        features: Image features [T · P, H].
        embeddings: Visual tokens, the backbone's input, [n, H].
        logits: Of the prompt's last position, float32 [vocabulary]; None if the language model was too large
            for the machine that computed the case.
        tokens: Greedy continuation, int64 [≤ 32], without the end of sequence; None like ``logits``.
    """

    name: str
    prompt: str
    images: tuple[npt.NDArray[np.uint8], ...]
    video: npt.NDArray[np.uint8] | None
    prompt_ids: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.uint8] | None
    features: Rows | None
    embeddings: Rows | None
    logits: npt.NDArray[np.float32] | None
    tokens: npt.NDArray[np.int64] | None


def save_golden(path: Path, cases: Sequence[ReferenceCase]) -> None:
    """Write cases to an ``.npz`` file. The same cases give the same bytes."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "cases": np.array(json.dumps([{"name": case.name, "prompt": case.prompt} for case in cases]))
    }
    for case in cases:
        for number, image in enumerate(case.images):
            arrays[f"{case.name}/image{number}"] = image
        for key in ("video", "prompt_ids", "tiles", "logits", "tokens"):
            if (array := getattr(case, key)) is not None:
                arrays[f"{case.name}/{key}"] = array
        for key in ("features", "embeddings"):
            if (rows := getattr(case, key)) is not None:
                for part in ("index", "values", "norms"):
                    arrays[f"{case.name}/{key}/{part}"] = getattr(rows, part)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def golden_of(bundle: Bundle) -> tuple[ReferenceCase, ...]:
    """Reference vectors of a bundle. No more is unpacked than a bundle of its shapes can have.

    Raises:
        BundleError: See :func:`load_golden`.
    """
    vision, backbone = bundle.manifest.vision, bundle.manifest.backbone
    numbers = _CASES * (backbone.vocab_size + 2 * KEPT_ROWS * backbone.hidden)
    return load_golden(bundle.path(GOLDEN), 4 * numbers + _MAX_TILES * 3 * vision.image_size**2 + _SMALL)


def load_golden(path: Path, limit: int = _MAX_BYTES) -> tuple[ReferenceCase, ...]:
    """Read a file of :func:`save_golden`.

    Args:
        path: The file.
        limit: Largest size of the unpacked arrays, in bytes.

    Raises:
        BundleError: The file is missing, damaged, too large or of another form.
    """
    try:
        entries = _unpacked(path, limit)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} is missing: the bundle has no reference vectors",
            hint=f"compare with the checkpoint: onevision verify -m {path.parent} --reference CHECKPOINT",
        ) from error
    except _DAMAGE as error:
        raise BundleError(f"{path} is damaged", hint="copy or export the bundle again") from error
    try:
        arrays = {name.removesuffix(".npy"): parse_array(data) for name, data in entries.items()}
        heads = parse_json(str(arrays.pop("cases", "")))
        cases = tuple(_case(arrays, head) for head in build(_Heads, {"cases": heads}).cases)
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}", hint="copy or export the bundle again") from error
    if not cases:
        raise BundleError(f"{path} is damaged: it has no cases", hint="copy or export the bundle again")
    return cases


def _unpacked(path: Path, limit: int) -> dict[str, bytes]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.comment or entry.extra for entry in entries):
            # None was written: a wrong length, behind which the next entry is hidden.
            raise zipfile.BadZipFile("an entry has a comment")
        if sum(entry.file_size for entry in entries) > limit:
            raise zipfile.BadZipFile("too large")
        return {entry.filename: archive.read(entry) for entry in entries}


@dataclass(frozen=True)
class _Head:
    """Name and question of a case."""

    name: str
    prompt: str


@dataclass(frozen=True)
class _Heads:
    cases: tuple[_Head, ...]


def _case(arrays: dict[str, npt.NDArray[Any]], head: _Head) -> ReferenceCase:
    def array(key: str, kind: type[np.generic], dimensions: int) -> npt.NDArray[Any] | None:
        found = arrays.get(f"{head.name}/{key}")
        if found is not None and (found.dtype != kind or found.ndim != dimensions):
            raise ValueError(f"{head.name}/{key} is {found.dtype} of {found.ndim} dimensions")
        return found

    def needed(key: str, kind: type[np.generic], dimensions: int) -> npt.NDArray[Any]:
        if (found := array(key, kind, dimensions)) is None:
            raise ValueError(f"{head.name}/{key} is missing")
        return found

    def rows(key: str) -> Rows | None:
        if (index := array(f"{key}/index", np.int64, 1)) is None:
            return None
        found = Rows(index, needed(f"{key}/values", np.float32, 2), needed(f"{key}/norms", np.float32, 1))
        if len(found.values) != len(index) or not (index < len(found.norms)).all() or (index < 0).any():
            raise ValueError(f"{head.name}/{key} has rows that are not there")
        return found

    count = sum(key.startswith(f"{head.name}/image") for key in arrays)
    return ReferenceCase(
        name=head.name,
        prompt=head.prompt,
        images=tuple(needed(f"image{number}", np.uint8, 3) for number in range(count)),
        video=array("video", np.uint8, 4),
        prompt_ids=needed("prompt_ids", np.int64, 1),
        tiles=array("tiles", np.uint8, 4),
        features=rows("features"),
        embeddings=rows("embeddings"),
        logits=array("logits", np.float32, 1),
        tokens=array("tokens", np.int64, 1),
    )
