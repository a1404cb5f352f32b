"""The gates: figures against formulas by hand, and bundles that are whole, rounded or broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from math import log
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onevision import OneVision
from onevision import files as disk
from onevision.bundle import BACKBONE, VISION_DATA, open_bundle
from onevision.errors import ExportError, GenerationError, ImageError, UsageError
from onevision.eval.suite import iter_samples
from onevision.native.quantize import RECIPES, quantize_gguf
from onevision.quant import measure as measure_module
from onevision.quant.gates import (
    AnswerQuality,
    FamilyChange,
    FeatureQuality,
    Thresholds,
    TokenQuality,
    compare_answers,
    compare_features,
    compare_logits,
    judge,
    kl_divergence,
    worst_features,
)
from onevision.quant.measure import measure, record_reference
from tests.conftest import make_bundle, replace_file
from tests.eval.conftest import records

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onevision.eval.records import Record
    from onevision.eval.suite import Sample
    from onevision.quant.gates import GateResult
    from onevision.quant.measure import GateReference

ASKED = ("colour", "which_has", "change", "text_sum")  # an image, several, a video, none
RANDOM = np.random.default_rng(11)


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32)


# Formulas.


def test_divergence_by_hand():
    ours, theirs = logits_of(0.9, 0.1), logits_of(0.5, 0.5)
    assert kl_divergence(ours, theirs) == pytest.approx(0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1), rel=1e-6)
    assert kl_divergence(theirs, ours) == pytest.approx(0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5), rel=1e-6)
    # What the reference never says costs nothing, what it says and the candidate never would, a lot.
    assert kl_divergence(logits_of(0.5, 0.5), logits_of(1, 1e-30)) == pytest.approx(log(2), rel=1e-6)
    assert kl_divergence(logits_of(1, 1e-30), logits_of(0.5, 0.5)) == pytest.approx(33.85, abs=0.01)


FINITE = arrays(np.float32, 16, elements=st.floats(-(2.0**99), 2.0**99, width=32))


@given(FINITE, FINITE, st.floats(-1e3, 1e3))
def test_divergence_is_stable(ours, theirs, shift):
    assert kl_divergence(theirs, theirs) == 0
    found = kl_divergence(ours, theirs)
    assert np.isfinite(found)
    assert found >= 0
    small = np.clip(ours, -50, 50), np.clip(theirs, -50, 50)
    moved = kl_divergence(small[0] + np.float32(shift), small[1])
    assert moved == pytest.approx(kl_divergence(*small), rel=1e-2, abs=1e-2)


def test_positions_are_counted():
    reference = [RANDOM.normal(size=50).astype(np.float32) for _ in range(200)]
    same = compare_logits(zip(reference, reference, strict=True), samples=9)
    assert same == TokenQuality(9, 200, 0.0, 0.0, 1.0)
    candidate = [row.copy() for row in reference]
    for row in candidate[:3]:  # three positions of 200 say something else, and are sure of it
        row[row.argmin()] = 20
    found = compare_logits(zip(candidate, reference, strict=True), samples=9)
    each = [kl_divergence(*pair) for pair in zip(candidate, reference, strict=True)]
    assert found.mean_kl == pytest.approx(sum(each) / 200)
    assert found.p99_kl == pytest.approx(np.percentile(each, 99))
    assert found.p99_kl > found.mean_kl > 0
    assert found.top1 == 197 / 200


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", [0, 1])
def test_logits_that_are_not_finite(value: float, whose: int):
    pairs = [[np.zeros(5, np.float32), np.zeros(5, np.float32)] for _ in range(4)]
    pairs[2][whose][3] = value
    found = compare_logits((tuple(pair) for pair in pairs), samples=2)
    assert found == TokenQuality(2, 3, None, None, None)
    assert judge(Thresholds(), "f32", tokens=found).reasons == ("logits are not finite",)


def test_the_worst_tile_counts():
    reference = RANDOM.normal(size=(3, 4, 8)).astype(np.float32)
    assert compare_features(reference, reference) == FeatureQuality(3, pytest.approx(1), 0.0, constant=False)
    candidate = reference.copy()
    candidate[1] *= 2  # the same direction
    found = compare_features(candidate, reference)
    assert (found.cosine, found.relative_error) == (pytest.approx(1), pytest.approx(1))
    noise = RANDOM.normal(size=(4, 8))
    candidate[2] += 0.3 * noise
    a, b = candidate[2].ravel().astype(float), reference[2].ravel().astype(float)
    found = compare_features(candidate, reference)
    assert found.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    parts = [compare_features(candidate[at : at + 1], reference[at : at + 1]) for at in range(3)]
    assert worst_features(parts) == found
    candidate[0] = 0
    assert compare_features(candidate, reference).cosine == 0


def test_features_that_cannot_be():
    reference = RANDOM.normal(size=(3, 4, 8)).astype(np.float32)
    broken = reference.copy()
    broken[1, 2, 3] = np.nan
    found = compare_features(broken, reference)
    assert found == FeatureQuality(3, None, None, constant=False)
    assert worst_features([found, compare_features(reference, reference)]) == replace(found, tiles=6)
    assert judge(Thresholds(), "f32", features=found).reasons == ("image features are not finite",)


def test_a_graph_that_does_not_look_at_its_input():
    """What all tiles share can be nearly all of a feature: the cosine alone would not tell."""
    shared = RANDOM.normal(size=(4, 8))
    reference = (shared + 0.001 * RANDOM.normal(size=(3, 4, 8))).astype(np.float32)
    candidate = np.repeat(reference[:1], 3, axis=0)
    found = compare_features(candidate, reference)
    assert found.cosine > 0.999
    assert found.constant
    assert judge(Thresholds(), "f32", features=found).reasons == (
        "image features are the same for every image",
    )
    assert not compare_features(candidate, candidate).constant, "so are the reference's: frames of a still"
    assert not compare_features(candidate[:1], reference[:1]).constant


def test_answers_are_compared():
    theirs = [*records("colour", 100, 100), *records("word", 50, 100)]
    ours = [*records("colour", 97, 100), *records("word", 52, 100)]
    found = compare_answers(ours, theirs)
    assert (found.n, found.accuracy, found.reference_accuracy) == (200, pytest.approx(0.745), 0.75)
    assert found.agreement == 195 / 200
    assert found.families == {
        "colour": FamilyChange(100, wins=0, losses=3),
        "word": FamilyChange(100, wins=2, losses=0),
    }
    assert found.families["colour"].difference == -0.03


# Thresholds.

GOOD_TOKENS = TokenQuality(9, 200, 0.001, 0.01, 0.99)


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"mean_kl": 0.02}, None),
        ({"mean_kl": 0.021}, "mean KL divergence 0.021, above 0.02"),
        ({"p99_kl": 0.21}, "99th percentile of the KL divergence 0.21, above 0.2"),
        ({"top1": 0.97}, None),
        ({"top1": 0.969}, "top-1 agreement 96.90%, below 97%"),
    ],
)
def test_tokens_are_judged(figures: dict[str, float], reason: str | None):
    quality = judge(Thresholds(), "f32", tokens=replace(GOOD_TOKENS, **figures))
    assert quality.reasons == ((reason,) if reason else ())
    assert quality.passed == (reason is None)


@pytest.mark.parametrize(
    ("cosine", "error", "reasons"),
    [
        (0.9995, 0.03, 0),
        (0.9989, 0.03, 1),
        (0.9995, 0.05, 1),
        (0.5, 1.0, 2),
    ],
)
def test_features_are_judged(cosine: float, error: float, reasons: int):
    found = FeatureQuality(3, cosine, error, constant=False)
    assert len(judge(Thresholds(), "f32", features=found).reasons) == reasons
    assert judge(Thresholds(cosine=0.4, relative_error=2), "f32", features=found).passed


@pytest.mark.parametrize(
    ("ours", "theirs", "n", "failing"),
    [
        ((100, 100), (100, 100), 100, []),
        ((98, 100), (100, 100), 100, []),  # 2 points in a family, 1 overall
        ((97, 100), (100, 100), 100, ["accuracy 98.5%, the reference's is 100.0%"]),  # 3 of 100: chance
        ((95, 95), (100, 90), 100, []),  # 1 of 32 by chance, and there are two families
        ((94, 96), (100, 90), 100, ["colour falls by 6.0 points: of 100 answers 6 become wrong, 0 right"]),
        ((981, 990), (1000, 971), 1000, []),  # not by more than 2 points, however sure
        ((98, 99), (100, 100), 100, ["accuracy 98.5%"]),
        ((100, 100), (50, 50), 100, []),  # better is no fault
        ((4, 5), (5, 5), 5, []),  # a single question
        ((3, 5), (5, 5), 5, ["accuracy 80.0%"]),
    ],
)
def test_answers_are_judged(ours, theirs, n: int, failing: list[str]):
    def run(right: tuple[int, int]) -> list[Record]:
        return [*records("colour", right[0], n), *records("word", right[1], n)]

    reasons = judge(Thresholds(), "f32", answers=compare_answers(run(ours), run(theirs))).reasons
    assert len(reasons) == len(failing)
    assert all(part in reason for part, reason in zip(failing, reasons, strict=True))


def test_what_goes_into_a_manifest():
    answers = AnswerQuality(9, 0.5, 0.5, 1.0, {"colour": FamilyChange(9, 2, 2)})
    quality = judge(Thresholds(), "fp32 + f32", tokens=replace(GOOD_TOKENS, top1=0.9), answers=answers)
    data = json.loads(json.dumps(quality.to_dict(), allow_nan=False))
    assert (data["passed"], data["reference"], "features" in data) == (False, "fp32 + f32", False)
    assert data["reasons"] == ["top-1 agreement 90.00%, below 97%"]
    assert data["tokens"]["p99_kl"] == 0.01
    assert data["answers"]["families"] == {"colour": {"n": 9, "wins": 2, "losses": 2}}


# Engines.


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(islice(iter_samples("test", 0, ASKED), 2 * len(ASKED)))


@pytest.fixture(scope="module")
def reference(
    toy_bundle: Path, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> GateReference:
    return record(toy_bundle, samples, tmp_path_factory.mktemp("reference"), questions=samples[:4])


def record(bundle: Path, samples: list[Sample], folder: Path, **options: Any) -> GateReference:
    with OneVision(open_bundle(bundle), device="cpu", threads=1) as model:
        return record_reference(model, samples, folder, **options)


def held_against(reference: GateReference, bundle: Path, **options: Any) -> GateResult:
    with OneVision(open_bundle(bundle), device="cpu", threads=1) as model:
        return measure(model, reference, **options)


@pytest.fixture
def copy(toy_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_bundle, tmp_path / "copy")


def change(bundle: Path, **changes: Callable[[np.ndarray], object]) -> None:
    """Change tensors of the backbone in place; ``__`` in a name stands for a dot."""
    reader = gguf.GGUFReader(bundle / BACKBONE, "r+")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, edit in changes.items():
        edit(tensors[name.replace("__", ".")])
    reader.data.flush()
    del reader, tensors  # they map the file
    replace_file(bundle, BACKBONE, (bundle / BACKBONE).read_bytes())


def test_the_reference_against_itself(reference: GateReference, toy_bundle: Path, samples: list[Sample]):
    seen: list[float] = []
    quality = held_against(reference, toy_bundle, advance=seen.append)
    assert quality.passed
    positions = sum(answer.positions for answer in reference.answers)
    assert quality.tokens == TokenQuality(len(samples), positions, 0.0, 0.0, 1.0)
    assert positions > 30
    assert quality.features is None, "the encoder is the very same file"
    assert (quality.answers.agreement, quality.answers.n) == (1, 4)
    assert quality.reference == "fp32 + f32"
    assert seen == sorted(seen)
    assert (len(seen), seen[-1]) == (len(samples) + 4, 1)


def test_the_reference_follows_its_own_greedy_answers(reference: GateReference, toy_bundle: Path):
    with OneVision.load(toy_bundle, device="cpu", threads=1) as model:
        for answer in reference.answers:
            sample = answer.sample
            frames = None if sample.video is None else len(sample.video)
            said = model.generate(
                sample.prompt, images=sample.images, video=sample.video, frames=frames,
                max_tokens=measure_module.MAX_TOKENS,
            )  # fmt: skip
            assert answer.tokens == said.token_ids
            assert answer.positions == len(answer.tokens) + (said.finish_reason == "stop")


def test_a_rounded_backbone(reference: GateReference, copy: Path, toy_bundle: Path):
    """Coarser types are farther away, and nothing is fixed to zero."""
    found = {}
    for recipe in ("f16", "q8_0", "q4_0-pure"):
        quantize_gguf(toy_bundle / BACKBONE, copy / BACKBONE, RECIPES[recipe], threads=1)
        replace_file(copy, BACKBONE, (copy / BACKBONE).read_bytes())
        found[recipe] = held_against(reference, copy).tokens.mean_kl
    assert 0 < found["f16"] < found["q8_0"] < found["q4_0-pure"]
    assert found["q8_0"] < Thresholds().mean_kl


def test_what_has_failed_need_not_answer(reference: GateReference, copy: Path, toy_bundle: Path):
    strict = Thresholds(mean_kl=0)
    quantize_gguf(toy_bundle / BACKBONE, copy / BACKBONE, RECIPES["q8_0"], threads=1)
    replace_file(copy, BACKBONE, (copy / BACKBONE).read_bytes())
    whole = held_against(reference, copy, thresholds=strict)
    hasty = held_against(reference, copy, thresholds=strict, to_the_end=False)
    assert whole.answers is not None
    assert hasty == replace(whole, answers=None, reasons=whole.reasons[: len(hasty.reasons)])
    assert held_against(reference, toy_bundle, to_the_end=False).answers is not None


def test_a_rounded_encoder(reference: GateReference, toy_checkpoint: Path, tmp_path: Path):
    quality = held_against(
        reference, make_bundle(toy_checkpoint, tmp_path / "bundle", vision="fp16", backbone="f32")
    )
    assert quality.features.tiles == sum(
        len(np.load(path)["features"]) for path in reference.folder.glob("answer-*.npz")
    )
    assert 0 < quality.features.relative_error < 0.01
    assert 0.9999 < quality.features.cosine < 1
    assert quality.tokens.mean_kl > 0


def zero(values: np.ndarray) -> None:
    values[:] = 0


def add_noise(values: np.ndarray) -> None:
    values += np.random.default_rng(0).normal(size=values.shape).astype(np.float32) * values.std()


@pytest.mark.parametrize(
    "changes",
    [
        {"blk__1__ffn_down__weight": zero, "blk__1__attn_output__weight": zero},
        {"token_embd__weight": add_noise},
    ],
    ids=["a layer of zeros", "noise"],
)
def test_a_broken_backbone(reference: GateReference, copy: Path, changes):
    change(copy, **changes)
    quality = held_against(reference, copy)
    assert not quality.passed
    assert quality.tokens.mean_kl > Thresholds().mean_kl
    assert any("KL divergence" in reason for reason in quality.reasons)


def test_a_backbone_of_nan(reference: GateReference, copy: Path, samples: list[Sample], tmp_path: Path):
    def spoil(values: np.ndarray) -> None:
        values[0] = np.nan

    change(copy, output_norm__weight=spoil)
    quality = held_against(reference, copy)
    assert quality.reasons == ("logits are not finite",)
    assert quality.answers is None
    json.dumps(quality.to_dict(), allow_nan=False)
    with pytest.raises(GenerationError, match="the reference's logits are not finite"):
        record(copy, samples, tmp_path)


def edit_encoder(bundle: Path, edit: Callable[[np.ndarray], object]) -> None:
    weights = np.fromfile(bundle / VISION_DATA, dtype=np.float32)
    edit(weights)
    replace_file(bundle, VISION_DATA, weights.tobytes())


def test_a_broken_encoder(reference: GateReference, copy: Path):
    edit_encoder(copy, add_noise)
    quality = held_against(reference, copy)
    assert quality.features.cosine < Thresholds().cosine
    assert "image features: cosine" in quality.reasons[0]
    edit_encoder(copy, lambda weights: weights.fill(np.nan))
    quality = held_against(reference, copy)
    assert (quality.passed, quality.tokens) == (False, None)
    assert "image features are not finite" in quality.reasons[0]


def test_another_model(reference: GateReference, untied_checkpoint: Path, copy: Path, tmp_path: Path):
    manifest = json.loads((copy / "onevision.json").read_text(encoding="utf-8"))
    manifest["backbone"]["layers"] = 3
    (copy / "onevision.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UsageError, match="are different models"):
        held_against(reference, copy)


def test_nothing_to_follow(toy_bundle: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="no questions"):
        record(toy_bundle, [], tmp_path)


def test_what_is_kept_is_bounded(
    toy_bundle: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure_module, "MAX_POSITIONS", 40)
    monkeypatch.setattr(measure_module, "MAX_TOKENS", 16)
    recorded = record(toy_bundle, samples, tmp_path)
    assert len(recorded.answers) == 3  # of 16 positions each
    logits = [np.load(path)["logits"] for path in tmp_path.iterdir()]
    allowed = recorded.manifest.backbone.vocab_size - len(banned(toy_bundle))
    assert [(rows.dtype, rows.shape) for rows in logits] == [(np.float32, (16, allowed))] * 3
    assert recorded.records == ()
    quality = held_against(recorded, toy_bundle)
    assert quality.tokens == TokenQuality(3, 48, 0.0, 0.0, 1.0)
    assert quality.answers is None


def banned(bundle: Path) -> set[int]:
    with OneVision.load(bundle, threads=1) as model:
        return set(model.pipeline.banned_tokens)


def test_nowhere_to_write(
    toy_bundle: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ExportError, match=r"cannot write in .*absent"):
        record(toy_bundle, samples, tmp_path / "absent")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ExportError, match="not enough disk space"):
        record(toy_bundle, samples, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_unreadable_image_among_good_ones(toy_bundle: Path, samples: list[Sample], tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = replace(samples[0], images=(tmp_path / "bad.png",))
    with pytest.raises(ImageError, match=r"bad\.png"):
        record(toy_bundle, [samples[3], bad], tmp_path)
