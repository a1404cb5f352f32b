"""The weights of a checkpoint, checked whole and read one at a time.

In: a folder with ``config.json`` and ``model.safetensors``, or shards with their index. Out: tensors by their
canonical names (:mod:`onevision.export.tensors`), in the type they are stored in.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from onevision.errors import CheckpointError, UnsupportedCheckpointError
from onevision.export.adapter import Adapter, is_adapter
from onevision.export.config import read_config
from onevision.export.faults import folder_fault, tensor_hint
from onevision.export.section import DAMAGED_HINT, Section, read_json, show
from onevision.export.tensors import (
    EMBEDDING,
    HEAD,
    canonical_name,
    expected_tensors,
    is_unused,
    optional_tensors,
)
from onevision.export.weights import StoredTensor, damaged, read_header
from onevision.models.shapes import ModelConfig

StoredType = Literal["F32", "F16", "BF16"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
PICKLE_HINT = (
    "a pickle can run any code when it is read: on a machine that you can trust it with, load it with the "
    "library that wrote it and save it with save_pretrained(…, safe_serialization=True)"
)

_BYTES: dict[StoredType, int] = {"F32": 4, "F16": 2, "BF16": 2}
_FOLDER_HINT = "name the folder that holds config.json and the weights"
_LISTED = 8
_ROWS_COMPARED = 4096


class Checkpoint:
    """A checkpoint whose every tensor is known to be there, with the shape that its config asks for.

    No file stays open and no tensor is kept: a conversion that takes one after the other needs the memory of
    the largest.

    Attributes:
        folder: Where it lies.
        config: Its shape.
        names: Canonical names of all tensors, unused ones left out; ``lm_head.weight`` only when untied.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        stored: Mapping[str, StoredTensor],
        adapter: Adapter | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self._stored = dict(stored)
        self._adapter = adapter

    @classmethod
    def open(
        cls, folder: Path, *, adapter: Path | None = None, vision_tower: str | None = None
    ) -> Checkpoint:
        """Read the config and the headers, and check every tensor for presence, shape and type.

        Args:
            folder: The checkpoint's folder.
            adapter: Folder of an adapter that is merged into the tensors as they are read.
            vision_tower: See :func:`~onevision.export.config.read_config`.

        Raises:
            UnsupportedCheckpointError: Another architecture or adapter, pickles only, or quantized weights.
            CheckpointError: Files are missing or damaged, or the tensors are not what the config says.
        """
        try:
            is_empty = next(folder.iterdir(), None) is None
        except FileNotFoundError:
            raise CheckpointError(f"there is no folder {folder}", hint=_FOLDER_HINT) from None
        except NotADirectoryError:
            raise CheckpointError(
                f"{folder} is a file, not the folder of a checkpoint", hint=_FOLDER_HINT
            ) from None
        except OSError as error:
            raise damaged(folder, error) from error
        if is_empty:
            raise CheckpointError(f"{folder} is empty", hint=_FOLDER_HINT)
        if not _has_weights(folder) and (fault := folder_fault(folder)):
            raise UnsupportedCheckpointError(fault[0], hint=fault[1])
        if adapter is None and is_adapter(folder):
            raise CheckpointError(
                f"{folder} has full weights and an adapter: which of them is meant is not clear",
                hint=f"--adapter {folder} merges it; move the adapter away to export the weights as they are",
            )
        config = read_config(folder, vision_tower)
        stored = _by_canonical_name(_read_headers(folder))
        _check(folder, config, stored)
        if config.text.tied and HEAD in stored:
            _check_same_head(stored[EMBEDDING], stored[HEAD])
        known = {**expected_tensors(config), **optional_tensors(config)}
        found = {name: stored[name] for name in known if name in stored}
        shapes = {name: tensor.shape for name, tensor in found.items()}
        return cls(folder, config, found, Adapter(adapter, shapes) if adapter else None)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of all tensors."""
        return tuple(self._stored)

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is merged into the tensors."""
        return self._adapter is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._stored[name].shape

    def dtype(self, name: str) -> StoredType:
        """Type in which a tensor is stored; of a merged one, F32."""
        if self._adapter and name in self._adapter.names:
            return "F32"
        return cast("StoredType", self._stored[name].dtype)

    def bytes_of(self, prefix: str = "") -> int:
        """Bytes that the tensors whose names start so take in their stored type."""
        names = [name for name in self.names if name.startswith(prefix)]
        return sum(math.prod(self.shape(name)) * _BYTES[self.dtype(name)] for name in names)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """One tensor in its stored type: float32, float16 or ml_dtypes' bfloat16. A merged one is float32.

        Args:
            name: A canonical name.

        Raises:
            CheckpointError: The file has changed since it was opened, or values are not finite.
        """
        values = self._stored[name].read()
        if self._adapter and name in self._adapter.names:
            return self._adapter.merge(name, values)
        return values

    def close(self) -> None:
        """Forget the tensors; asking for one afterwards is a KeyError."""
        self._stored.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _has_weights(folder: Path) -> bool:
    return (folder / SINGLE_FILE).exists() or (folder / INDEX_FILE).exists()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint; a single file goes before an index, as in transformers.

    Raises:
        UnsupportedCheckpointError: There are pickles alone.
        CheckpointError: There are no weights, or the index is damaged or names a file that is missing.
    """
    if (folder / SINGLE_FILE).exists():
        return (folder / SINGLE_FILE,)
    if (folder / INDEX_FILE).exists():
        files = tuple(folder / shard for shard in dict.fromkeys(_read_index(folder / INDEX_FILE).values()))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {_some(missing)}, which {INDEX_FILE} names",
                hint="fetch the checkpoint again",
            )
        return files
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        hint = f"weights are {SINGLE_FILE}, or shards with {INDEX_FILE}: fetch what is missing"
        raise CheckpointError(
            f"{folder} has safetensors files but neither {SINGLE_FILE} nor an index", hint=hint
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        message = f"{folder} has its weights only as pickles ({_some(pickles)})"
        raise UnsupportedCheckpointError(message, hint=PICKLE_HINT)
    raise CheckpointError(f"{folder} has no weights", hint=f"{SINGLE_FILE} is looked for, or {INDEX_FILE}")


def _read_index(path: Path) -> dict[str, str]:
    """Which file has which tensor, by their stored names."""
    shards = Section(read_json(path), f"{path.name}: ").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path} has no weight_map", hint=DAMAGED_HINT)
    for shard in shards.values():
        is_name = isinstance(shard, str) and PurePosixPath(shard).name == PureWindowsPath(shard).name == shard
        if not is_name or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path} names {show(shard)}, which is no safetensors file beside it", hint=DAMAGED_HINT
            )
    return shards


def _read_headers(folder: Path) -> list[StoredTensor]:
    """Tensors named in the headers of a checkpoint's files; an index must agree with them."""
    files = weight_files(folder)
    found = [stored for path in files for stored in read_header(path)]
    if files[0].name != SINGLE_FILE:
        held = {(stored.file.name, stored.name) for stored in found}
        index = _read_index(folder / INDEX_FILE)
        absent = [f"{name} in {shard}" for name, shard in index.items() if (shard, name) not in held]
        if absent:
            message = f"{folder / INDEX_FILE} names tensors that are not there: {_some(absent)}"
            raise CheckpointError(
                message, hint="index and shards are of different checkpoints: fetch them again"
            )
    return found


def _by_canonical_name(found: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    named: dict[str, StoredTensor] = {}
    for stored in found:
        other = named.setdefault(canonical_name(stored.name), stored)
        if other is not stored:
            places = " and ".join(f"{copy.name} in {copy.file.name}" for copy in (other, stored))
            hint = "the folder mixes files of two checkpoints: fetch one into a folder of its own"
            raise CheckpointError(f"{places} are the same tensor", hint=hint)
    return named


def _check(folder: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Compare the headers with what the config asks for, and list every difference."""
    expected = expected_tensors(config)
    shapes = {**expected, **optional_tensors(config)}
    if config.text.tied:
        shapes[HEAD] = shapes[EMBEDDING]
    missing = [name for name in expected if name not in stored]
    extra = [
        found.name for name, found in stored.items() if name not in shapes and not is_unused(name, config)
    ]
    misshapen = {
        name: (stored[name].shape, shape)
        for name, shape in shapes.items()
        if name in stored and stored[name].shape != shape
    }
    wrong = [
        f"{name} is {list(is_)} and should be {list(should)}" for name, (is_, should) in misshapen.items()
    ]
    faults = {"missing": missing, "unexpected": extra, "of the wrong shape": wrong}
    if any(faults.values()):
        wrong_names = "; ".join(
            f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names
        )
        hint = tensor_hint(missing, extra, misshapen)
        raise CheckpointError(
            f"{folder} does not have the tensors that config.json asks for: {wrong_names}", hint=hint
        )
    by_type: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        if name in stored and stored[name].dtype not in _BYTES:
            by_type[stored[name].dtype].append(name)
    if by_type:
        others = "; ".join(f"{len(names)} as {dtype}: {_some(names)}" for dtype, names in by_type.items())
        hint = "only F32, F16 and BF16 can be exported: take the original instead of a quantized checkpoint"
        raise UnsupportedCheckpointError(f"{folder} stores tensors in other types: {others}", hint=hint)


def _check_same_head(embedding: StoredTensor, head: StoredTensor) -> None:
    """A head that is stored although it is tied must be the embedding, or one of the two would be lost.

    Both are read once, some rows at a time; the published tied files do not store it.
    """
    import ml_dtypes  # noqa: F401 (gives numpy bfloat16)
    from safetensors import safe_open

    with safe_open(embedding.file, framework="np") as one, safe_open(head.file, framework="np") as other:
        first, second = one.get_slice(embedding.name), other.get_slice(head.name)
        for row in range(0, embedding.shape[0], _ROWS_COMPARED):
            rows = slice(row, min(row + _ROWS_COMPARED, embedding.shape[0]))
            if not np.array_equal(first[rows].astype(np.float32), second[rows].astype(np.float32)):
                raise CheckpointError(
                    "config.json sets tie_word_embeddings, but lm_head.weight differs from the embedding",
                    hint="set tie_word_embeddings to false, at the top and in text_config, to keep that head",
                )


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
