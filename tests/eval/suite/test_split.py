"""What training may see, and what only the test split holds."""

from __future__ import annotations

import hashlib
from itertools import islice
from random import Random

import numpy as np
import pytest

from onevision.errors import UsageError
from onevision.eval.suite import FAMILIES, Sample, build_scene, iter_samples, iter_scenes
from onevision.eval.suite.stream import BUILDERS, build_sample
from onevision.eval.suite.vocabulary import (
    COLORS,
    FONTS,
    HELD_OUT_FONTS,
    HELD_OUT_NUMBERS,
    HELD_OUT_SPEEDS,
    HELD_OUT_SUMS,
    HELD_OUT_THINGS,
    HELD_OUT_WORDS,
    NUMBERS,
    SHAPES,
    SUMS,
    TRAIN_SPEEDS,
    WORDS,
    draw_font,
)

PREFIX = 6000  # samples of the training stream that are looked at, and half as many of the test stream


def fingerprint(sample: Sample) -> bytes:
    digest = hashlib.sha256(sample.prompt.encode())
    for image in (*sample.images, *([] if sample.video is None else [sample.video])):
        digest.update(repr(image.shape).encode() + image.tobytes())
    return digest.digest()


def values(facts: object) -> list[object]:
    """All leaves of a scene's facts, keys included; pairs of colour and shape as pairs."""
    if isinstance(facts, dict):
        pair = [(facts["colour"], facts["shape"])] if {"colour", "shape"} <= facts.keys() else []
        return pair + [leaf for key, value in facts.items() for leaf in (key, *values(value))]
    if isinstance(facts, tuple) and len(facts) == 2 and facts[0] in COLORS:
        return [facts]
    if isinstance(facts, (list, tuple)):
        pair = [tuple(facts)] if len(facts) == 2 and all(isinstance(value, int) for value in facts) else []
        return pair + [leaf for value in facts for leaf in values(value)]
    return [facts]


@pytest.fixture(scope="module")
def streams() -> dict[str, list[Sample]]:
    return {
        "train": list(islice(iter_samples("train", 1), PREFIX)),
        "test": list(islice(iter_samples("test", 1), PREFIX // 2)),
    }


def test_the_same_seed_gives_the_same_samples():
    first, second = (list(islice(iter_samples("test", 3), len(FAMILIES))) for _ in range(2))
    assert [fingerprint(sample) for sample in first] == [fingerprint(sample) for sample in second]
    assert [sample.answers for sample in first] == [sample.answers for sample in second]
    assert [sample.id for sample in first] == [sample.id for sample in second]
    assert len({sample.id for sample in first}) == len(first)


def test_another_seed_or_split_gives_others(streams):
    other = [fingerprint(sample) for sample in islice(iter_samples("test", 2), PREFIX // 8)]
    assert not {fingerprint(sample) for sample in streams["test"] if sample.kind != "text"} & set(other)


def test_no_test_sample_is_in_the_training_stream(streams):
    trained = {fingerprint(sample) for sample in streams["train"]}
    assert not [sample.id for sample in streams["test"] if fingerprint(sample) in trained]


def test_training_never_has_a_held_out_combination(streams):
    kept = HELD_OUT_THINGS | HELD_OUT_WORDS | HELD_OUT_NUMBERS | HELD_OUT_SUMS
    for sample in streams["train"]:
        found = kept & set(values(sample.facts))
        # Four counts and frame numbers look like a sum; only sums are stored under that name.
        found -= HELD_OUT_SUMS if "sum" not in sample.facts else set()
        assert not found, sample.id
        if "speed" in sample.facts:
            assert any(low <= sample.facts["speed"] <= high for low, high in TRAIN_SPEEDS)
        assert not HELD_OUT_WORDS & set(sample.prompt.replace(",", " ").replace(":", " ").split())


def test_the_test_split_has_all_held_out_combinations(streams):
    seen = {leaf for sample in streams["test"] for leaf in values(sample.facts)}
    assert seen >= HELD_OUT_THINGS
    assert seen >= HELD_OUT_NUMBERS
    assert len(seen & HELD_OUT_WORDS) > 0.9 * len(HELD_OUT_WORDS)
    sums = {tuple(sample.facts["sum"]) for sample in streams["test"] if "sum" in sample.facts}
    assert sums == HELD_OUT_SUMS
    speeds = [sample.facts["speed"] for sample in streams["test"] if "speed" in sample.facts]
    assert all(HELD_OUT_SPEEDS[0] <= speed <= HELD_OUT_SPEEDS[1] for speed in speeds)


def test_fonts_are_held_out():
    random = Random(0)
    assert not {draw_font(random, "train") for _ in range(500)} & HELD_OUT_FONTS
    assert {draw_font(random, "test") for _ in range(500)} == set(FONTS)


@pytest.mark.parametrize(
    ("kept", "everything", "share"),
    [
        (HELD_OUT_THINGS, len(COLORS) * len(SHAPES), 0.25),
        (HELD_OUT_WORDS, len(WORDS), 0.2),
        (HELD_OUT_NUMBERS, len(NUMBERS), 0.2),
        (HELD_OUT_SUMS, len(SUMS), 0.11),
    ],
)
def test_a_fair_part_is_held_out(kept, everything, share):
    assert len(kept) / everything == pytest.approx(share, abs=0.01)


def test_parts_of_what_is_held_out_are_known():
    """Else a combination would not be new, but unknown."""
    known = [
        (colour, shape) for colour in COLORS for shape in SHAPES if (colour, shape) not in HELD_OUT_THINGS
    ]
    assert {colour for colour, _ in known} == set(COLORS)
    assert {shape for _, shape in known} == set(SHAPES)
    numbers = [number for number in NUMBERS if number not in HELD_OUT_NUMBERS]
    assert {number[0] for number in numbers} == set("123456789")
    assert {number[1] for number in numbers} == set("0123456789")
    assert all((b, a) not in HELD_OUT_SUMS for a, b in HELD_OUT_SUMS)
    assert len({a + b for a, b in HELD_OUT_SUMS}) == len(HELD_OUT_SUMS)
    assert len(set(WORDS)) == len(WORDS)


def test_any_sample_and_scene_can_be_had_directly():
    families = ("count", "cell")
    stream = list(islice(iter_samples("train", 5, families), 4))
    assert fingerprint(stream[3]) == fingerprint(build_sample("cell", "train", 5, 3))
    scenes = list(islice(iter_scenes("train", 5, ("bars", "table")), 2))
    assert scenes[1].caption == build_scene("table", "train", 5, 1).caption


def test_pixels_have_the_form_that_is_promised(streams):
    for sample in streams["test"][: 3 * len(FAMILIES)]:
        assert all(
            image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in sample.images
        )
        counts = {"image": (1, 1), "images": (2, 4), "video": (0, 0), "text": (0, 0)}[sample.kind]
        assert counts[0] <= len(sample.images) <= counts[1]
        assert (sample.video is not None) == (sample.kind == "video")
        assert sample.video is None or (sample.video.ndim == 4 and len(sample.video) == 8)


def test_every_family_has_a_scene_that_asks_it():
    assert sum(len(families) for _, families in BUILDERS.values()) == len(FAMILIES)
    assert {sample.family for sample in islice(iter_samples("test", 0), len(FAMILIES))} == set(FAMILIES)


def test_an_unknown_family_is_named():
    with pytest.raises(UsageError, match="no family colur") as caught:
        next(iter_samples("test", 0, ["colour", "colur"]))
    assert "colour" in caught.value.hint
