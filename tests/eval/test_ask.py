"""Questions through the real engine: what the model sees of them, and what is written down."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision import OneVision
from onevision.eval import ask as asking
from onevision.eval.ask import EvalSettings, of_bundle, run_id
from onevision.eval.questions import tiny_suite
from onevision.eval.suite.sample import normalize
from onevision.runtime.anyres import squash
from onevision.runtime.options import AnswerOptions
from tests.eval.conftest import sample
from tests.runtime.media import noise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from onevision.eval.records import Record
    from onevision.eval.suite import Sample

TOKENS = 6
SETTINGS = EvalSettings(options=AnswerOptions(max_tokens=TOKENS))


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(toy_bundle, threads=1) as loaded:
        yield loaded


def ask(model: OneVision, samples: Iterable[Sample], settings: EvalSettings) -> Iterator[Record]:
    run = run_id(model.bundle.manifest, settings)
    return asking.ask(of_bundle(model), samples, settings, tile=model.pipeline.preparer.anyres.tile, run=run)


def test_the_tiny_suite(model: OneVision):
    """The very answers of the engine, which sees every frame of a video."""
    samples = list(tiny_suite(["colour", "which_has", "change", "text_sum"], limit=4))
    for asked, got in zip(samples, ask(model, samples, SETTINGS), strict=True):
        frames = None if asked.video is None else len(asked.video)
        answer = model.generate(
            asked.prompt, images=asked.images, video=asked.video, frames=frames, max_tokens=TOKENS
        )
        assert (got.id, got.text, got.finish_reason) == (asked.id, answer.text, answer.finish_reason)
        assert got.image_tokens == answer.usage.image_tokens
        assert (got.right, got.error) == (False, None), "a model of random weights"
        assert got.ttft_ms > 0
        if asked.kind == "video":
            assert got.image_tokens == 8 * model.bundle.manifest.video.pooled_side**2 + 1


def test_what_counts_as_right(model: OneVision):
    said = model.generate("What is it?", max_tokens=TOKENS).text
    assert normalize(said)
    answers = ((said,), ("something else", f"  {said.upper()}!"), ("something else",))
    asked = [sample(at, kind="text", prompt="What is it?", answers=each) for at, each in enumerate(answers)]
    assert [got.right for got in ask(model, asked, SETTINGS)] == [True, True, False]


@pytest.mark.parametrize("form", ["image", "path"])
def test_base_is_the_picture_squashed_to_a_tile(form: str, model: OneVision, tmp_path: Path):
    picture = noise(150, 200)
    picture.save(tmp_path / "p.png")
    asked = sample(images=(np.asarray(picture) if form == "image" else tmp_path / "p.png",))
    (whole,) = ask(model, [asked], SETTINGS)
    (base,) = ask(model, [asked], replace(SETTINGS, see="base"))
    tile = squash(picture, model.pipeline.preparer.anyres.tile)
    squashed = model.generate(asked.prompt, images=[tile], max_tokens=TOKENS)
    assert (base.text, base.image_tokens) == (squashed.text, squashed.usage.image_tokens)
    assert whole.image_tokens > base.image_tokens


def test_base_leaves_several_pictures_and_videos_as_they_are(model: OneVision):
    """They are of one tile each already."""
    samples = list(tiny_suite(["same", "order"], limit=2))
    whole, base = (list(ask(model, samples, replace(SETTINGS, see=see))) for see in ("all", "base"))
    assert [got.text for got in whole] == [got.text for got in base]


def test_nothing_is_the_question_alone(model: OneVision):
    samples = list(tiny_suite(["colour", "same", "order", "text_sum"], limit=4))
    for asked, got in zip(samples, ask(model, samples, replace(SETTINGS, see="nothing")), strict=True):
        assert got.image_tokens == 0
        assert got.text == model.generate(asked.prompt, max_tokens=TOKENS).text


def test_frames_of_a_file(model: OneVision, clip: Path):
    (got,) = ask(
        model,
        [sample(kind="video", video=clip)],
        EvalSettings(options=AnswerOptions(max_tokens=TOKENS, frames=3)),
    )
    assert got.image_tokens == 3 * model.bundle.manifest.video.pooled_side**2 + 1


@pytest.mark.parametrize("see", ["all", "base"])
def test_a_damaged_picture_does_not_end_the_run(see: str, model: OneVision, photo: Path, tmp_path: Path):
    (tmp_path / "cut.jpg").write_bytes(photo.read_bytes()[:5000])
    samples = [sample(0, images=(tmp_path / "cut.jpg",)), sample(1, prompt=" "), sample(2, kind="text")]
    cut, empty, text = ask(model, samples, replace(SETTINGS, see=see))
    assert "cut.jpg is cut off" in cut.error
    assert empty.error == "the prompt is empty"
    assert (cut.right, cut.text, cut.ttft_ms, cut.finish_reason) == (False, "", None, None)
    assert text.error is None


def test_the_run_tells_bundles_and_settings_apart(model: OneVision):
    manifest = model.bundle.manifest
    changes = ({"max_tokens": 7}, {"max_tokens": TOKENS, "frames": 4}, {"max_tokens": TOKENS, "system": "Hi"})
    others = [
        replace(SETTINGS, see="base"),
        *(EvalSettings(options=AnswerOptions(**each)) for each in changes),
    ]
    ids = {run_id(manifest, settings) for settings in (SETTINGS, *others)}
    ids.add(run_id(replace(manifest, name="other"), SETTINGS))
    assert len(ids) == 6
    assert run_id(manifest, EvalSettings(options=AnswerOptions(max_tokens=TOKENS))) == run_id(
        manifest, SETTINGS
    )
    (got,) = ask(model, [sample(kind="text")], SETTINGS)
    assert got.run == run_id(manifest, SETTINGS)
