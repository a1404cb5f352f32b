"""LoRA adapters of PEFT and of LLaVA-NeXT's trainer, merged into a checkpoint's tensors at export.

In: an adapter's folder. Out: for each tensor of the checkpoint that it changes, the merged values, float32.
W' = W + s·B·A with s = alpha / r, or alpha / sqrt(r) with rank stabilization
(``peft.tuners.lora.layer.Linear.get_delta_weight``). Only one tensor is held at a time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import CheckpointError, UnsupportedCheckpointError
from onevision.export.section import Section, read_json
from onevision.export.tensors import canonical_name
from onevision.export.weights import StoredTensor, read_header

Array = npt.NDArray[Any]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
#: Fully trained tensors beside the adapter; LLaVA-NeXT's train.py saves them as a pickle of this name.
EXTRA_WEIGHTS = "non_lora_trainables.safetensors"

#: Prefixes that trainers wrap around a model's own names.
_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")
_PARTS = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.(?P<leaf>weight|bias))?"
)
#: Settings of ``LoraConfig`` that change what a merge is: values other than these are refused by name.
_PLAIN: dict[str, tuple[object, ...]] = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
}
#: Initializations that leave the base weights as they are.
_KEEPS_BASE = (True, False, "gaussian", "orthogonal", "eva", "lora_ga", None)


@dataclass(frozen=True)
class _Lora:
    """The two factors of one matrix."""

    a: StoredTensor  # [r, in]; of an embedding [r, rows]
    b: StoredTensor  # [out, r]; of an embedding [columns, r]
    scale: float
    is_embedding: bool

    def delta(self) -> npt.NDArray[np.float32]:
        """What is added to the matrix, float32 of its shape."""
        product = self.b.read().astype(np.float32) @ self.a.read().astype(np.float32)
        return (product.T if self.is_embedding else product) * np.float32(self.scale)


class Adapter:
    """An adapter whose every tensor is known to belong to a tensor of a checkpoint.

    Attributes:
        names: Canonical names of the tensors that it changes.

    Args:
        folder: The adapter's folder.
        shapes: Shape of each tensor of the checkpoint by canonical name.

    Raises:
        UnsupportedCheckpointError: Another kind of adapter, or pickles only.
        CheckpointError: Files are missing or damaged, or tensors do not fit the checkpoint.
    """

    def __init__(self, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        config = _read_config(folder)
        self._loras: dict[str, _Lora] = {}
        self._whole: dict[str, StoredTensor] = {}
        pairs: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
        for stored in read_header(_weights(folder)):
            match = _PARTS.fullmatch(_unwrapped(stored.name))
            if match and match["leaf"] != "bias":
                key = match["module"], bool(match["embedding"])
                pairs.setdefault(key, {})[match["side"]] = stored
            else:
                self._add_whole(stored)
        for (module, is_embedding), sides in pairs.items():
            if sides.keys() != {"A", "B"}:
                raise CheckpointError(
                    f"{folder / WEIGHTS} has only one of the two factors of {module}", hint=_HINT
                )
            rank = next(iter(sides["A"].shape), 0)
            if rank == 0:
                raise CheckpointError(f"{folder / WEIGHTS}: the factors of {module} are empty", hint=_HINT)
            lora = _Lora(sides["A"], sides["B"], _scale(config, module, rank), is_embedding)
            self._loras[canonical_name(f"{module}.weight")] = lora
            _check_shape(folder, module, lora, shapes)
        if (folder / EXTRA_WEIGHTS).is_file():
            for stored in read_header(folder / EXTRA_WEIGHTS):
                self._add_whole(stored)
        self.names = frozenset(self._loras) | frozenset(self._whole)
        if not self.names:
            raise CheckpointError(f"{folder / WEIGHTS} has no tensors", hint=_HINT)
        if foreign := sorted(self.names - shapes.keys()):
            raise CheckpointError(
                f"the adapter {folder} changes {foreign[0]}, which the checkpoint does not have",
                hint="merge it into the checkpoint that it was trained on: see base_model_name_or_path in "
                f"{CONFIG}",
            )

    def _add_whole(self, stored: StoredTensor) -> None:
        name = canonical_name(_unwrapped(stored.name).replace(".modules_to_save.default.", "."))
        if ".lora_" in name:
            raise UnsupportedCheckpointError(
                f"{stored.file} has {stored.name}, which is no part of a LoRA adapter"
            )
        self._whole[name] = stored

    def merge(self, name: str, values: Array) -> npt.NDArray[np.float32]:
        """A tensor of the checkpoint with the adapter merged into it, float32.

        Args:
            name: A canonical name, one of :attr:`names`.
            values: The checkpoint's tensor.

        Raises:
            CheckpointError: The file has changed since it was opened.
        """
        merged: npt.NDArray[np.float32] = values.astype(np.float32)
        if stored := self._whole.get(name):
            if stored.shape != values.shape:
                raise CheckpointError(
                    f"{stored.file}: {stored.name} is {list(stored.shape)}, the checkpoint's is "
                    f"{list(values.shape)}",
                    hint="rows that were added need a checkpoint whose config.json has the new vocab_size",
                )
            merged = stored.read().astype(np.float32)
        if lora := self._loras.get(name):
            merged += lora.delta()
        return merged


_HINT = "fetch or save the adapter again"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def _read_config(folder: Path) -> Section:
    """``adapter_config.json`` of a LoRA adapter whose merge is the plain one."""
    if not is_adapter(folder):
        raise CheckpointError(f"{folder} is not an adapter: it has no {CONFIG}", hint="name PEFT's folder")
    data = read_json(folder / CONFIG)
    config = Section(data, f"{CONFIG}: ")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedCheckpointError(
            f"{folder} is an adapter of type {kind}, only LORA can be merged",
            hint="merge it with PEFT's merge_and_unload and export the result",
        )
    for key, plain in _PLAIN.items():
        if (value := config.get(key)) not in plain:
            raise UnsupportedCheckpointError(
                f"the adapter {folder} uses {key} ({value!r}), which is not a plain LoRA",
                hint="merge it with PEFT's merge_and_unload and export the result",
            )
    start = config.get("init_lora_weights")
    if start not in _KEEPS_BASE:
        raise UnsupportedCheckpointError(
            f"the adapter {folder} was initialized by {start}, which changes the base weights too",
            hint="save it with path_initial_model_for_weight_conversion, or merge it with PEFT's "
            "merge_and_unload",
        )
    return config


def _weights(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if any((folder / name).exists() for name in ("adapter_model.bin", "non_lora_trainables.bin")):
        raise UnsupportedCheckpointError(
            f"{folder} has its weights only as a pickle",
            hint="a pickle can run any code when it is read: on a machine that you can trust it with, load "
            "it with PEFT and save it with save_pretrained(…, safe_serialization=True)",
        )
    raise CheckpointError(f"{folder} lacks {WEIGHTS}", hint=_HINT)


def _unwrapped(stored: str) -> str:
    """A tensor's name without the prefixes of trainers, and without PEFT's name for the wrapped layer."""
    name, before = stored, ""
    while name != before:
        before = name
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
    # LLaVA-NeXT wraps its own model once more, and strips it when loading (llava/model/builder.py).
    if name.startswith("model.model."):
        name = name.removeprefix("model.")
    return name.replace(".base_layer.", ".")


def _scale(config: Section, module: str, rank: int) -> float:
    """Factor of B·A for a module (``peft.tuners.lora.layer.LoraLayer.update_layer``)."""
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})", module)
        except re.error as error:
            raise CheckpointError(f"{CONFIG}: alpha_pattern has {pattern!r}: {error}", hint=_HINT) from error
        if found:
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"{CONFIG}: lora_alpha is {alpha!r}, a number is needed", hint=_HINT)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_shape(folder: Path, module: str, lora: _Lora, shapes: dict[str, tuple[int, ...]]) -> None:
    a, b = lora.a.shape, lora.b.shape
    expected = shapes.get(canonical_name(f"{module}.weight"))
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise CheckpointError(
            f"{folder / WEIGHTS}: the factors of {module} are {list(a)} and {list(b)}", hint=_HINT
        )
    changed = (a[1], b[0]) if lora.is_embedding else (b[0], a[1])
    if expected is not None and changed != expected:
        raise CheckpointError(
            f"the adapter {folder} changes {module} of shape {list(changed)}, the checkpoint's is "
            f"{list(expected)}",
            hint="merge it into the checkpoint that it was trained on",
        )
