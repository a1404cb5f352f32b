"""Reference vectors: outputs of the reference implementation, stage by stage, for a few inputs.

:mod:`onevision.proof.reference` computes them. A bundle carries them in ``golden.npz``, so that ``onevision
verify`` needs no torch.
"""

from __future__ import annotations

import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import BundleError

#: Stands for a whole image or video in ``prompt_ids`` (LLaVA's IMAGE_TOKEN_INDEX).
VISUAL_ID = -200
#: Length of the greedy continuation.
GREEDY_STEPS = 32
#: Rows of a matrix that ``golden.npz`` keeps in full; of the others it keeps the norms.
KEPT_ROWS = 48
#: Largest size of the unpacked arrays; those of the 72b take 20 MB.
_MAX_BYTES = 64 << 20

# Errors of zipfile and numpy on damaged archives; they have no common base.
_DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


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


def load_golden(path: Path) -> tuple[ReferenceCase, ...]:
    """Read a file of :func:`save_golden`.

    Raises:
        BundleError: The file is missing, damaged, too large or of another form.
    """
    try:
        # Opened here: of a damaged archive numpy leaves its own file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            entries = data.zip.infolist()
            if any(entry.comment or entry.extra for entry in entries):
                # None was written: a wrong length, behind which the next entry is hidden.
                raise zipfile.BadZipFile("an entry has a comment")
            if sum(entry.file_size for entry in entries) > _MAX_BYTES:
                raise zipfile.BadZipFile("too large")
            arrays = {name: data[name] for name in data.files}
        heads = json.loads(str(arrays["cases"]))
        return tuple(_case(arrays, head["name"], head["prompt"]) for head in heads)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} is missing: the bundle has no reference vectors",
            hint="compare with the checkpoint instead: onevision verify --reference CHECKPOINT",
        ) from error
    except _DAMAGE as error:
        raise BundleError(f"{path} is damaged", hint="copy or export the bundle again") from error


def _case(arrays: dict[str, npt.NDArray[Any]], name: str, prompt: str) -> ReferenceCase:
    def rows(key: str) -> Rows | None:
        if f"{name}/{key}/index" not in arrays:
            return None
        return Rows(*(arrays[f"{name}/{key}/{part}"] for part in ("index", "values", "norms")))

    count = sum(key.startswith(f"{name}/image") for key in arrays)
    return ReferenceCase(
        name=name,
        prompt=prompt,
        images=tuple(arrays[f"{name}/image{number}"] for number in range(count)),
        video=arrays.get(f"{name}/video"),
        prompt_ids=arrays[f"{name}/prompt_ids"],
        tiles=arrays.get(f"{name}/tiles"),
        features=rows("features"),
        embeddings=rows("embeddings"),
        logits=arrays.get(f"{name}/logits"),
        tokens=arrays.get(f"{name}/tokens"),
    )
