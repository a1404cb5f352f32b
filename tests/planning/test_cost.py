"""What `plan` says a prompt costs is what the run then costs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onevision import OneVision
from onevision.bundle import open_bundle
from onevision.cli import _run
from onevision.models.shapes import published_config
from onevision.planning.cost import Media, Shape, prompt_cost
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def published(size: Any) -> Shape:
    return Shape.of_config(published_config(size))


def picture(width: int, height: int) -> Media:
    return Media(f"{width}x{height}", "image", width, height)


def video(frames: int | None) -> Media:
    return Media("clip", "video", 640, 360, frames)


@pytest.fixture(scope="module")
def shape(toy_bundle: Path) -> Shape:
    manifest = open_bundle(toy_bundle).manifest
    return Shape(manifest.vision, manifest.backbone, manifest.video)


# Counts.

#: Rows of the model's table: width, height, rows and columns of tiles, passes of the encoder, tokens.
PUBLISHED_SIZES = (
    (384, 384, (1, 1), 2, 1485),
    (385, 384, (1, 2), 3, 1512),
    (640, 427, (2, 2), 5, 2709),
    (480, 640, (2, 2), 5, 2943),
    (1024, 899, (3, 3), 10, 6551),
    (1920, 1080, (3, 5), 16, 7269),
    (1080, 2400, (6, 3), 19, 7329),
    (4032, 3024, (5, 6), 31, 7309),
    (10000, 10000, (6, 6), 37, 7371),
    (5000, 100, (1, 6), 7, 1218),
)


@pytest.mark.parametrize(("width", "height", "grid", "tiles", "tokens"), PUBLISHED_SIZES)
def test_pictures_of_the_published_models(
    width: int, height: int, grid: tuple[int, int], tiles: int, tokens: int
):
    costs = prompt_cost(published("0.5b"), [picture(width, height)], text_tokens=30)
    (planned,) = costs.inputs
    assert (planned.grid, planned.tiles, planned.image_tokens) == (grid, tiles, tokens)
    assert (costs.tiles, costs.image_tokens, costs.prompt_tokens) == (tiles, tokens, tokens + 30)
    assert costs.context_length == 32768


def test_several_pictures_and_videos_of_the_published_models():
    two = prompt_cost(published("7b"), [picture(640, 427), picture(1, 1)], text_tokens=0)
    assert [(item.grid, item.tiles, item.image_tokens) for item in two.inputs] == [(None, 1, 730)] * 2
    clip = prompt_cost(published("7b"), [video(500)], text_tokens=0)
    assert (clip.tiles, clip.image_tokens, clip.inputs[0].frames) == (32, 6273, 32)
    assert (
        prompt_cost(
            published("7b"), [video(500)], text_tokens=0, options=AnswerOptions(frames=8)
        ).image_tokens
        == 1569
    )
    assert prompt_cost(published("7b"), [video(5)], text_tokens=0).tiles == 5
    # One picture beside a video is still tiled.
    mixed = prompt_cost(published("7b"), [picture(640, 427), video(8)], text_tokens=0)
    assert [item.image_tokens for item in mixed.inputs] == [2709, 1569]


def test_memory_and_work_of_the_published_models():
    small = published("0.5b")
    assert small.kv_bytes_per_token == 12 * 1024
    assert prompt_cost(small, [picture(1024, 1024)], text_tokens=0).kv_bytes == 7371 * 12 * 1024
    assert small.encode_flops(1) == pytest.approx(0.64e12, rel=0.02)
    # 0.72 GFLOP a token and its share of the attention; the head for one position only.
    assert small.prefill_flops(1001) - small.prefill_flops(1000) == pytest.approx(0.72e9 + 0.086e9, rel=0.02)


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(toy_bundle, device="cpu", threads=1) as loaded:
        yield loaded


sizes = st.tuples(st.integers(1, 500), st.integers(1, 500))


@given(pictures=st.lists(sizes, max_size=3))
@settings(max_examples=50)
def test_counts_are_those_of_the_prompt(shape: Shape, model: OneVision, pictures: list[tuple[int, int]]):
    images = [Image.new("RGB", size) for size in pictures]
    prepared = model.pipeline.prepare(conversation_of("Hi.", images, None, None), AnswerOptions())
    text = prepared.tokens - prepared.image_tokens
    costs = prompt_cost(shape, [picture(*size) for size in pictures], text_tokens=text)
    assert [item.tiles for item in costs.inputs] == [len(visual.tiles) for visual in prepared.visuals]
    assert [item.image_tokens for item in costs.inputs] == [visual.tokens for visual in prepared.visuals]
    assert (costs.tiles, costs.image_tokens, costs.prompt_tokens) == (
        prepared.tiles,
        prepared.image_tokens,
        prepared.tokens,
    )


@pytest.mark.parametrize("case", ["picture", "two pictures", "video", "frames", "text"])
def test_the_command_plans_what_the_run_uses(
    toy_bundle: Path, photo: Path, clip: Path, case: str, capsys: pytest.CaptureFixture[str]
):
    files, flags = {
        "picture": ([photo], ["--image", photo]),
        "two pictures": ([photo, photo], ["--image", photo, "--image", photo]),
        "video": ([clip], ["--video", clip]),
        "frames": ([clip, "--frames", "5"], ["--video", clip, "--frames", "5"]),
        "text": ([], []),
    }[case]
    question = "What is on the table?"

    def command(*arguments: Any) -> dict[str, Any]:
        assert _run([*map(str, arguments), "-m", str(toy_bundle), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    planned = command("plan", *files, "--prompt", question)
    usage = command("run", question, *flags, "--max-tokens", "1", "--device", "cpu", "--threads", "1")[
        "usage"
    ]
    for count in ("tiles", "image_tokens", "prompt_tokens"):
        assert planned["usage"][count] == usage[count], count


# Work, against torch's own count of what transformers' model does.


@pytest.fixture(scope="module")
def reference(toy_checkpoint: Path) -> Any:
    from transformers import LlavaOnevisionForConditionalGeneration

    # torch's counter knows the products of eager attention, and not the kernel that fuses them on a CPU.
    kind = LlavaOnevisionForConditionalGeneration
    return kind.from_pretrained(toy_checkpoint, attn_implementation="eager").model


def counted(run: Any) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def test_the_encoder_works_as_much_as_planned(shape: Shape, reference: Any):
    import torch

    pixels = torch.zeros(3, 3, 56, 56, dtype=reference.dtype)

    def encode() -> None:
        hidden = reference.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        reference.multi_modal_projector(hidden)

    assert counted(encode) == shape.encode_flops(3)


def test_the_backbone_works_as_much_as_planned(shape: Shape, reference: Any):
    import torch

    tokens, backbone = 40, shape.backbone
    ids = torch.zeros(1, tokens, dtype=torch.long)
    whole = counted(lambda: reference.language_model(input_ids=ids))
    # torch counts every query with every key, of which causal attention needs those before it.
    pairs, needed = tokens**2, tokens * (tokens + 1) // 2
    attention = 4 * backbone.layers * backbone.hidden
    head = 2 * backbone.hidden * backbone.vocab_size
    angles = (
        tokens * backbone.hidden // backbone.heads
    )  # transformers multiplies them out, llama.cpp does not
    assert shape.prefill_flops(tokens) == whole - attention * (pairs - needed) - angles + head


def test_a_plan_is_plain_json(shape: Shape):
    costs = prompt_cost(shape, [picture(100, 100), video(None)], text_tokens=10)
    assert json.loads(json.dumps(costs.to_dict()))["inputs"][0]["path"] == "100x100"
