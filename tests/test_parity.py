"""The runtime against transformers' own LlavaOnevision, stage by stage, for checkpoints of many shapes.

The oracle here shares nothing with the package, not even with its reference: transformers loads the
checkpoint by ``from_pretrained``, prompts are written out by hand, pixels come from the slow image processor,
and answers from ``generate``. It reads files of transformers' names only; of the other checkpoints it gets a
twin, whose tensors are the same bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from onevision import OneVision
from onevision.export.synth import SynthSpec, synthesize
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions
from tests.conftest import make_bundle
from tests.reference import PillowProcessor, pooled
from tests.runtime.media import photograph

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = {
    "defaults": SynthSpec(),
    "untied, kv heads as many as heads, anyres_max_4": SynthSpec(
        tied=False, hidden=256, heads=8, kv_heads=8, intermediate=384, aspect_ratio="anyres_max_4", seed=1
    ),
    "one kv head, plain anyres, 5x5 patches": SynthSpec(
        kv_heads=1, image_size=70, aspect_ratio="anyres", naming="hf-4.52", seed=2
    ),
    "head dim 64, 8x8 patches, sharded": SynthSpec(
        hidden=256, heads=4, image_size=112, grid=3, vision_hidden=96, vision_heads=6, shards=3, seed=3
    ),
    "lmms-lab, untied, sharded": SynthSpec(
        naming="lmms-lab", tied=False, layers=3, shards=2, vision_layers=3, seed=4
    ),
    "lmms-lab, tied, 5x5 patches, anyres_max_4": SynthSpec(
        naming="lmms-lab", hidden=192, heads=6, kv_heads=3, image_size=70, aspect_ratio="anyres_max_4", seed=5
    ),
    "transformers 5 names, pixels left over, f16": SynthSpec(
        naming="hf-5", tied=False, image_size=60, dtype="f16", heads=2, kv_heads=1, seed=6
    ),
    "patches of 16, grid of 2, f32": SynthSpec(
        image_size=96, patch_size=16, grid=2, dtype="f32", hidden=320, heads=5, kv_heads=1, seed=7
    ),
    "lmms-lab, plain anyres, pixels left over": SynthSpec(
        naming="lmms-lab", image_size=60, aspect_ratio="anyres", vision_intermediate=200, seed=8
    ),
}
F16 = ("defaults", "untied, kv heads as many as heads, anyres_max_4", "lmms-lab, untied, sharded")

TOKENS = 32
FRAMES = 6
QUESTION = "What is on the table, and who stands behind it?"
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)

#: Largest error seen by stage; `pytest -s` shows it.
WORST: dict[str, float] = {}


@dataclass(frozen=True)
class Expected:
    """What transformers makes of one input."""

    ids: list[int]  # of the prompt, one for every position
    tiles: np.ndarray | None  # uint8 [T, S, S, 3]
    features: np.ndarray | None  # [T, P, H]
    visual_tokens: np.ndarray | None  # [n, H], as the backbone takes them
    logits: np.ndarray  # [vocabulary], after the prompt
    tokens: list[int]  # greedy


class Oracle:
    """transformers' model, and the tokenizer of the checkpoint under test."""

    def __init__(self, twin: Path, checkpoint: Path, rows: int) -> None:
        self.model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
            twin, dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        config = self.model.eval().config
        if config.vision_aspect_ratio == "anyres":
            # transformers reads a bound off the name and knows no other form: one that never binds.
            config.vision_aspect_ratio = "anyres_max_1000000"
        self.processor = PillowProcessor.from_pretrained(twin)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        ends = ("<|im_end|>", "<|endoftext|>")
        self.ends = [self.tokenizer.convert_tokens_to_ids(token) for token in ends]
        # lmms-lab's tokenizer gets <image> only for training; then by this very call (LLaVA-NeXT train.py).
        known = len(self.tokenizer)
        self.tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
        config.image_token_id, config.video_token_id = (
            self.tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<video>")
        )
        self.banned = sorted({*range(known, rows), config.image_token_id, config.video_token_id})

    @torch.inference_mode()
    def __call__(self, images: list[Path], video: Path | None) -> Expected:
        inputs: dict[str, Any] = {}
        pixels: list[torch.Tensor] = []
        if images:
            batch = self.processor(
                [[Image.open(path).convert("RGB") for path in images]], return_tensors="pt"
            )
            inputs |= {key: batch[key] for key in ("pixel_values", "image_sizes", "batch_num_images")}
            pixels += batch["pixel_values"]
        if video is not None:
            frames = self._frames(video)
            inputs["pixel_values_videos"] = frames[None]
            pixels.append(frames)
        ids = self._ids(inputs, len(images))
        features, visual_tokens = [], []
        config, inner = self.model.config, self.model.model
        places = torch.isin(ids[0], torch.tensor([config.image_token_id, config.video_token_id]))
        hooks = (
            inner.multi_modal_projector.register_forward_hook(lambda _module, _in, out: features.append(out)),
            inner.language_model.register_forward_pre_hook(
                lambda _module, _in, named: visual_tokens.append(named["inputs_embeds"]), with_kwargs=True
            ),
        )
        features.clear()
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **inputs,
            do_sample=False,
            max_new_tokens=TOKENS,
            eos_token_id=self.ends,
            pad_token_id=self.ends[1],
            suppress_tokens=self.banned,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for hook in hooks:
            hook.remove()
        tokens = out.sequences[0, ids.shape[1] :].tolist()
        return Expected(
            ids=ids[0].tolist(),
            tiles=_levels(torch.cat(pixels)) if pixels else None,
            features=torch.cat(features).numpy() if features else None,
            visual_tokens=visual_tokens[0][0][places].numpy() if pixels else None,
            logits=out.logits[0][0].numpy(),
            tokens=tokens[:-1] if tokens[-1] in self.ends else tokens,
        )

    def _ids(self, inputs: dict[str, Any], images: int) -> torch.Tensor:
        """The prompt's ids [1, n], each placeholder as often as its picture or video has visual tokens."""
        model, config = self.model.model, self.model.config
        marks = ["<image>"] * images
        lengths: list[int] = []
        if images:
            features = model.get_image_features(
                inputs["pixel_values"],
                inputs["image_sizes"],
                vision_aspect_ratio=config.vision_aspect_ratio,
                batch_num_images=inputs["batch_num_images"],
            )
            lengths += map(len, pooled(features))
        if "pixel_values_videos" in inputs:
            marks.append("<video>")
            features = model.get_video_features(
                inputs["pixel_values_videos"],
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
            )
            lengths.append(pooled(features).shape[1] // FRAMES * FRAMES + 1)  # some count the newline
        question = " ".join(marks) + "\n" + QUESTION if marks else QUESTION
        text = PROMPT.format(question=question)
        counts = iter(lengths)
        visual = (config.image_token_id, config.video_token_id)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor(
            [[copy for id_ in ids for copy in [id_] * (next(counts) if id_ in visual else 1)]]
        )

    def _frames(self, path: Path) -> torch.Tensor:
        """FRAMES frames spread over the video, squashed to a tile: [FRAMES, 3, S, S]."""
        with av.open(str(path)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
        size = (self.processor.size["width"], self.processor.size["height"])
        chosen = np.linspace(0, len(frames) - 1, FRAMES, dtype=int)
        levels = np.stack([np.asarray(frames[at].resize(size, Image.Resampling.BICUBIC)) for at in chosen])
        scaled = (levels * (1 / 255)).astype(np.float32)
        return torch.from_numpy((scaled - np.float32(0.5)) / np.float32(0.5)).permute(0, 3, 1, 2)


def _levels(pixels: torch.Tensor) -> np.ndarray:
    levels = pixels.numpy().transpose(0, 2, 3, 1) * 127.5 + 127.5
    assert np.abs(levels - levels.round()).max() < 1e-3
    return levels.round().astype(np.uint8)


@dataclass(frozen=True)
class Pair:
    """A checkpoint of one shape: what transformers makes of it, and its bundle in f32."""

    name: str
    checkpoint: Path
    oracle: Oracle
    model: OneVision


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    spec, folder = SHAPES[request.param], tmp_path_factory.mktemp("shape")
    checkpoint = twin = synthesize(folder / "checkpoint", spec)
    if spec.naming in ("lmms-lab", "hf-5"):
        twin = synthesize(folder / "twin", replace(spec, naming="hf", shards=1))
    oracle = Oracle(twin, checkpoint, spec.vocab)
    bundle = make_bundle(checkpoint, folder / "bundle", backbone="f32")
    with OneVision.load(bundle, device="cpu", threads=1) as model:
        yield Pair(request.param, checkpoint, oracle, model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> dict[str, Path]:
    """Photographs lying, upright, and as a narrow strip."""
    folder = tmp_path_factory.mktemp("pictures")
    photograph("hopper").save(folder / "hopper.png")
    photograph("flower").crop((40, 30, 620, 171)).save(folder / "flower.webp", lossless=True)
    return {"photo": photo, "upright": folder / "hopper.png", "strip": folder / "flower.webp"}


#: Pictures by name, and whether there is a video.
INPUTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "photograph": (("photo",), False),
    "upright": (("upright",), False),
    "strip": (("strip",), False),
    "two pictures": (("photo", "upright"), False),
    "video": ((), True),
    "picture and video": (("strip",), True),
    "text": ((), False),
}


@pytest.mark.parametrize("case", INPUTS)
def test_every_stage_is_what_transformers_computes(
    pair: Pair, pictures: dict[str, Path], clip: Path, case: str
):
    names, has_video = INPUTS[case]
    images, video = [pictures[name] for name in names], clip if has_video else None
    expected = pair.oracle(images, video)
    model = pair.model
    prepared = model.pipeline.prepare(
        conversation_of(QUESTION, images, video, None), AnswerOptions(frames=FRAMES)
    )

    placeholders = iter([pair.oracle.model.config.image_token_id] * len(images))
    ids: list[int] = []
    for part in prepared.parts:
        is_text = isinstance(part, tuple)
        video_id = pair.oracle.model.config.video_token_id
        ids += part if is_text else [next(placeholders, video_id)] * part.tokens
    assert ids == expected.ids

    embeddings = model.pipeline.encode(prepared)
    if expected.tiles is None:
        assert not prepared.visuals
    else:
        np.testing.assert_array_equal(
            np.concatenate([visual.tiles for visual in prepared.visuals]), expected.tiles
        )
        features = np.concatenate(
            [model.pipeline.image_features(visual.tiles) for visual in prepared.visuals]
        )
        assert error("image features", features, expected.features) <= 1e-4
        assert error("visual tokens", np.concatenate(embeddings), expected.visual_tokens) <= 1e-4
    model.pipeline.prefill(prepared, embeddings, room=1)
    assert error("logits f32", model.pipeline.backbone.logits(), expected.logits) <= 1e-3

    answer = model.generate(QUESTION, images=images, video=video, frames=FRAMES, max_tokens=TOKENS)
    assert list(answer.token_ids) == expected.tokens
    assert answer.usage.prompt_tokens == len(expected.ids)


@pytest.mark.parametrize("pair", F16, indirect=True)
def test_logits_of_an_f16_backbone_stay_close(
    pair: Pair, pictures: dict[str, Path], clip: Path, tmp_path: Path
):
    bundle = make_bundle(pair.checkpoint, tmp_path / "bundle", backbone="f16")
    with OneVision.load(bundle, device="cpu", threads=1) as model:
        for names, has_video in INPUTS.values():
            images, video = [pictures[name] for name in names], clip if has_video else None
            prepared = model.pipeline.prepare(
                conversation_of(QUESTION, images, video, None), AnswerOptions(frames=FRAMES)
            )
            model.pipeline.prefill(prepared, model.pipeline.encode(prepared), room=1)
            expected = pair.oracle(images, video)
            assert error("logits f16", model.pipeline.backbone.logits(), expected.logits) <= 5e-3


def error(stage: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Euclidean norm of the difference, over that of the reference."""
    assert ours.shape == theirs.shape
    relative = float(
        np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs.astype(np.float64))
    )
    WORST[stage] = max(WORST.get(stage, 0.0), relative)
    return relative


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def worst_errors():
    yield
    print("\nlargest relative errors:", ", ".join(f"{stage} {value:.1e}" for stage, value in WORST.items()))
