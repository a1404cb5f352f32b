"""Adapters: merged tensor by tensor, equal to PEFT's own merge; other kinds are refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from onevision import OneVision
from onevision.bundle import open_bundle
from onevision.cli import _run
from onevision.errors import CheckpointError, UnsupportedCheckpointError
from onevision.export.adapter import CONFIG, EXTRA_WEIGHTS, WEIGHTS, Adapter, is_adapter
from onevision.export.build import ExportOptions, export
from onevision.export.checkpoint import Checkpoint
from onevision.export.hub import FetchedCheckpoint
from onevision.export.tensors import canonical_name
from tests.conftest import NoProgress, make_bundle
from tests.export.conftest import edit_json

if TYPE_CHECKING:
    from pathlib import Path

peft = pytest.importorskip("peft")

EVERYWHERE = (
    r".*(language_model|vision_tower).*\.(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2)"
    r"|.*multi_modal_projector\.linear_[12]|.*embed_tokens"
)
CONFIGS: dict[str, dict[str, Any]] = {
    "everywhere": {"target_modules": EVERYWHERE},
    "attention alone": {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 3},
    "rank-stabilized": {"target_modules": ["k_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.0.mlp.up_proj": 2},
        "alpha_pattern": {"layers.0.mlp.up_proj": 7, "self_attn.q_proj": 1},
    },
    "a projector trained whole": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["multi_modal_projector"],
    },
    "with its biases": {"target_modules": ["q_proj", "k_proj"], "bias": "all"},
}


def train(checkpoint: Path, folder: Path, **options: Any) -> dict[str, np.ndarray]:
    """Save a random adapter of a checkpoint; all tensors of PEFT's merge, by canonical name."""
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **options}))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.save_pretrained(folder)
    merged = wrapped.merge_and_unload().state_dict()
    return {canonical_name(name): values.float().numpy() for name, values in merged.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on tied embeddings
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_merges_as_peft(
    options: dict[str, Any], tied: bool, toy_checkpoint: Path, untied_checkpoint: Path, tmp_path: Path
) -> None:
    folder = toy_checkpoint if tied else untied_checkpoint
    merged = train(folder, tmp_path, **options)
    with Checkpoint.open(folder) as checkpoint:
        adapter = Adapter(tmp_path, {name: checkpoint.shape(name) for name in checkpoint.names})
        assert adapter.names
        for name in checkpoint.names:
            values = np.asarray(checkpoint.tensor(name), np.float32)
            ours = adapter.merge(name, values) if name in adapter.names else values
            assert np.linalg.norm(ours - merged[name]) <= 1e-6 * np.linalg.norm(merged[name]), name
            assert (name in adapter.names) == (not np.array_equal(values, merged[name])), name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bundle_answers_as_the_merged_checkpoint(
    untied_checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    merged = train(untied_checkpoint, tmp_path / "adapter", target_modules=EVERYWHERE)
    whole = shutil.copytree(untied_checkpoint, tmp_path / "merged")
    save_file(
        {
            name: torch.from_numpy(merged[canonical_name(name)])
            for name in load_file(whole / "model.safetensors")
        },
        whole / "model.safetensors",
    )
    expected = make_bundle(whole, tmp_path / "expected", backbone="f32")
    source = FetchedCheckpoint(untied_checkpoint, None, None, tmp_path / "adapter")
    done = export(source, tmp_path / "bundle", ExportOptions(backbone="f32", threads=1), NoProgress())
    assert done.bundle.manifest.source.adapter == "adapter"
    tokens = []
    for folder in (
        tmp_path / "bundle",
        expected,
        make_bundle(untied_checkpoint, tmp_path / "base", backbone="f32"),
    ):
        with OneVision.load(folder, device="cpu", threads=1) as model:
            tokens.append(model.generate("What is it?", images=[photo], max_tokens=16).token_ids)
    assert tokens[0] == tokens[1] != tokens[2]


def test_the_command(toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(toy_checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    place = ("--source", str(toy_checkpoint), "-o", str(tmp_path / "bundle"), "--threads", "1")
    assert _run(["export", *place, "--adapter", str(tmp_path / "nothing")]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
    assert _run(["export", *place, "--adapter", str(tmp_path / "adapter"), "--json"]) == 0
    assert open_bundle(tmp_path / "bundle").manifest.source.adapter == "adapter"


@pytest.fixture
def saved(toy_checkpoint: Path, tmp_path: Path) -> Path:
    train(toy_checkpoint, tmp_path / "adapter", target_modules=["q_proj"])
    return tmp_path / "adapter"


@pytest.fixture(scope="module")
def shapes(toy_checkpoint: Path) -> dict[str, tuple[int, ...]]:
    with Checkpoint.open(toy_checkpoint) as checkpoint:
        return {name: checkpoint.shape(name) for name in checkpoint.names}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.module.", ""])
def test_names_as_trainers_wrap_them(saved: Path, shapes: dict[str, tuple[int, ...]], prefix: str) -> None:
    expected = Adapter(saved, shapes).names
    tensors = load_file(saved / WEIGHTS)
    bare = {name.removeprefix("base_model.model."): values for name, values in tensors.items()}
    save_file({prefix + name: values for name, values in bare.items()}, saved / WEIGHTS)
    assert Adapter(saved, shapes).names == expected


def test_llava_next_saves_the_rest_beside(saved: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    name = "model.multi_modal_projector.linear_1.bias"
    values = torch.full(shapes[name], 0.5)
    save_file({"base_model.model.model.mm_projector.0.bias": values}, saved / EXTRA_WEIGHTS)
    adapter = Adapter(saved, shapes)
    assert name in adapter.names
    assert (adapter.merge(name, np.zeros(shapes[name], np.float16)) == 0.5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "type PROMPT_TUNING"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "initialized by pissa"),
        ({"init_lora_weights": "loftq"}, "initialized by loftq"),
        ({"init_lora_weights": "olora"}, "initialized by olora"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_other_adapters_are_refused_by_name(
    saved: Path, shapes: dict[str, tuple[int, ...]], change: dict[str, Any], message: str
) -> None:
    edit_json(saved / CONFIG, lambda config: config.update(change))
    with pytest.raises(UnsupportedCheckpointError, match=message) as caught:
        Adapter(saved, shapes)
    assert "merge" in (caught.value.hint or "")


def test_faults(saved: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    def refused(message: str, kind: type[CheckpointError] = CheckpointError) -> None:
        with pytest.raises(kind, match=message) as caught:
            Adapter(saved, shapes)
        assert caught.value.hint

    tensors = load_file(saved / WEIGHTS)
    first = sorted(tensors)[0]
    whole = (saved / WEIGHTS).read_bytes()

    save_file({name: values for name, values in tensors.items() if name != first}, saved / WEIGHTS)
    refused("only one of the two factors")
    save_file(tensors | {first: torch.zeros(4, 3)}, saved / WEIGHTS)
    refused(r"changes .*q_proj of shape")
    save_file(tensors | {first: torch.zeros(3, 3)}, saved / WEIGHTS)
    refused("the factors of")
    other = {name.replace("layers.0", "layers.7"): values for name, values in tensors.items()}
    save_file(other, saved / WEIGHTS)
    refused(r"layers\.7.*does not have")
    (saved / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    refused("truncated or corrupt")
    (saved / WEIGHTS).rename(saved / "adapter_model.bin")
    refused("only as a pickle", UnsupportedCheckpointError)
    (saved / "adapter_model.bin").unlink()
    refused("lacks adapter_model")
    (saved / CONFIG).write_text("{", encoding="utf-8")
    refused("not valid JSON")
    (saved / CONFIG).unlink()
    assert not is_adapter(saved)
    refused("not an adapter")


def test_values_that_are_not_finite(saved: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = load_file(saved / WEIGHTS)
    first = next(name for name in sorted(tensors) if "language_model.layers.0." in name)
    tensors[first][0, 0] = float("nan")
    save_file(tensors, saved / WEIGHTS)
    adapter = Adapter(saved, shapes)
    changed = min(name for name in adapter.names if "layers.0." in name and "language_model" in name)
    with pytest.raises(CheckpointError, match="not finite"):
        adapter.merge(changed, np.zeros(shapes[changed], np.float32))


def test_a_scale_that_is_no_number(saved: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    config = json.loads((saved / CONFIG).read_text(encoding="utf-8"))
    (saved / CONFIG).write_text(json.dumps(config | {"lora_alpha": "much"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="lora_alpha is 'much'"):
        Adapter(saved, shapes)
