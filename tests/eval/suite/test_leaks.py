"""No way to the answer but by looking: what a guesser can have from the prompt, the sizes or some pixels."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import islice
from math import sqrt

import numpy as np
import pytest

from onevision.eval.suite import FAMILIES, Sample, iter_samples
from onevision.eval.suite.sample import LETTERS

EACH = 400  # samples of each family
VISUAL = [family for family in FAMILIES if not family.startswith("text_")]


@pytest.fixture(scope="module")
def by_family() -> dict[str, list[Sample]]:
    families: dict[str, list[Sample]] = defaultdict(list)
    for sample in islice(iter_samples("test", 11), EACH * len(FAMILIES)):
        families[sample.family].append(sample)
    return families


def guessed(samples: list[Sample], clue) -> tuple[float, float, int]:
    """Accuracy of the most frequent answer by clue, learned on one half; chance and size of the other."""
    half = len(samples) // 2
    votes: dict[object, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for sample in samples[:half]:
        votes[clue(sample)][sample.answers[0]] += 1
        overall[sample.answers[0]] += 1
    rest = samples[half:]
    right = [
        (votes.get(clue(sample)) or overall).most_common(1)[0][0] == sample.answers[0] for sample in rest
    ]
    return float(np.mean(right)), float(np.mean([sample.chance for sample in rest])), len(rest)


def answerable(samples: list[Sample], form: str) -> list[Sample]:
    return [sample for sample in samples if sample.form == form]


def shape(sample: Sample) -> object:
    sizes = [image.shape[:2] for image in sample.images]
    sizes += [] if sample.video is None else [sample.video.shape[1:3]]
    return len(sizes), tuple((height // 20, width // 20) for height, width in sizes)


def first_pixels(sample: Sample) -> np.ndarray:
    return sample.images[0] if sample.images else sample.video[0]


def corner(sample: Sample) -> object:
    pixels = first_pixels(sample)
    return tuple(int(pixels[y, x].mean()) // 64 for y in (0, -1) for x in (0, -1))


CLUES = {
    "prompt": lambda sample: sample.prompt,
    "question": lambda sample: sample.prompt.split("\n")[0],
    "nothing": lambda sample: None,
    "size": shape,
    "corners": corner,
    "parity": lambda sample: int(first_pixels(sample).sum()) % 4,
}


@pytest.mark.parametrize("clue", CLUES)
@pytest.mark.parametrize("family", VISUAL)
def test_a_clue_does_no_better_than_chance(by_family, family, clue):
    for form in ("short", "letter"):
        samples = answerable(by_family[family], form)
        if family == "which_has" and clue in ("size", "corners"):
            # How many pictures there are is in plain sight, and the chance of each sample knows it.
            samples = [sample for sample in samples if len(sample.images) == 2]
        accuracy, chance, count = guessed(samples, CLUES[clue])
        # Four standard errors: 168 tests are made, each with its seed fixed.
        assert accuracy <= chance + 4 * sqrt(chance * (1 - chance) / count) + 0.01, (form, accuracy, chance)


@pytest.mark.parametrize("family", FAMILIES)
def test_letters_are_balanced(by_family, family):
    letters = Counter(sample.answers[0] for sample in answerable(by_family[family], "letter"))
    options = round(1 / np.mean([sample.chance for sample in answerable(by_family[family], "letter")]))
    most = max(letters.values()) / letters.total()
    assert set(letters) <= set(LETTERS)
    assert most <= 1 / options + 4 * sqrt(1 / options / letters.total()) + 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_options_hold_the_answer_once_in_any_place(by_family, family):
    for sample in answerable(by_family[family], "letter"):
        options = dict(re.findall(r"^([A-D])\. (.+)$", sample.prompt, re.MULTILINE))
        assert len(set(options.values())) == len(options) == round(1 / sample.chance)
        assert sample.answers[0] in options


@pytest.mark.parametrize(
    "family", ["count", "position", "relation", "direction", "flashes", "change", "difference"]
)
def test_answers_are_even(by_family, family):
    answers = Counter(sample.answers[0] for sample in answerable(by_family[family], "short"))
    expected = 1 / len(answers)
    assert max(answers.values()) / answers.total() <= expected + 4 * sqrt(expected / answers.total())


def test_a_linear_probe_on_the_border_reads_nothing(by_family):
    """Least squares on the four corner pixels in full depth, for a balanced question of two answers."""
    for family in ("compare_counts", "same", "which_more"):
        samples = [sample for sample in answerable(by_family[family], "letter") if sample.answers[0] in "AB"]
        inputs = np.stack(
            [first_pixels(sample)[[0, 0, -1, -1], [0, -1, 0, -1]].ravel() / 255 for sample in samples]
        )
        inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
        wanted = np.array([1.0 if sample.answers[0] == "A" else -1.0 for sample in samples])
        half = len(samples) // 2
        weights = np.linalg.lstsq(inputs[:half], wanted[:half], rcond=None)[0]
        right = np.mean(np.sign(inputs[half:] @ weights) == wanted[half:])
        assert right <= 0.5 + 4 * sqrt(0.25 / (len(samples) - half)), family
