"""Text for stage 0: lists, and what they say. Dense lessons in looking things up, which Qwen2 comes with.

Captions with a few questions teach that slowly. Here a short list is asked a score of times, a few tokens
each. All keeps to what may be trained on.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from onevision.eval.suite.general import PLACES
from onevision.eval.suite.sample import LETTERS
from onevision.eval.suite.several import ORDINALS
from onevision.eval.suite.vocabulary import COLORS, SHAPES, draw_numbers, draw_things, draw_words

if TYPE_CHECKING:
    from random import Random

Pair = tuple[str, str]

#: How a pair stands in a list, and how its second part is asked for. In an answer after a line break, words
#: have no space before them, as in a conversation.
LISTED = ("{0} {1}", "{0} {1}", "{1} {0}", "{0}: {1}", "{0} is {1}", "{0} says {1}", "{0}. {1}", "a {0} {1}")
BETWEEN = (", ", ". ", "\n", " ", " and ")
ASKED = ("{0}:", "{0}\n", "{0}\n", "What is {0}?\n", "Which is {0}?\n", "the {0} is")
MOST_PAIRS, MOST_QUESTIONS = 7, 20


def lookup(random: Random) -> tuple[str, list[Pair]]:
    """A text, and what follows from it: pairs of a beginning and how it goes on."""
    kind = random.choices((_pairs, _order, _count), (6, 1, 1))[0]
    text, found = kind(random)
    return text, random.sample(found, min(MOST_QUESTIONS, len(found)))


def _pairs(random: Random) -> tuple[str, list[Pair]]:
    """Things that belong together, asked in both directions."""
    count = random.randint(2, MOST_PAIRS)
    pairs = _draw_pairs(random, count)
    form, between = random.choice(LISTED), random.choice(BETWEEN)
    found = []
    for one, other in pairs:
        for key, value in ((one, other), (other, one)):
            found += [_asked(random, key, value) for _ in range(2)]
    return between.join(form.format(*pair) for pair in pairs) + ".\n", found


def _draw_pairs(random: Random, count: int) -> list[Pair]:
    """Pairs whose first parts differ, and whose second parts do."""
    if random.random() < 0.2:
        letters = LETTERS[: min(count, len(LETTERS))]
        return list(zip(letters, _draw(random, random.choice(_SORTS), len(letters)), strict=False))
    if random.random() < 0.25:
        return [(colour, shape) for colour, shape in draw_things(random, "train", min(count, 4))]
    one, other = random.sample(_SORTS, 2)
    while {one, other} == {"colour", "shape"}:
        one, other = random.sample(_SORTS, 2)
    return list(zip(_draw(random, one, count), _draw(random, other, count), strict=False))


def _order(random: Random) -> tuple[str, list[Pair]]:
    """Things in a row: which is the second, which comes after another."""
    row = _draw(random, random.choice(_SORTS), random.randint(2, 4))
    ordinals = [*ORDINALS[: len(row)], "last"]
    found = [_asked(random, name, thing) for name, thing in zip(ordinals, [*row, row[-1]], strict=True)]
    found += [_asked(random, f"after {one}", other) for one, other in pairwise(row)]
    found += [_asked(random, f"before {other}", one) for one, other in pairwise(row)]
    return random.choice(BETWEEN).join(row) + ".\n", found


def _count(random: Random) -> tuple[str, list[Pair]]:
    """Things of two to four sorts, mixed: how many there are of each."""
    sorts = _draw(random, random.choice(("colour", "shape")), random.randint(2, 4))
    counts = {sort: random.randint(1, 5) for sort in sorts}
    row = [sort for sort, count in counts.items() for _ in range(count)]
    found = [_asked(random, f"count {sort}", str(count)) for sort, count in counts.items() for _ in range(2)]
    return random.choice(BETWEEN).join(random.sample(row, len(row))) + ".\n", found


def _asked(random: Random, key: str, value: str) -> Pair:
    form = random.choice(ASKED)
    return form.format(key), value if form.endswith("\n") else f" {value}"


_SORTS = ("colour", "shape", "word", "number", "place")


def _draw(random: Random, sort: str, count: int) -> list[str]:
    """Different things of a sort."""
    if sort == "word":
        return draw_words(random, "train", count)
    if sort == "number":
        return draw_numbers(random, "train", count)
    pool = {"colour": tuple(COLORS), "shape": SHAPES, "place": tuple(PLACES)}[sort]
    return random.sample(pool, min(count, len(pool)))
