"""The reference is transformers' model as ``from_pretrained`` loads it, whatever the checkpoint's names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch

from onevision import OneVision
from onevision.export.checkpoint import Checkpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.tokenizer import read_tokenizer
from onevision.proof.golden import GREEDY_STEPS, VISUAL_ID, ReferenceCase
from onevision.proof.reference import Reference, fits_in_memory, golden_cases, synthetic_image
from onevision.proof.verify import verify
from tests.conftest import make_bundle, swap_head_rows
from tests.export.conftest import edit_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onevision.models.shapes import Naming

QUESTION = "What is it?"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def case(checkpoint: Path, *, images: int = 1, backbone: bool = True, **options: Any) -> ReferenceCase:
    pictures = [synthetic_image(84, 60, seed=seed) for seed in range(images)]
    with Checkpoint.open(checkpoint) as opened:
        reference = Reference(opened, backbone=backbone)
        return reference.case("case", QUESTION, images=pictures, **options)


def assert_same(one: ReferenceCase, other: ReferenceCase) -> None:
    for key in ("tiles", "logits", "tokens"):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
    for rows in ("features", "embeddings"):
        np.testing.assert_array_equal(getattr(one, rows).values, getattr(other, rows).values)


@pytest.mark.parametrize("naming", ["hf-4.52", "hf-5", "lmms-lab"])
@pytest.mark.parametrize("tied", [True, False])
def test_all_naming_schemes_are_the_same_model(tmp_path: Path, naming: Naming, tied: bool):
    spec = SynthSpec(tied=tied, seed=3)
    plain = synthesize(tmp_path / "hf", spec)
    renamed = synthesize(tmp_path / "renamed", replace(spec, naming=naming, shards=2))
    if naming == "lmms-lab":  # its tokenizer is another, and the ids of the prompt with it
        for file in (
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
            "added_tokens.json",
        ):
            shutil.copy(plain / file, renamed / file)
    assert_same(case(renamed), case(plain))


ODD = {
    "rope_theta": ("text_config", 5e4),
    "rms_norm_eps": ("text_config", 0.3),
    "layer_norm_eps": ("vision_config", 0.3),
}


@pytest.mark.parametrize("key", ODD)
def test_constants_of_the_config_reach_reference_and_bundle(toy_checkpoint: Path, tmp_path: Path, key: str):
    """from_pretrained, the reference and the bundle agree on them, and all differ from the toy."""
    from transformers import LlavaOnevisionForConditionalGeneration

    section, value = ODD[key]
    checkpoint = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda config: config[section].update({key: value}))
    changed, plain = case(checkpoint), case(toy_checkpoint)
    assert changed.logits is not None
    assert plain.logits is not None
    assert np.abs(changed.logits - plain.logits).max() > 0.01

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert changed.embeddings is not None
    rows = torch.from_numpy(changed.embeddings.values)
    embed = model.get_input_embeddings()
    parts = [rows if id_ == VISUAL_ID else embed(torch.tensor([id_])) for id_ in changed.prompt_ids.tolist()]
    with torch.inference_mode():
        logits = model(inputs_embeds=torch.cat(parts)[None]).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, changed.logits, rtol=1e-4, atol=1e-4)

    with OneVision.load(
        make_bundle(checkpoint, tmp_path / "bundle", backbone="f32"), device="cpu", threads=1
    ) as loaded:
        assert verify(loaded, [changed]).passed


def test_without_the_language_model_cases_end_at_the_visual_tokens(untied_checkpoint: Path):
    for images in (0, 1, 2):
        whole, part = (
            case(untied_checkpoint, images=images),
            case(untied_checkpoint, images=images, backbone=False),
        )
        assert part.logits is part.tokens is None
        np.testing.assert_array_equal(part.prompt_ids, whole.prompt_ids)
        if images:
            np.testing.assert_array_equal(part.tiles, whole.tiles)
            assert part.embeddings is not None
            assert whole.embeddings is not None
            np.testing.assert_array_equal(part.embeddings.values, whole.embeddings.values)


def test_memory_decides_whether_the_language_model_is_loaded(
    toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    free = psutil.virtual_memory()
    with Checkpoint.open(toy_checkpoint) as checkpoint:
        assert fits_in_memory(checkpoint)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=1_000_000))
        assert not fits_in_memory(checkpoint)


def first_case(checkpoint: Path) -> ReferenceCase:
    with Checkpoint.open(checkpoint) as opened:
        never_sampled = read_tokenizer(checkpoint, opened.config).never_sampled
        return golden_cases(Reference(opened, never_sampled=never_sampled))[0]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_the_continuation_ends_as_the_runtime_ends_it(untied_checkpoint: Path, tmp_path: Path, end: str):
    said = first_case(untied_checkpoint).tokens
    assert said is not None
    assert len(said) == GREEDY_STEPS
    with Checkpoint.open(untied_checkpoint) as opened:
        tokenizer = read_tokenizer(untied_checkpoint, opened.config)
    token = next(token for token in said.tolist() if said.tolist().index(token) >= 5)
    swapped = swap_head_rows(untied_checkpoint, tmp_path / "swapped", token, tokenizer.tokens.index(end))
    tokens = first_case(swapped).tokens
    assert tokens is not None
    assert tokens.tolist() == said.tolist()[: said.tolist().index(token)]
    make_bundle(swapped, tmp_path / "bundle", backbone="f32")  # where the two are compared


@pytest.mark.parametrize("never", ["<image>", "<video>", "[PAD765]"])
def test_banned_tokens_are_not_said_by_either(untied_checkpoint: Path, tmp_path: Path, never: str):
    """Here each would be said, in the place of a token that the toy says."""
    said = first_case(untied_checkpoint).tokens
    assert said is not None
    with Checkpoint.open(untied_checkpoint) as opened:
        tokenizer = read_tokenizer(untied_checkpoint, opened.config)
    banned = tokenizer.tokens.index(never)
    assert banned in tokenizer.never_sampled
    swapped = swap_head_rows(untied_checkpoint, tmp_path / "swapped", int(said[2]), banned)
    tokens = first_case(swapped).tokens
    assert tokens is not None
    assert tokens[:2].tolist() == said[:2].tolist()
    assert banned not in tokens
    with OneVision.load(
        make_bundle(swapped, tmp_path / "bundle", backbone="f32"), device="cpu", threads=1
    ) as loaded:
        assert verify(loaded, [first_case(swapped)]).passed


def test_golden_cases_are_the_same_every_time(toy_checkpoint: Path):
    one, other = first_case(toy_checkpoint), first_case(toy_checkpoint)
    assert_same(one, other)
    assert one.images[0].shape == (56, 84, 3)
    assert one.tiles is not None
    assert one.tiles.shape == (3, 56, 56, 3)


def test_synthetic_images_are_made_of_all_there_is_to_get_wrong():
    image = synthetic_image(120, 80, seed=1)
    assert (image.shape, image.dtype) == ((80, 120, 3), np.uint8)
    np.testing.assert_array_equal(image, synthetic_image(120, 80, seed=1))
    assert (image != synthetic_image(120, 80, seed=2)).mean() > 0.9
    assert len(np.unique(image)) > 200
    assert not any(
        np.array_equal(image, turned) for turned in (image[::-1], image[:, ::-1], image[..., ::-1])
    )


def test_the_prompt_is_the_training_format(toy_checkpoint: Path):
    from transformers import AutoTokenizer

    ids = case(toy_checkpoint, images=2).prompt_ids
    tokenizer = AutoTokenizer.from_pretrained(toy_checkpoint)
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<image> <image>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer(text).input_ids == np.where(ids == VISUAL_ID, image, ids).tolist()


def test_a_config_of_bare_essentials_is_enough(toy_checkpoint: Path, tmp_path: Path):
    """Keys at the reference's own defaults may be left out."""
    checkpoint = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for key in ("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"):
        del config[key]
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_same(case(checkpoint), case(toy_checkpoint))
