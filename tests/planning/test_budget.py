"""A target for the first token: what is predicted, what is chosen, and what is told. No test is timed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onevision
from onevision import OneVision
from onevision.bench.calibrate import measure_profile
from onevision.bundle import open_bundle
from onevision.cli import _run
from onevision.cli.console import duration
from onevision.errors import ExportError, UsageError
from onevision.models.shapes import published_config
from onevision.planning import speed
from onevision.planning.budget import Forecaster
from onevision.planning.cost import Media, Shape
from onevision.planning.speed import (
    PrefillSpeed,
    SpeedProfile,
    needed_profile,
    placement,
    profile_path,
    read_profile,
    write_profile,
)
from onevision.runtime.options import AnswerOptions
from onevision.runtime.prefill.policy import choose_backend
from tests.runtime.media import photograph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUBLISHED = Shape.of_config(published_config("0.5b"))
#: A machine that encodes a tile in a second, and prefills 1,000 tokens in one; the graph is twice as fast.
MADE = SpeedProfile(
    0.1, 0.05, 0.01, 1.0, {"llama": PrefillSpeed(0, 1e-3, 0), "onnx": PrefillSpeed(0, 5e-4, 0)}
)
HD = Media("", "image", 1920, 1080)
CLIP = Media("", "video", 1920, 1080, 300)


def forecaster(*inputs: Media, profile: SpeedProfile | None = MADE, graph: bool = False) -> Forecaster:
    def by(tokens: int) -> Any:
        return choose_backend("auto", tokens, has_graph=graph, offloaded=False)

    return Forecaster(PUBLISHED, inputs, 30, by, profile)


# Predictions.


def test_a_prediction_is_the_sum_of_its_parts():
    found = forecaster(HD).forecast(AnswerOptions(max_tiles=5))
    assert found.cost.seconds == {"encode": 5.0, "prefill": pytest.approx(2.409)}
    assert found.ttft == pytest.approx(0.1 + 0.05 * 1920 * 1080 / 1e6 + 5 + 2.409)
    assert forecaster(HD, graph=True).forecast(AnswerOptions(max_tiles=5)).ttft == pytest.approx(
        found.ttft - 2.409 / 2
    )
    video = forecaster(CLIP).forecast(AnswerOptions(frames=8), reused_frames=3)
    tokens = 8 * 196 + 1 + 30
    assert video.ttft == pytest.approx(0.1 + 0.01 * 300 * 1920 * 1080 / 1e6 + 5 + tokens / 1000)


def test_without_a_profile_nothing_is_predicted():
    found = forecaster(HD, profile=None).forecast(AnswerOptions())
    assert (found.ttft, found.cost.seconds) == (None, None)


@pytest.mark.parametrize(
    ("choice", "tokens", "has_graph", "offloaded", "expected"),
    [
        ("auto", 255, True, False, "llama"),
        ("auto", 256, True, False, "onnx"),
        ("auto", 256, False, False, "llama"),
        ("auto", 10**6, True, True, "llama"),
        ("onnx", 2, True, False, "onnx"),
        ("onnx", 1, True, False, "llama"),
        ("onnx", 300, True, True, "onnx"),
        ("llama", 10**6, True, False, "llama"),
    ],
)
def test_the_backend_of_a_prompt(choice, tokens, has_graph, offloaded, expected):
    assert choose_backend(choice, tokens, has_graph=has_graph, offloaded=offloaded) == expected


# The choice.

#: Seconds; the budget, tiles.
CHOICES = (
    (60.0, AnswerOptions(), 16),
    (20.0, AnswerOptions(max_tiles=9), 9),
    (12.0, AnswerOptions(max_tiles=7), 7),
    (8.0, AnswerOptions(max_tiles=5), 5),
    (2.0, AnswerOptions(max_tiles=1), 1),
)


@pytest.mark.parametrize(("target", "budget", "tiles"), CHOICES)
def test_the_table_of_choices(target, budget, tiles):
    found, late = forecaster(HD).choose(AnswerOptions(), target)
    assert late is None
    assert (found.options, found.cost.tiles) == (budget, tiles)


def test_if_nothing_fits_the_fastest_is_taken():
    found, late = forecaster(HD).choose(AnswerOptions(), 0.5)
    assert (found.options, bool(late)) == (AnswerOptions(max_tiles=1), True)
    found, late = forecaster(CLIP).choose(AnswerOptions(), 0.5)
    assert (found.options, bool(late)) == (AnswerOptions(frames=1), True)


def test_frames_of_a_video_and_tiles_of_a_picture():
    found, late = forecaster(CLIP).choose(AnswerOptions(), 20.0)
    assert late is None
    assert found.options.frames == 11  # 0.1 + 6.2 + 11 + 2.2 s
    both, late = forecaster(HD, CLIP).choose(AnswerOptions(), 20.0)
    assert late is None
    assert both.cost.tiles == sum(item.tiles for item in both.cost.inputs) > 2


targets = st.floats(0.1, 100)
limits = st.one_of(st.none(), st.integers(1, 40))
inputs = st.lists(st.sampled_from([HD, CLIP, Media("", "image", 300, 200)]), min_size=1, max_size=2)


@given(inputs=inputs, target=targets, limit=limits, frames=st.one_of(st.none(), st.integers(1, 64)))
@settings(max_examples=60)
def test_the_choice_is_the_largest_that_fits(inputs, target, limit, frames):
    allowed = AnswerOptions(max_tiles=limit, frames=frames)
    asked = forecaster(*inputs)
    found, late = asked.choose(allowed, target)
    levels = asked.levels(allowed)
    usual = asked.forecast(allowed)
    assert levels[0].options == allowed, "what the user allows comes first, and as it was"
    assert all(level.cost.tiles <= usual.cost.tiles for level in levels)
    assert found in levels
    assert (late is None) == (found.ttft <= target) == any(level.ttft <= target for level in levels)
    if late is None:
        assert all(level.ttft > target for level in levels[: levels.index(found)])
    else:
        assert found.ttft == min(level.ttft for level in levels)


def test_a_target_stays_below_a_limit():
    found, _ = forecaster(HD).choose(AnswerOptions(max_tiles=7), 1000.0)
    assert found.options == AnswerOptions(max_tiles=7)
    low, _ = forecaster(HD).choose(AnswerOptions(detail="low"), 1000.0)
    assert low.options == AnswerOptions(detail="low")
    small = Media("", "image", 300, 200)
    high, _ = forecaster(small).choose(AnswerOptions(detail="high"), 1000.0)
    assert high.options == AnswerOptions(detail="high")
    less, _ = forecaster(small).choose(AnswerOptions(detail="high"), high.ttft - 0.01)
    assert less.options.detail == "auto"


def test_what_the_context_cannot_hold_does_not_fit():
    shape = PUBLISHED
    small = replace(shape, backbone=replace(shape.backbone, context_length=3000))
    found, late = Forecaster(small, [HD], 30, lambda _: "llama", MADE).choose(AnswerOptions(), 1000.0)
    assert late is None
    assert found.cost.prompt_tokens < 3000


def test_a_backend_that_was_not_measured():
    lacking = replace(MADE, prefill={"onnx": MADE.prefill["onnx"]})
    with pytest.raises(UsageError, match="was not measured"):
        forecaster(HD, profile=lacking).choose(AnswerOptions(), 5.0)


# The profile.


@given(
    constant=st.floats(0, 1),
    linear=st.floats(1e-5, 1e-2),
    square=st.floats(0, 1e-6),
)
def test_a_curve_is_found_again(constant, linear, square):
    truth, tokens = PrefillSpeed(constant, linear, square), (32, 256, 1024, 3072)
    found = PrefillSpeed.fit(tokens, [truth.seconds(n) for n in tokens])
    assert min(found.constant, found.linear, found.square) >= 0
    for n in (*tokens, 7000):
        assert found.seconds(n) == pytest.approx(truth.seconds(n), rel=1e-3)


@given(seconds=st.lists(st.floats(1e-3, 100), min_size=3, max_size=3))
def test_a_curve_through_noise_grows(seconds):
    found = PrefillSpeed.fit((256, 1024, 3072), seconds)
    assert 0 < found.seconds(100) <= found.seconds(1000) <= found.seconds(10_000)


def test_files_of_profiles(tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path))
    bundle = open_bundle(toy_bundle)
    other = replace(bundle, manifest=replace(bundle.manifest, name="other"))
    paths = {profile_path(*facts) for facts in ((bundle, "cpu", 1), (bundle, "cpu", 2), (other, "cpu", 1))}
    with monkeypatch.context() as patch:
        patch.setattr(speed, "has_cuda", lambda: True)
        paths.add(profile_path(bundle, "cuda", 1))
    with monkeypatch.context() as patch:
        patch.setattr(speed, "cpu_name", lambda: "another processor")
        paths.add(profile_path(bundle, "cpu", 1))
    assert len(paths) == 5
    path = profile_path(bundle, "cpu", 1)
    assert read_profile(path) is None
    with pytest.raises(UsageError, match="not measured yet") as caught:
        needed_profile(bundle, "cpu", 1)
    assert f"onevision bench --quick -m {toy_bundle}" in str(caught.value.hint)
    write_profile(path, MADE)
    assert read_profile(path) == needed_profile(bundle, "cpu", 1) == MADE
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    for damaged in (b"", b"{", b"[]", b'{"fixed": "fast"}', b"\xff"):
        path.write_bytes(damaged)
        assert read_profile(path) is None


def test_a_profile_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExportError, match="cannot make"):
        write_profile(tmp_path / "file" / "a.json", MADE)


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with onevision.load(toy_bundle, device="cpu", threads=1) as loaded:
        yield loaded


def test_a_bundle_is_measured(model: OneVision):
    found = measure_profile(model)
    assert set(found.prefill) == {"llama"}, "the toy has no graph"
    assert min(found.fixed, found.image, found.tile, found.video) > 0
    assert found.prefill["llama"].seconds(100) > 0


def test_where_a_bundle_runs_is_known_before_it_is_loaded(model: OneVision):
    pipeline = model.pipeline
    assert placement("cpu") == "encoder cpu, backbone cpu"
    assert (pipeline.vision_device, pipeline.backbone.offloaded) == ("cpu", False)


# Runs.

PICTURE = photograph("china").resize((150, 100))


@pytest.fixture
def measured(model: OneVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpeedProfile:
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path))
    write_profile(profile_path(model.bundle, "cpu", 1), MADE)
    return MADE


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("target", [1000.0, 4.0, 0.001])
def test_a_run_has_the_budget_that_was_chosen(model: OneVision, target: float):
    answer = model.generate("What?", images=[PICTURE], max_tokens=4, ttft_target=target)
    budget = answer.to_dict()["budget"]
    same = model.generate("What?", images=[PICTURE], max_tokens=4, max_tiles=answer.options.max_tiles)
    assert answer.token_ids == same.token_ids
    assert answer.usage == same.usage
    assert budget["ttft_target_ms"] == target * 1e3
    predicted = (
        MADE.fixed
        + MADE.image * 150 * 100 / 1e6
        + answer.usage.tiles * MADE.tile
        + MADE.prefill["llama"].seconds(answer.usage.prompt_tokens)
    )
    assert budget["predicted_ttft_ms"] == pytest.approx(predicted * 1e3, abs=0.001)
    late = [warning for warning in answer.warnings if "no budget gives a first token within" in warning]
    assert bool(late) == (target == 0.001)
    if target == 1000.0:
        assert answer.options.max_tiles is None, "the reference's input fits, and stays as it is"
        assert answer.token_ids == model.generate("What?", images=[PICTURE], max_tokens=4).token_ids


@pytest.mark.usefixtures("measured")
def test_frames_of_a_run(model: OneVision, clip: Path):
    answer = model.generate("What?", video=clip, max_tokens=1, ttft_target=5.0)
    assert 1 <= answer.usage.tiles == answer.options.frames < 24
    frames = np.zeros((24, 50, 60, 3), np.uint8)
    of_array = model.generate("What?", video=frames, max_tokens=1, ttft_target=5.0)
    assert of_array.options.frames == answer.options.frames


@pytest.mark.usefixtures("measured")
def test_the_plan_tells_what_the_run_does(
    toy_bundle: Path, photo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def command(*words: object) -> tuple[dict[str, Any], str]:
        assert _run([*map(str, words), "-m", str(toy_bundle), "--threads", "1", "--device", "cpu"]) == 0
        out, err = capfd.readouterr()
        return (json.loads(out) if "--json" in words else {"out": out}), err

    question = ("--ttft-target", "3500ms", "--json")
    planned, _ = command("plan", photo, "--prompt", "What?", *question)
    ran, _ = command("run", "What?", "-i", photo, "-n", 1, *question)
    assert planned["budget"] == ran["budget"]
    for count in ("tiles", "image_tokens", "prompt_tokens"):
        assert planned["usage"][count] == ran["usage"][count]
    assert planned["device"]["prefill"] == "llama"
    assert planned["usage"]["tiles"] in {row["usage"]["tiles"] for row in planned["budgets"]}
    tiles = [row["usage"]["tiles"] for row in planned["budgets"]]
    assert tiles[0] >= tiles[-1] == 1

    told, err = command("plan", photo, "--ttft-target", "1ms")
    assert "warning: no budget gives a first token within 0.001 s" in err
    assert "first token" in told["out"]
    assert "--max-tiles 1" in told["out"]
    _, err = command("run", "What?", "-i", photo, "-n", 1, "--ttft-target", "1ms")
    assert "warning: no budget gives a first token within 0.001 s" in err


def test_a_conversation_takes_no_target(model: OneVision):
    with pytest.raises(UsageError, match="takes no target") as caught:
        model.chat(ttft_target=1.0)
    assert "--max-tiles" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("800ms", 0.8), ("1.5", 1.5), (" 2 s ", 2.0), (".5s", 0.5), ("1.s", 1.0), (None, None)],
)
def test_durations(text: str | None, seconds: float | None):
    assert duration(text, "--ttft-target") == seconds


@pytest.mark.parametrize("text", ["", "0", "0ms", "-1s", "5 m", "s", "1e3", "nan", "inf", "5s5", "9999999s"])
def test_no_durations(text: str):
    with pytest.raises(UsageError, match="--ttft-target is"):
        duration(text, "--ttft-target")


def test_a_target_is_not_passed_over(toy_bundle: Path):
    """By a model that was loaded without the planning."""
    with (
        OneVision.load(toy_bundle, device="cpu", threads=1) as model,
        pytest.raises(UsageError, match="no ttft_target") as caught,
    ):
        model.generate("What?", ttft_target=1.0)
    assert "onevision.load()" in str(caught.value.hint)
