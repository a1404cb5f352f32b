"""What training tools leave behind: each is refused with the step that mends it."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onevision.errors import CheckpointError
from onevision.export.checkpoint import Checkpoint
from tests.export.conftest import edit_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHTS = "model.safetensors"
EMBEDDING = "language_model.model.embed_tokens.weight"


def rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_file(
            {change(name): values.clone() for name, values in load_file(folder / WEIGHTS).items()},
            folder / WEIGHTS,
        )

    return make


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        values = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
        change(values)
        save_file(values, folder / WEIGHTS)

    return make


def instead(**files: str) -> Callable[[Path], None]:
    """Other files in place of the weights."""

    def make(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        for name, text in files.items():
            (folder / name.replace("__dot__", ".")).write_text(text, encoding="utf-8")

    return make


def beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")


def empty_shards(values: dict[str, Any]) -> None:
    for name in values:
        values[name] = torch.zeros(0)


def more_rows(values: dict[str, Any]) -> None:
    values[EMBEDDING] = torch.cat([values[EMBEDDING], values[EMBEDDING][:3]])


def quantized(ending: str) -> Callable[[Path], None]:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    return tensors(lambda values: values.update({name + ending: torch.ones(3)}))


def not_finite(value: float) -> Callable[[Path], None]:
    def change(values: dict[str, Any]) -> None:
        values["language_model.model.layers.1.mlp.down_proj.weight"][2, 3] = value

    return tensors(change)


BASE = '{"peft_type": "LORA", "base_model_name_or_path": "someone/base"}'
KINDS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an adapter alone": (
        instead(adapter_config__dot__json=BASE),
        "is an adapter without its base model",
        "--source someone/base --adapter",
    ),
    "an adapter whose config is damaged": (
        instead(adapter_config__dot__json="{"),
        "is an adapter without its base model",
        "--source BASE --adapter",
    ),
    "weights and an adapter": (beside, "full weights and an adapter", "--adapter"),
    "a projector alone": (instead(mm_projector__dot__bin=""), "the projector alone", "later stage"),
    "ZeRO shards": (instead(zero_to_fp32__dot__py=""), "shards of DeepSpeed", "zero_to_fp32.py"),
    "FSDP shards": (instead(pytorch_model_fsdp_0="", __dot__metadata=""), "shards of FSDP", "merge-weights"),
    "names of PEFT": (rename(lambda name: f"base_model.model.{name}"), "missing", "merge_and_unload"),
    "names of PEFT's layers": (
        rename(lambda name: name.replace("q_proj.", "q_proj.base_layer.")),
        "missing",
        "merge_and_unload",
    ),
    "names of DDP": (rename(lambda name: f"module.{name}"), "missing", "model.module"),
    "names of torch.compile": (rename(lambda name: f"_orig_mod.{name}"), "missing", "_orig_mod"),
    "names of FSDP": (rename(lambda name: f"_fsdp_wrapped_module.{name}"), "missing", "FSDP"),
    "empty shards of ZeRO-3": (tensors(empty_shards), "of the wrong shape", "not gathered"),
    "rows added": (tensors(more_rows), "of the wrong shape", "set vocab_size"),
    "bitsandbytes": (quantized(".absmax"), "unexpected", "quantized .bitsandbytes."),
    "bitsandbytes with its state": (
        quantized(".quant_state.bitsandbytes__nf4"),
        "unexpected",
        "different checkpoints|bitsandbytes",
    ),
    "GPTQ": (quantized(".qweight"), "unexpected", "quantized .GPTQ or AWQ."),
    "fp8": (quantized(".weight_scale_inv"), "unexpected", "quantized .fp8."),
    "LoRA factors": (
        tensors(lambda values: values.update({"x.lora_A.weight": torch.ones(2)})),
        "unexpected",
        "--adapter",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_hints(kind: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    make, message, hint = KINDS[kind]
    folder = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    make(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    assert caught.value.hint is not None
    assert re.search(hint, caught.value.hint), caught.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(
    value: float, dtype: torch.dtype, toy_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    not_finite(value)(folder)
    tensors(lambda values: values.update({name: each.to(dtype) for name, each in values.items()}))(folder)
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.tensor("model.language_model.layers.0.mlp.down_proj.weight")
        with pytest.raises(
            CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight has values that are not"
        ):
            checkpoint.tensor("model.language_model.layers.1.mlp.down_proj.weight")


def test_the_largest_values_are_finite(toy_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        most = torch.finfo(dtype).max

        def change(values: dict[str, Any], dtype: torch.dtype = dtype, most: float = most) -> None:
            values[EMBEDDING] = torch.full_like(values[EMBEDDING], 0).to(dtype) - most

        tensors(change)(folder)
        with Checkpoint.open(folder) as checkpoint:
            checkpoint.tensor("model.language_model.embed_tokens.weight")


def test_a_quantized_checkpoint_is_named_by_its_config(toy_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    edit_json(
        folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "awq"})
    )
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    with pytest.raises(CheckpointError, match="quantization_config"):
        Checkpoint.open(folder)
