"""Hints for checkpoints that training tools leave behind and that cannot be exported as they are.

In: a folder without usable weights, or names and shapes that do not fit its config. Out: the step that makes
it a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onevision.export.adapter import CONFIG, is_adapter
from onevision.export.tensors import EMBEDDING, HEAD, canonical_name
from onevision.typed import read_json

#: Prefixes and infixes that wrappers add to a model's names, and who adds them.
_WRAPPERS = {
    "base_model.model.": "PEFT: merge the adapter with merge_and_unload, or export the base with --adapter",
    ".base_layer.": "PEFT: merge the adapter with merge_and_unload, or export the base with --adapter",
    "module.": "DataParallel or DDP: save model.module instead of model",
    "_orig_mod.": "torch.compile: save model._orig_mod instead of model",
    "_fsdp_wrapped_module.": "FSDP: gather the full state dict before saving",
}
#: Endings of tensors that quantized formats add, and the format.
_QUANTIZED = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight_scale": "fp8",
    ".weight_scale_inv": "fp8",
    ".weight_packed": "compressed-tensors",
}
_TOWER = ("model.vision_tower.", "model.multi_modal_projector.linear_1.")  # and what depends on its width
_DIFFERENT = "weights and config.json are of different checkpoints, or a part was left out"
_ZERO = "run DeepSpeed's zero_to_fp32.py in the folder with --safe_serialization, and export its output"


def folder_fault(folder: Path) -> tuple[str, str] | None:
    """Fault and hint of a folder without full weights, or None if there is nothing special to say."""
    names = {path.name for path in folder.iterdir()}
    if is_adapter(folder):
        base = _base_of(folder)
        return (
            f"{folder} is an adapter without its base model",
            f"onevision export --source {base or 'BASE'} --adapter {folder}",
        )
    if names & {"mm_projector.bin", "mm_projector.safetensors"}:
        return (
            f"{folder} has the projector alone, as the first stage of LLaVA's training saves it",
            "export a checkpoint of a later stage, or load it with its base model and save the whole",
        )
    if any(name.startswith(("global_step", "zero_pp_rank_")) for name in names) or "zero_to_fp32.py" in names:
        return f"{folder} has only the shards of DeepSpeed ZeRO", _ZERO
    if any(name.startswith(("pytorch_model_fsdp", "__0_")) or name == ".metadata" for name in names):
        return (
            f"{folder} has only the shards of FSDP",
            "merge them with accelerate merge-weights, and export the result",
        )
    return None


def tensor_hint(
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> str:
    """Hint for tensors that do not fit the config.

    Args:
        missing: Canonical names.
        unexpected: Names as stored.
        misshapen: Shapes as stored and as expected, by canonical name.
    """
    for ending, kind in _QUANTIZED.items():
        if any(name.endswith(ending) or f"{ending}." in name for name in unexpected):
            return f"the weights are quantized ({kind}): export the original checkpoint, and quantize here"
    if any(0 in shape for shape, _ in misshapen.values()):
        return (
            "empty tensors are shards of DeepSpeed ZeRO-3 that were not gathered: set "
            f"stage3_gather_16bit_weights_on_model_save when training, or {_ZERO}"
        )
    for mark, advice in _WRAPPERS.items():
        if any(mark in name and canonical_name(name.replace(mark, "", 1)) in missing for name in unexpected):
            return f"names are wrapped ({mark.strip('.')}) by {advice}"
        if mark == ".base_layer." and any(mark in name for name in unexpected):
            return f"names are wrapped (base_layer) by {advice}"
    if misshapen and misshapen.keys() <= {EMBEDDING, HEAD}:
        (rows, *_), (expected, *_) = misshapen[min(misshapen)]
        return (
            f"the embedding has {rows} rows: if tokens were added, set vocab_size in config.json, at the top "
            f"or in text_config, to {rows} (it is {expected})"
        )
    if all(canonical_name(name).startswith(_TOWER) for name in (*missing, *unexpected, *misshapen)):
        return (
            "the weights have another vision tower than config.json says: in lmms-lab naming, name it with "
            "--vision-tower"
        )
    if unexpected and any(".lora_" in name for name in unexpected):
        return "the file holds LoRA factors: export the base model with --adapter"
    return _DIFFERENT


def _base_of(adapter: Path) -> str | None:
    """Name of the model that an adapter was trained on, as its config says."""
    try:
        config = read_json(adapter / CONFIG)
    except (OSError, ValueError):
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return base if isinstance(base, str) else None
