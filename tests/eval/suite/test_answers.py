"""Every question has an answer, which an oracle of its own derives from what was drawn; and scoring."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import numpy as np
import pytest

from onevision.eval.suite import FAMILIES, Sample, iter_samples, score
from onevision.eval.suite.draw import Canvas
from onevision.eval.suite.vocabulary import COLORS, SHAPES

WORDS_OF_ORDER = ("first", "second", "third", "fourth")


def the(pattern: str, sample: Sample) -> str:
    return re.search(pattern, sample.prompt)[1]


def singular(shape: str) -> str:
    return next(name for name in SHAPES if shape in (name + "s", name + "es"))


def thing(sample: Sample, key: str, value: str) -> dict:
    (found,) = [fact for fact in sample.facts["things"] if fact[key] == value]
    return found


def position(sample: Sample) -> str:
    x, y = thing(sample, "shape", the(r"is the (\w+)\?", sample))["centre"]
    height, width = sample.images[0].shape[:2]
    across = "left" if x < 0.4 * width else "right" if x > 0.6 * width else ""
    down = "top" if y < 0.4 * height else "bottom" if y > 0.6 * height else ""
    return f"{down} {across}" if across and down else "centre"


def relation(sample: Sample) -> str:
    one = thing(sample, "shape", the(r"Where is the (\w+):", sample))["centre"]
    other = thing(sample, "shape", the(r"below the (\w+)\?", sample))["centre"]
    dx, dy = one[0] - other[0], one[1] - other[1]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def counted(sample: Sample, shape: str) -> int:
    return sum(fact["shape"] == shape for fact in sample.facts["things"])


def more_of(sample: Sample) -> str:
    first, second = re.search(r"more (\w+) or more (\w+)\?", sample.prompt).groups()
    return first if counted(sample, singular(first)) > counted(sample, singular(second)) else second


def extreme_bar(sample: Sample) -> str:
    choose = max if "highest" in sample.prompt else min
    return choose(sample.facts["bars"], key=lambda colour: int(sample.facts["bars"][colour]))


def difference(sample: Sample) -> str:
    before, after = sample.facts["before"], sample.facts["after"]
    if len(before) != len(after):
        return "number"
    if [shape for _, shape in before] != [shape for _, shape in after]:
        return "shape"
    return "colour" if before != after else "size"


def changed(sample: Sample) -> str:
    facts = sample.facts
    if facts["places"][0] != facts["places"][1]:
        return "position"
    if facts["sizes"][0] != facts["sizes"][1]:
        return "size"
    return "colour" if facts["before"][0] != facts["after"][0] else "shape"


def which_has(sample: Sample) -> str:
    colour, shape = re.search(r"has an? (\w+) (\w+)\?", sample.prompt).groups()
    return WORDS_OF_ORDER[sample.facts["things"].index((colour, shape))]


def same(sample: Sample) -> str:
    at = ("colour", "shape").index(the(r"same (\w+)\?", sample))
    first, second = sample.facts["things"]
    return "yes" if first[at] == second[at] else "no"


def order(sample: Sample) -> str:
    when = ("first", "second", "last").index(the(r"appears (\w+)\?", sample))
    starts = sample.facts["starts"]
    return sample.facts["things"][sorted(range(3), key=starts.__getitem__)[when]][0]


def listed(sample: Sample) -> str:
    return the(r": (.+)\?", sample).split(", ")[WORDS_OF_ORDER.index(the(r"the (\w+) word", sample))]


def told(sample: Sample) -> str:
    return dict(re.findall(r"The (\w+) is (\w+)\.", sample.prompt))[the(r"colour is the (\w+)\?", sample)]


ORACLES = {
    "colour": lambda s: thing(s, "shape", the(r"is the (\w+)\?", s))["colour"],
    "shape": lambda s: thing(s, "colour", the(r"is the (\w+) thing", s))["shape"],
    "position": position,
    "relation": relation,
    "count": lambda s: str(counted(s, singular(the(r"How many (\w+)", s)))),
    "compare_counts": more_of,
    "word": lambda s: s.facts["word"],
    "number": lambda s: s.facts["number"],
    "small_print": lambda s: s.facts["labels"][the(r"small (\w+) frame", s)],
    "field": lambda s: s.facts["fields"][the(r"next to (\w+)\?", s)],
    "highest_bar": extreme_bar,
    "bar_value": lambda s: s.facts["bars"][the(r"the (\w+) bar", s)],
    "cell": lambda s: s.facts["cells"][the(r"row (\w)", s) + the(r"column (\w)", s)],
    "button": lambda s: s.facts["buttons"][the(r"the (\w+) button", s)],
    "sum": lambda s: str(sum(s.facts["sum"])),
    "text_sum": lambda s: str(int(the(r"(\d+) \+", s)) + int(the(r"\+ (\d+)", s))),
    "text_list": listed,
    "text_fact": told,
    "same": same,
    "difference": difference,
    "which_has": which_has,
    "which_more": lambda s: WORDS_OF_ORDER[int(np.argmax(s.facts["counts"]))],
    "direction": lambda s: s.facts["direction"],
    "order": order,
    "flashes": lambda s: str(len(s.facts["lit"])),
    "change": changed,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_oracle_finds_every_answer(family, split):
    for sample in islice(iter_samples(split, 21, [family]), 120):
        answer = ORACLES[family](sample)
        if sample.form == "letter":
            answer = the(rf"(?m)^([A-D])\. {re.escape(answer)}$", sample)
        if sample.form == "sentence":
            assert sample.answers[0].endswith(".")
            answer = sample.answers[1]
        assert answer == (sample.answers[1] if sample.form == "sentence" else sample.answers[0])
        assert score(sample, sample.answers[0])


def test_the_colour_that_is_asked_for_is_in_the_picture():
    for sample in islice(iter_samples("test", 5, ["colour"]), 60):
        fact = thing(sample, "shape", the(r"is the (\w+)\?", sample))
        x, y = map(round, fact["centre"])
        reach = max(2, round(fact["size"] / 2))
        patch = sample.images[0][max(0, y - reach) : y + reach, max(0, x - reach) : x + reach].reshape(-1, 3)
        near = np.abs(patch.astype(int) - COLORS[fact["colour"]]).max(axis=1) < 45
        assert near.mean() > 0.12, sample.id


def test_things_move_as_told():
    """From pixels: the centre of what differs from the ground, in the first and in the last frame."""
    for sample in islice(iter_samples("test", 5, ["direction"]), 40):
        frames = sample.video.astype(int)
        centres = []
        for frame in (frames[0], frames[-1]):
            ground = np.median(frame.reshape(-1, 3), axis=0)
            y, x = np.nonzero(np.abs(frame - ground).max(axis=2) > 60)
            centres.append(np.array((x.mean(), y.mean())))
        dx, dy = centres[1] - centres[0]
        seen = ("left", "right")[int(dx > 0)] if abs(dx) > abs(dy) else ("up", "down")[int(dy > 0)]
        assert seen == sample.facts["direction"]


def test_small_print_is_small_once_squashed():
    """On the base view, the picture squashed to a tile, its capitals are a third of a patch high."""
    for sample in islice(iter_samples("test", 1, ["small_print"]), 40):
        assert 14.0 * 70 / min(sample.images[0].shape[:2]) <= 5.8
        assert min(sample.images[0].shape[:2]) >= 170


def test_all_shapes_look_different():
    masks = []
    for shape in SHAPES:
        canvas = Canvas(Random(0), (60, 60), dark=False)
        canvas.shape(shape, (0, 0, 0), (30, 30), 44)
        masks.append(canvas.finish(grain=0).mean(axis=2) < 100)
    for at, one in enumerate(masks):
        for other in masks[:at]:
            assert (one != other).sum() > 0.15 * max(one.sum(), other.sum())


def sample_of(form: str, *answers: str) -> Sample:
    return Sample("id", "colour", "image", form, "?", (), None, answers, 0.1, "test", {})


@pytest.mark.parametrize(
    ("form", "answers", "text", "right"),
    [
        ("short", ["red"], "red", True),
        ("short", ["red"], " Red.", True),
        ("short", ["second", "second picture"], "The second picture", True),
        ("short", ["red"], "red or blue", False),
        ("short", ["red"], "", False),
        ("short", ["left of", "left"], "left", True),
        ("short", ["47"], "474", False),
        ("letter", ["B"], "B", True),
        ("letter", ["B"], "B.", True),
        ("letter", ["B"], "b", False),
        ("letter", ["B"], "B or C", False),
        ("letter", ["A"], "A star", False),
        ("letter", ["A"], "", False),
        ("sentence", ["The star is red.", "red"], "the star is red", True),
        ("sentence", ["The star is red.", "red"], "It is red.", True),
        ("sentence", ["The star is red.", "red"], "The star is blue.", False),
        ("sentence", ["The star is red.", "red"], "The star is infrared.", False),
        ("sentence", ["The star is red.", "red"], "It is red, green, blue, yellow, pink or cyan.", False),
        ("sentence", ["3 + 4 is 7.", "7"], "3 + 4 is 7.", True),
        ("sentence", ["3 + 4 is 7.", "7"], "3 + 4 is 8.", False),
    ],
)
def test_score(form, answers, text, right):
    assert score(sample_of(form, *answers), text) is right
