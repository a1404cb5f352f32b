"""Video tokens against LLaVA-NeXT's packing, for all positions of the newline and all pooling modes.

The reference below is written after ``llava_arch.py`` of LLaVA-NeXT (``get_2dPool``, ``add_token_per_grid``,
``add_token_per_frame``, ``prepare_inputs_labels_for_multimodal``), with its order of axes: channels first.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import torch
from torch.nn import functional

from onevision.bundle import NewlinePosition, Pooling, VideoInfo, open_bundle, pooled_side
from onevision.eval.ask import EvalSettings, ReferenceModel
from onevision.export.synth import SynthSpec, synthesize
from onevision.metrics import relative_error
from onevision.planning.budget import video_size
from onevision.planning.cost import Shape, prompt_cost
from onevision.proof.golden import load_golden
from onevision.runtime.engine import OneVision
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions
from onevision.runtime.pack import pack_video, pool_frames
from onevision.runtime.prompt import time_instruction
from tests.conftest import make_bundle
from tests.export.conftest import edit_json
from tests.runtime.media import noise

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

POSITIONS: tuple[NewlinePosition, ...] = get_args(NewlinePosition)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def llava_next(
    features: torch.Tensor, side: int, newline: torch.Tensor, position: str, pooling: str
) -> torch.Tensor:
    """Features [F, P, H] and newline [H] to tokens [n, H]."""
    frames, _, hidden = features.shape
    x = features.view(frames, side, side, hidden).permute(0, 3, 1, 2).contiguous()
    if pooling == "average":
        x = functional.avg_pool2d(x, 2)
    elif pooling == "max":
        x = functional.max_pool2d(x, 2)
    else:
        x = functional.interpolate(x, size=[math.ceil(side / 2)] * 2, mode="bilinear")
    x = x.permute(0, 2, 3, 1).reshape(frames, -1, hidden)
    if position == "grid":
        height = int(math.sqrt(x.shape[1]))
        x = x.view(frames, 1, height, height, hidden).permute(4, 0, 2, 1, 3).contiguous()
        x = x.flatten(1, 2).flatten(2, 3)  # [H, F · height, width]
        x = torch.cat((x, newline[:, None, None].expand(*x.shape[:-1], 1)), dim=-1)
        return x.flatten(1, 2).transpose(0, 1)
    if position == "frame":
        x = x.permute(2, 0, 1).contiguous()
        x = torch.cat((x, newline[:, None, None].expand(*x.shape[:-1], 1)), dim=-1)
        return x.permute(1, 2, 0).flatten(0, 1)
    x = x.flatten(0, 1)
    return torch.cat((x, newline[None]), dim=0) if position == "one_token" else x


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("frames", "side"), [(1, 2), (3, 4), (2, 5), (5, 8), (2, 27)])
def test_tokens_are_those_of_llava_next(position: NewlinePosition, pooling: Pooling, frames: int, side: int):
    random = np.random.default_rng(frames * side)
    features = random.standard_normal((frames, side**2, 8), np.float32)
    newline = random.standard_normal(8, np.float32)
    ours = pack_video(features, side, newline, position, pooling)
    theirs = llava_next(
        torch.from_numpy(features), side, torch.from_numpy(newline), position, pooling
    ).numpy()
    assert ours.shape == theirs.shape
    info = VideoInfo(32, pooled_side(side, pooling), position, pooling)
    assert len(ours) == info.tokens(frames)
    assert np.array_equal((ours == newline).all(1), (theirs == newline).all(1)), "newlines in the same places"
    if pooling == "bilinear":
        assert relative_error(ours, theirs) <= 1e-6
    else:
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("position", "tokens"), [("grid", 13_440), ("frame", 12_608), ("no_token", 12_544), ("one_token", 12_545)]
)
def test_64_frames_of_the_published_tile(position: NewlinePosition, tokens: int):
    assert VideoInfo(64, 14, position).tokens(64) == tokens


def test_pooling_of_an_odd_side_leaves_the_last_row_out():
    features = np.arange(9, dtype=np.float32).reshape(1, 9, 1)
    assert pool_frames(features, 3, "average").ravel().tolist() == [2.0]
    assert pool_frames(features, 3, "max").ravel().tolist() == [4.0]


# A whole checkpoint.


@pytest.fixture(scope="module")
def llava_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of a toy with the keys of LLaVA-Video."""
    folder = tmp_path_factory.mktemp("llava-video")
    checkpoint = synthesize(folder / "checkpoint", SynthSpec(naming="lmms-lab"))
    own = {"mm_newline_position": "grid", "add_time_instruction": True}
    edit_json(checkpoint / "config.json", lambda config: config.update(own))
    return make_bundle(checkpoint, folder / "bundle", backbone="f32")


@pytest.fixture(scope="module")
def model(llava_video: Path):
    with OneVision.load(llava_video, device="cpu", threads=1) as loaded:
        yield loaded


CLIPS: dict[str, NDArray[np.uint8]] = {
    f"{frames} frames of {width}x{height}": np.stack(
        [np.asarray(noise(width, height, seed=seed)) for seed in range(frames)]
    )
    for frames, width, height in ((1, 40, 40), (2, 80, 60), (5, 56, 56), (8, 33, 90), (16, 64, 36))
}


@pytest.mark.parametrize("name", CLIPS)
def test_five_clips_have_the_tokens_of_llava_next(model: OneVision, name: str):
    pipeline, clip = model.pipeline, CLIPS[name]
    prepared = pipeline.prepare(conversation_of("What?", (), clip, None), AnswerOptions(frames=len(clip)))
    (visual,) = prepared.visuals
    features = pipeline.image_features(visual.tiles)
    newline = np.load(model.bundle.path("image_newline.npy"))
    theirs = llava_next(torch.from_numpy(features), 4, torch.from_numpy(newline), "grid", "bilinear").numpy()
    ours = visual.pack(features)
    assert ours.shape == theirs.shape == (6 * len(clip), 128), "2 rows of 2 and a newline"
    assert prepared.image_tokens == len(ours)
    assert np.array_equal((ours == newline).all(1), (theirs == newline).all(1))
    assert relative_error(ours, theirs) <= 1e-6


def test_the_bundle_is_proven_and_says_by_what(model: OneVision):
    manifest = model.bundle.manifest
    assert (manifest.video.newline, manifest.video.frames) == ("grid", 64)
    (case,) = [case for case in manifest.quality["verify"]["cases"] if case["name"] == "video"]
    notes = {stage["stage"]: stage["note"] for stage in case["stages"]}
    assert case["passed"]
    assert "LLaVA-NeXT's rule (bilinear, grid), which transformers does not have" in notes["visual tokens"]
    golden = {case.name: case for case in load_golden(model.bundle.path("golden.npz"))}
    assert len(golden["video"].embeddings.norms) == 12, "2 frames of 6"


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("position", ["frame", "no_token"])
def test_other_packings_are_proven_too(position: str, pooling: str, tmp_path: Path):
    checkpoint = synthesize(tmp_path / "checkpoint", SynthSpec(naming="lmms-lab", layers=1, vision_layers=1))
    own = {"mm_newline_position": position, "mm_spatial_pool_mode": pooling}
    edit_json(checkpoint / "config.json", lambda config: config.update(own))
    manifest = open_bundle(make_bundle(checkpoint, tmp_path / "bundle", backbone="f32")).manifest
    assert manifest.quality["verify"]["passed"] is True
    assert manifest.video == VideoInfo(32, 2, position, pooling)  # type: ignore[arg-type]


# The time instruction.


def test_the_instruction_is_that_of_the_demo():
    assert time_instruction((0, 9, 19), 20, 10.0) == (
        "The video lasts for 2.00 seconds, and 3 frames are uniformly sampled from it. These frames are "
        "located at 0.00s,0.90s,1.90s.Please answer the following questions related to this video."
    )


def prompt_text(model: OneVision, prepared) -> str:
    pieces = model.pipeline.backbone.tokenizer.piece
    return "".join(
        b"".join(map(pieces, part)).decode() if isinstance(part, tuple) else "<video>"
        for part in prepared.parts
    )


def test_the_prompt_names_the_times_of_a_file(model: OneVision, clip: Path):
    messages = conversation_of("What happens?", (), clip, None)
    prepared = model.pipeline.prepare(messages, AnswerOptions(frames=3))
    said = time_instruction((0, 11, 23), 24, 10.0)
    assert prompt_text(model, prepared) == (
        f"system\nYou are a helpful assistant.\nuser\n<video>\n{said}\nWhat happens?\nassistant\n"
    )
    hf = model.pipeline.prepare(messages, AnswerOptions(frames=3, template="hf"))
    assert f"user <video>\n{said}\nWhat happens?" in prompt_text(model, hf)


def test_frames_without_times_have_no_instruction(model: OneVision):
    clip = next(iter(CLIPS.values()))
    prepared = model.pipeline.prepare(conversation_of("What?", (), clip, None), AnswerOptions())
    assert "<video>\nWhat?" in prompt_text(model, prepared)


def test_a_conversation_names_the_times_too(model: OneVision, clip: Path):
    with_file = model.pipeline.prepare(conversation_of("Why?", (), clip, None), AnswerOptions(frames=3))
    chat = model.chat(frames=3, max_tokens=1)
    chat.add_video(clip)
    assert chat.ask("Why?").usage.prompt_tokens == with_file.tokens


def test_the_plan_counts_newlines_and_the_instruction(llava_video: Path, model: OneVision, clip: Path):
    manifest = open_bundle(llava_video).manifest
    options = AnswerOptions(frames=5)
    cost = prompt_cost(Shape.of(manifest), [video_size(clip)], text_tokens=7, options=options)
    assert cost.image_tokens == 5 * 6
    instruction = cost.prompt_tokens - cost.image_tokens - 7
    silent = replace(manifest, video=replace(manifest.video, time_instruction=False))
    without = prompt_cost(Shape.of(silent), [video_size(clip)], text_tokens=7, options=options)
    assert without.prompt_tokens == without.image_tokens + 7
    assert instruction == 67, "as with Qwen2's tokenizer; the toy's own has more tokens for it"


def test_the_reference_of_an_evaluation_is_asked_the_same(llava_video: Path, model: OneVision, clip: Path):
    settings = EvalSettings(options=AnswerOptions(frames=3, max_tokens=8))
    reference = ReferenceModel(llava_video.parent / "checkpoint")
    assert (
        reference("Why?", (), clip, settings).text
        == model.generate("Why?", video=clip, frames=3, max_tokens=8).text.strip()
    )
