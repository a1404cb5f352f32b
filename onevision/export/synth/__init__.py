"""Checkpoints of the right shape with random weights: tests and benchmarks without a download.

In: a :class:`SynthSpec`. Out: a folder that looks like a published checkpoint (config, tokenizer,
safetensors), in any naming scheme. Weights, biases, norms and newline are all random and distinct, so that
none can be dropped or mixed up unnoticed, and scaled so that activations stay as in a trained model.
"""

from __future__ import annotations

import hashlib
from itertools import groupby
from math import prod, sqrt
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import UsageError
from onevision.export.synth.files import DTYPES, SynthSpec, config_files
from onevision.export.synth.vocabulary import write_json
from onevision.export.tensors import expected_tensors, optional_tensors, stored_name
from onevision.files import disk_space, is_vacant, whole_folder
from onevision.progress import Advance

__all__ = ["SynthSpec", "synthesize", "tensors_of", "weights_of"]

_BACKBONE = ("model.language_model.", "lm_head.")


def synthesize(out: Path, spec: SynthSpec, *, advance: Advance | None = None) -> Path:
    """Write a checkpoint with random weights. Same spec, same bytes.

    Memory: one shard, and its largest tensor once more in float32.

    Args:
        out: Folder to create; it may exist if it is empty.
        spec: What to write.
        advance: Called with the fraction that is done.

    Returns:
        ``out``.

    Raises:
        UsageError: ``out`` is a file or a folder that is not empty.
        ExportError: No disk space.
    """
    if not is_vacant(out):
        raise UsageError(f"{out} exists and is not an empty folder", hint="choose another")
    size = _bytes_of(spec, tensors_of(spec))
    with whole_folder(out) as work, disk_space(work, size):
        vocabulary = spec.vocabulary
        vocabulary.write(work)
        for name, values in config_files(spec, vocabulary.ids).items():
            (work / name).parent.mkdir(exist_ok=True)
            write_json(work / name, values)
        _write_weights(work, spec, advance)
    return out


def tensors_of(spec: SynthSpec) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of all tensors."""
    return {**expected_tensors(spec.config), **optional_tensors(spec.config)}


def weights_of(spec: SynthSpec) -> tuple[int, int]:
    """Number of weights of the vision encoder with its projector, and of the backbone with its head."""
    counts = {name: prod(shape) for name, shape in tensors_of(spec).items()}
    backbone = sum(count for name, count in counts.items() if name.startswith(_BACKBONE))
    return sum(counts.values()) - backbone, backbone


def _bytes_of(spec: SynthSpec, tensors: dict[str, tuple[int, ...]]) -> int:
    return sum(map(prod, tensors.values())) * (4 if spec.dtype == "f32" else 2)


def _random(name: str, shape: tuple[int, ...], spec: SynthSpec) -> npt.NDArray[Any]:
    """One tensor from a generator of its own: the same in all naming schemes and shardings."""
    import ml_dtypes  # noqa: F401 (gives numpy bfloat16)

    seed = int.from_bytes(hashlib.sha256(f"{spec.seed} {name}".encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.SFC64(seed)).standard_normal(shape, dtype=np.float32)
    if name.endswith(".bias"):
        values *= 0.05
    elif "norm" in name:
        values = values * np.float32(0.1) + 1
    elif len(shape) == 1 or "position" in name:
        values *= 0.3
    else:
        # Keeps the variance of the input. What a layer of the backbone adds has to outweigh the embedding,
        # or a tied head would repeat the last token again and again.
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        values *= (3 if adds else 1) / sqrt(prod(shape[1:]))
    return values.astype(DTYPES[spec.dtype])


def _write_weights(folder: Path, spec: SynthSpec, advance: Advance | None) -> None:
    """Write the shards one after the other, of about the same size."""
    from safetensors.numpy import save_file

    tensors = tensors_of(spec)
    total = sum(map(prod, tensors.values()))
    before = np.cumsum([0, *map(prod, tensors.values())])[:-1]
    shards = (before * spec.shards // total).tolist()  # of each tensor, by where it begins
    numbered = zip(shards, tensors.items(), strict=True)
    parts = [[item for _, item in group] for _, group in groupby(numbered, key=itemgetter(0))]
    weight_map = {}
    done = 0
    for number, part in enumerate(parts, start=1):
        file = "model.safetensors" if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        shard = {}
        for name, shape in part:
            shard[stored_name(name, spec.naming)] = _random(name, shape, spec)
            done += prod(shape)
            if advance is not None:
                advance(done / total)
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    if len(parts) > 1:
        index = {"metadata": {"total_size": _bytes_of(spec, tensors)}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
