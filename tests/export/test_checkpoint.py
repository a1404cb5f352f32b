"""Reading checkpoints: four naming schemes, single files and shards, and every fault before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onevision.errors import CheckpointError, UnsupportedCheckpointError
from onevision.export.checkpoint import Checkpoint, weight_files
from onevision.export.config import read_config
from onevision.export.tensors import canonical_name, expected_tensors, optional_tensors
from tests.export.conftest import (
    SCHEMES,
    Scheme,
    as_lmms_lab,
    as_transformers_4,
    edit_json,
    edit_tensors,
    rename_tensors,
    renamed,
    tiny_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Models = dict[bool, tuple[Path, dict[str, Any]]]

NEWLINE = "image_newline"
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
POST_LAYERNORM = "vision_tower.vision_model.post_layernorm.weight"


def shard(folder: Path, parts: int = 3) -> dict[str, str]:
    """Spread ``model.safetensors`` over several files and return the weight map of their index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    weight_map: dict[str, str] = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        held = {name: tensors[name].clone() for name in sorted(tensors)[part::parts]}
        save_file(held, folder / file)
        weight_map |= dict.fromkeys(held, file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return weight_map


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_tensor_is_the_models(
    scheme: Scheme, tied: bool, sharded: bool, tiny_models: Models, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_models[tied][0], tmp_path / "it")
    rename_tensors(folder, scheme)
    if sharded:
        shard(folder)
    expected = dict(tiny_models[tied][1])
    if tied:
        del expected["lm_head.weight"]
    with Checkpoint.open(folder) as checkpoint:
        assert sorted(checkpoint.names) == sorted(expected)
        for name, tensor in expected.items():
            assert np.array_equal(checkpoint.tensor(name), tensor.numpy()), name
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert checkpoint.dtype(name) == "F32"
        assert checkpoint.bytes_of() == sum(t.numel() * 4 for t in expected.values())
        assert checkpoint.bytes_of("model.image_newline") == 64 * 4
        assert (checkpoint.folder, checkpoint.config) == (folder, read_config(folder))


@pytest.mark.parametrize("stored_layers", [2, 3], ids=["last layer left out", "last layer stored"])
def test_lmms_lab(stored_layers: int, tiny: Path, tiny_models: Models) -> None:
    as_lmms_lab(tiny, stored_layers=stored_layers)
    expected = {name: t for name, t in tiny_models[True][1].items() if name != "lm_head.weight"}
    with Checkpoint.open(tiny) as checkpoint:
        assert checkpoint.config.format == "lmms-lab"
        assert sorted(checkpoint.names) == sorted(expected)
        assert all(
            np.array_equal(checkpoint.tensor(name), tensor.numpy()) for name, tensor in expected.items()
        )


@pytest.mark.parametrize(("stored", "size"), [("F32", 4), ("F16", 2), ("BF16", 2)])
def test_stored_type_is_kept(stored: str, size: int, tiny: Path, tiny_models: Models) -> None:
    import torch

    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[stored]
    edit_tensors(tiny, lambda tensors: tensors.update({name: t.to(kind) for name, t in tensors.items()}))
    checkpoint = Checkpoint.open(tiny)
    name = "model.language_model.norm.weight"
    assert checkpoint.dtype(name) == stored
    assert checkpoint.bytes_of(name) == 64 * size
    read, expected = checkpoint.tensor(name), tiny_models[True][1][name].to(kind)
    assert str(read.dtype) == str(kind).removeprefix("torch.")
    assert np.array_equal(read.astype(np.float32), expected.float().numpy())


def test_types_may_differ_from_tensor_to_tensor(tiny: Path) -> None:
    edit_tensors(tiny, lambda tensors: tensors.update({NEWLINE: tensors[NEWLINE].half()}))
    checkpoint = Checkpoint.open(tiny)
    assert checkpoint.dtype("model.image_newline") == "F16"
    assert checkpoint.dtype("model.language_model.norm.weight") == "F32"


# 0.5b, 7b and 72b have these; the last is kept short of its 80 layers.
@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "kv", "intermediate", "vocab", "tied"),
    [
        (896, 24, 14, 2, 4864, 152000, True),
        (3584, 28, 28, 4, 18944, 152128, False),
        (8192, 4, 64, 8, 29568, 152128, False),
    ],
)
def test_expected_tensors_are_transformers(
    hidden: int,
    layers: int,
    heads: int,
    kv: int,
    intermediate: int,
    vocab: int,
    tied: bool,
    tmp_path: Path,
) -> None:
    import torch
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    reference = LlavaOnevisionConfig(
        text_config={
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "intermediate_size": intermediate,
            "vocab_size": vocab,
            "tie_word_embeddings": tied,
        },
    )
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(reference)
    (tmp_path / "config.json").write_text(reference.to_json_string(), encoding="utf-8")
    config = read_config(tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    as_transformers_4(shapes)
    if tied:
        del shapes["lm_head.weight"]
    assert {**expected_tensors(config), **optional_tensors(config)} == shapes
    for name in shapes:
        file_name = name.replace("model.language_model.", "language_model.model.")
        file_name = file_name.removeprefix("model.").replace("lm_head.", "language_model.lm_head.")
        assert {canonical_name(renamed(file_name, scheme)) for scheme in SCHEMES} == {name}


@pytest.mark.parametrize(
    "names",
    [
        ["vision_tower.vision_model.head.probe", "vision_tower.vision_model.head.attention.in_proj_weight"],
        ["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"],
        ["vision_tower.vision_model.embeddings.position_ids"],
    ],
)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_harmless_extras(names: list[str], scheme: Scheme, tiny: Path) -> None:
    import torch

    plain = Checkpoint.open(tiny).names
    edit_tensors(
        tiny, lambda tensors: tensors.update({name: torch.ones(3, dtype=torch.int64) for name in names})
    )
    rename_tensors(tiny, scheme)
    assert Checkpoint.open(tiny).names == plain


def test_post_layernorm_may_be_left_out(tiny: Path) -> None:
    edit_tensors(
        tiny, lambda tensors: [tensors.pop(name) for name in list(tensors) if "post_layernorm" in name]
    )
    assert not any("post_layernorm" in name for name in Checkpoint.open(tiny).names)


def test_tied_head_that_is_stored(tiny: Path) -> None:
    edit_tensors(tiny, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert "lm_head.weight" not in Checkpoint.open(tiny).names


@pytest.mark.parametrize("row", [0, 511])
def test_tied_head_that_differs(row: int, tiny: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors[HEAD][row, 63] += 1

    edit_tensors(tiny, change)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding") as caught:
        Checkpoint.open(tiny)
    assert "text_config" in str(caught.value.hint)


def drop(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: [tensors.pop(name) for name in names]


def reshape(name: str, *shape: int) -> Callable[[dict[str, Any]], object]:
    def change(tensors: dict[str, Any]) -> None:
        import torch

        tensors[name] = torch.zeros(shape)

    return change


def cast(name: str, kind: str) -> Callable[[dict[str, Any]], object]:
    import torch

    return lambda tensors: tensors.update({name: tensors[name].to(getattr(torch, kind))})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop(NEWLINE), ["1 missing: model.image_newline"]),
        (drop(EMBEDDING), ["1 missing: model.language_model.embed_tokens.weight"]),
        (
            drop(
                "language_model.model.layers.1.self_attn.q_proj.bias",
                "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            ),
            ["2 missing", "model.language_model.layers.1.self_attn.q_proj.bias", "layers.0.mlp.fc1.weight"],
        ),
        (reshape("extra.weight", 3), ["1 unexpected: extra.weight"]),
        (
            reshape("language_model.model.layers.2.mlp.up_proj.weight", 96, 64),
            ["1 unexpected", "layers.2.mlp"],
        ),
        (reshape("vision_tower.vision_model.encoder.layers.2.layer_norm1.bias", 32), ["1 unexpected"]),
        (reshape("language_model.model.layers.0.self_attn.o_proj.bias", 64), ["1 unexpected", "o_proj.bias"]),
        (reshape(NEWLINE, 63), ["1 of the wrong shape: model.image_newline is [63] and should be [64]"]),
        (reshape(EMBEDDING, 500, 64), ["embed_tokens.weight is [500, 64] and should be [512, 64]"]),
        (reshape(EMBEDDING, 512 * 64), ["is [32768] and should be [512, 64]"]),
        (reshape(HEAD, 511, 64), ["lm_head.weight is [511, 64] and should be [512, 64]"]),
        (reshape("language_model.model.layers.0.self_attn.k_proj.weight", 64, 64), ["should be [32, 64]"]),
        (reshape("vision_tower.vision_model.embeddings.position_embedding.weight", 9, 32), ["be [16, 32]"]),
        (reshape("multi_modal_projector.linear_1.weight", 32, 64), ["is [32, 64] and should be [64, 32]"]),
        (reshape(POST_LAYERNORM, 31), ["post_layernorm.weight is [31]"]),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[dict[str, Any]], object], told: list[str], tiny: Path
) -> None:
    edit_tensors(tiny, change)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tiny)
    assert not isinstance(caught.value, UnsupportedCheckpointError)
    assert [part for part in told if part not in caught.value.message] == []
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_untied_needs_its_head(untied: Path) -> None:
    edit_tensors(untied, drop(HEAD))
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight"):
        Checkpoint.open(untied)


def test_long_lists_are_cut(tiny: Path) -> None:
    edit_json(
        tiny / "config.json",
        lambda values: values["text_config"].update(num_hidden_layers=4, layer_types=None),
    )
    with pytest.raises(CheckpointError, match=r"24 missing: .* and 16 more$") as caught:
        Checkpoint.open(tiny)
    assert caught.value.message.count("model.language_model.layers.2.") == 8


@pytest.mark.parametrize("kind", ["float64", "int8", "float8_e4m3fn", "int64", "bool"])
def test_other_types(kind: str, tiny: Path) -> None:
    edit_tensors(tiny, cast("language_model.model.layers.0.mlp.up_proj.weight", kind))
    with pytest.raises(
        UnsupportedCheckpointError, match=r"1 as \w+: .*layers\.0\.mlp\.up_proj\.weight"
    ) as caught:
        Checkpoint.open(tiny)
    assert "F32, F16 and BF16" in str(caught.value.hint)


def test_one_tensor_in_two_schemes(tiny: Path) -> None:
    edit_tensors(tiny, lambda tensors: tensors.update({"model.image_newline": tensors[NEWLINE].clone()}))
    with pytest.raises(
        CheckpointError, match=r"image_newline in .* and .*image_newline in .* are the same tensor"
    ):
        Checkpoint.open(tiny)


def test_single_file_goes_before_an_index(tiny: Path) -> None:
    whole = (tiny / "model.safetensors").read_bytes()
    shard(tiny)
    (tiny / "model.safetensors").write_bytes(whole)
    assert weight_files(tiny) == (tiny / "model.safetensors",)


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def put(name: str, contents: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(contents)


def patched(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def only_pickles(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / SINGLE).rename(folder / name)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (patched(SINGLE, lambda data: data[:-1]), "truncated or corrupt"),
        (patched(SINGLE, lambda data: data[: len(data) // 2]), "truncated or corrupt"),
        (patched(SINGLE, lambda data: data[:100]), "truncated or corrupt"),
        (patched(SINGLE, lambda data: data + b"more"), "truncated or corrupt"),
        (patched(SINGLE, lambda data: b"\xff" * 8 + data[8:]), "truncated or corrupt"),
        (patched(SINGLE, lambda data: data[:8] + b"{{{{" + data[12:]), "truncated or corrupt"),
        (put(SINGLE, b""), "truncated or corrupt"),
        (put(SINGLE, b"<html>not found</html>"), "truncated or corrupt"),
        (
            put(SINGLE, b"version https://git-lfs.github.com/spec/v1\noid sha256:1f\nsize 542208\n"),
            "Git LFS pointer",
        ),
        (
            lambda folder: [(folder / SINGLE).unlink(), (folder / SINGLE).mkdir()],
            r"cannot read .*model\.safetensors",
        ),
        (lambda folder: (folder / SINGLE).unlink(), "has no weights"),
        (only_pickles("pytorch_model.bin"), r"only as pickles \(pytorch_model\.bin\)"),
        (only_pickles("consolidated.00.pth"), r"only as pickles \(consolidated\.00\.pth\)"),
        (only_pickles("other.safetensors"), r"neither model\.safetensors nor an index"),
        (only_pickles("model-00001-of-00002.safetensors"), r"neither model\.safetensors nor an index"),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    ],
)
def test_damaged_folder(damage: Callable[[Path], object], told: str, tiny: Path) -> None:
    damage(tiny)
    with pytest.raises(CheckpointError, match=told) as caught:
        Checkpoint.open(tiny)
    assert "\n" not in caught.value.message
    assert str(tiny) in caught.value.message


def test_pickles_are_unsupported_and_the_way_out_is_told(tiny: Path) -> None:
    (tiny / SINGLE).rename(tiny / "pytorch_model.bin")
    with pytest.raises(UnsupportedCheckpointError) as caught:
        Checkpoint.open(tiny)
    assert "safe_serialization=True" in str(caught.value.hint)


def weight_map(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / INDEX, lambda index: change(index["weight_map"]))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / SHARD).unlink(), f"lacks {SHARD}"),
        (patched(SHARD, lambda data: data[:-1]), f"{SHARD} is truncated or corrupt"),
        (put(SHARD, b"version https://git-lfs.github.com/spec/v1\n"), f"{SHARD} is a Git LFS pointer"),
        (
            weight_map(lambda names: names.update({"more.weight": SHARD})),
            f"not there: more.weight in {SHARD}",
        ),
        (
            weight_map(
                lambda names: names.update({NEWLINE: next(v for v in names.values() if v != names[NEWLINE])})
            ),
            "not there: image_newline in model-",
        ),
        (
            weight_map(lambda names: names.update({NEWLINE: "../model.safetensors"})),
            r"\.\./model\.safetensors",
        ),
        (
            weight_map(lambda names: names.update({NEWLINE: "/etc/model.safetensors"})),
            r"/etc/model\.safetensors",
        ),
        (
            weight_map(lambda names: names.update({NEWLINE: "a\\b.safetensors"})),
            "no safetensors file beside it",
        ),
        (
            weight_map(lambda names: names.update({NEWLINE: "C:b.safetensors"})),
            "no safetensors file beside it",
        ),
        (
            weight_map(lambda names: names.update({NEWLINE: "pytorch_model.bin"})),
            "no safetensors file beside it",
        ),
        (weight_map(lambda names: names.update({NEWLINE: 7})), "names 7"),
        (weight_map(lambda names: names.update({NEWLINE: ".."})), "no safetensors file beside it"),
        (weight_map(lambda names: names.clear()), "no weight_map"),
        (put(INDEX, b'{"weight_map": [1]}'), "no weight_map"),
        (put(INDEX, b"[]"), "not a JSON object"),
        (put(INDEX, b"{"), "not valid JSON"),
    ],
)
def test_damaged_shards(damage: Callable[[Path], object], told: str, tiny: Path) -> None:
    shard(tiny)
    damage(tiny)
    with pytest.raises(CheckpointError, match=told) as caught:
        Checkpoint.open(tiny)
    assert "\n" not in caught.value.message


def test_same_tensor_in_two_shards(tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    names = shard(tiny)
    other = next(file for file in names.values() if file != names[NEWLINE])
    tensors = {name: tensor.clone() for name, tensor in load_file(tiny / other).items()}
    save_file(tensors | {NEWLINE: load_file(tiny / names[NEWLINE])[NEWLINE].clone()}, tiny / other)
    with pytest.raises(CheckpointError, match="are the same tensor"):
        Checkpoint.open(tiny)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is empty"):
        Checkpoint.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_weights(tiny: Path) -> None:
    (tiny / SINGLE).chmod(0)
    with pytest.raises(CheckpointError, match="cannot read"):
        Checkpoint.open(tiny)


def test_files_that_vanish_later(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    (tiny / SINGLE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        checkpoint.tensor("model.image_newline")
    (tiny / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint.tensor("model.image_newline")


def test_close(tiny: Path) -> None:
    with Checkpoint.open(tiny) as checkpoint:
        held = checkpoint.tensor("model.image_newline")
    assert held.shape == (64,), "a tensor outlives its checkpoint"
    with pytest.raises(KeyError):
        checkpoint.tensor("model.image_newline")


MEASURE = """
import re, sys
import ml_dtypes
import numpy as np
import safetensors
from pathlib import Path
from onevision.export.checkpoint import Checkpoint

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

with Checkpoint.open(Path(sys.argv[1])) as checkpoint:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    for name in checkpoint.names:
        checkpoint.tensor(name).sum()
    print(memory("VmHWM") - before, checkpoint.bytes_of() // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_one_tensor(tiny: Path) -> None:
    """Each tensor is touched whole; the file is 100 MB and its largest tensor 8 MB."""
    config = tiny_config(tied=True)
    config.text_config.intermediate_size = 32768
    config.text_config.num_hidden_layers = 4
    config.text_config.layer_types = ["full_attention"] * 4
    config.text_config.vocab_size = 2048

    from transformers import LlavaOnevisionForConditionalGeneration

    LlavaOnevisionForConditionalGeneration(config).save_pretrained(tiny)
    command = [sys.executable, "-c", MEASURE, str(tiny)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    grown, stored = (int(number) for number in printed)
    assert stored > 90_000
    assert grown < 25_000


def test_a_tower_that_the_tensors_are_not_of(tiny: Path) -> None:
    """A path of the trainer's whose last part is wrong is found by the tensors; the right one is named."""
    as_lmms_lab(tiny)
    edit_json(tiny / "tower" / "config.json", lambda tower: tower["vision_config"].update(patch_size=28))
    with pytest.raises(CheckpointError, match="vision_tower") as caught:
        Checkpoint.open(tiny)
    assert "--vision-tower" in str(caught.value.hint)
    right = shutil.copytree(tiny / "tower", tiny / "right")
    edit_json(right / "config.json", lambda tower: tower["vision_config"].update(patch_size=14))
    with Checkpoint.open(tiny, vision_tower=str(right)) as checkpoint:
        assert checkpoint.config.vision.patches == 16
