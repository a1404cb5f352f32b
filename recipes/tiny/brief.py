"""Brief lessons about a scene: a key, and what belongs to it in the picture.

A question in words costs some 40 tokens and teaches one answer. A brief one, ``red`` and then ``star``, costs
ten: beside a few of the suite's questions, many of them share the same look at the picture, as the lists of
:mod:`recipes.tiny.lookup` share one reading. All comes from what was drawn, so that it keeps to what may be
trained on.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from onevision.eval.suite.several import ORDINALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from random import Random

    from onevision.eval.suite import Scene

    Facts = Mapping[str, Any]

Pair = tuple[str, str]  # key, and what belongs to it

MOST_LETTERS = 5  # that a word is asked for


def brief_pairs(name: str, scene: Scene, random: Random, most: int) -> list[Pair]:
    """Some of what can be asked about a scene of the kind ``name``, at most ``most``, in random order."""
    if name not in _PAIRS:
        return []
    found = list(dict.fromkeys(_PAIRS[name](scene.facts)))
    keys = Counter(key for key, _ in found)
    clear = [pair for pair in found if keys[pair[0]] == 1]  # a key that belongs to two things asks nothing
    return random.sample(clear, min(most, len(clear)))


def _both(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair in both directions."""
    return [turned for key, value in pairs for turned in ((key, value), (value, key))]


def _placed(colour: str, shape: str, place: str) -> list[Pair]:
    """A thing and where, or when, it is."""
    found = [*_both([(colour, shape)]), (place, f"{colour} {shape}")]
    return [*found, (f"where {colour}", place), (f"where {shape}", place)]


def _objects(facts: Facts) -> list[Pair]:
    return [
        pair for thing in facts["things"] for pair in _placed(thing["colour"], thing["shape"], thing["place"])
    ]


def _pair(facts: Facts) -> list[Pair]:
    one, other = facts["things"]
    (x, y), (other_x, other_y) = one["centre"], other["centre"]
    if abs(x - other_x) > abs(y - other_y):
        ends = ("left", "right") if x < other_x else ("right", "left")
    else:
        ends = ("above", "below") if y < other_y else ("below", "above")
    return [
        pair
        for end, thing in zip(ends, (one, other), strict=True)
        for pair in _placed(thing["colour"], thing["shape"], end)
    ]


def _crowd(facts: Facts) -> list[Pair]:
    colours = Counter(thing["colour"] for thing in facts["things"])
    found = [(f"count {shape}", str(count)) for shape, count in facts["counts"].items()]
    found += [(f"count {colour}", str(count)) for colour, count in colours.items()]
    found.append(("count", str(len(facts["things"]))))
    more, fewer = sorted(facts["counts"], key=facts["counts"].__getitem__, reverse=True)
    return [*found, ("more", more), ("fewer", fewer)]


def _spelt(key: str, text: str) -> list[Pair]:
    """A word or number, and its characters one by one."""
    letters = [
        (f"{key} {ordinal}", letter) for ordinal, letter in zip((*ORDINALS, "fifth"), text, strict=False)
    ]
    return [(key, text), *letters[:MOST_LETTERS], (f"{key} last", text[-1])]


def _sign(facts: Facts) -> list[Pair]:
    return _spelt("word", facts["word"]) + _spelt("number", facts["number"])


def _small_print(facts: Facts) -> list[Pair]:
    found = _both(facts["labels"].items())
    for colour, value in facts["labels"].items():
        found += _spelt(colour, value)[1:]
    return [*found, ("heading", facts["heading"])]


def _form(facts: Facts) -> list[Pair]:
    return _both(facts["fields"].items())


def _bars(facts: Facts) -> list[Pair]:
    bars = facts["bars"]
    order = sorted(bars, key=lambda colour: int(bars[colour]))
    found = [*_both(bars.items()), ("highest", order[-1]), ("lowest", order[0])]
    colours = list(bars)
    found += [(f"right of {one}", other) for one, other in pairwise(colours)]
    return found + [(f"left of {other}", one) for one, other in pairwise(colours)]


def _table(facts: Facts) -> list[Pair]:
    return _both((" ".join(cell), value) for cell, value in facts["cells"].items())


def _screen(facts: Facts) -> list[Pair]:
    found = _both(facts["buttons"].items())
    for colour, label in facts["buttons"].items():
        found += _spelt(colour, label)[1:3]
    return found


def _sum(facts: Facts) -> list[Pair]:
    a, b = facts["sum"]
    return [("first", str(a)), ("second", str(b)), ("sum", str(a + b))]


def _text(facts: Facts) -> list[Pair]:
    return [(f"{a} + {b}", str(a + b)) for a, b in facts["more sums"]]


def _in_each(things: Sequence[Sequence[tuple[str, str]]]) -> list[Pair]:
    """What each of several pictures shows."""
    found = []
    for ordinal, shown in zip(ORDINALS, things, strict=False):
        found.append((f"count {ordinal}", str(len(shown))))
        for colour, shape in shown:
            found += _both([(f"{ordinal} {colour}", shape), (f"{ordinal} {shape}", colour)])
            if len(shown) == 1:
                found += [(f"{ordinal} colour", colour), (f"{ordinal} shape", shape)]
                found += [(colour, ordinal), (shape, ordinal), (f"{colour} {shape}", ordinal)]
    return found


def _single_things(facts: Facts) -> list[Pair]:
    return _in_each([[thing] for thing in facts["things"]])


def _difference(facts: Facts) -> list[Pair]:
    return _in_each([facts["before"], facts["after"]])


def _more(facts: Facts) -> list[Pair]:
    return [
        (f"count {ordinal}", str(count)) for ordinal, count in zip(ORDINALS, facts["counts"], strict=False)
    ]


def _moving(facts: Facts) -> list[Pair]:
    colour, shape = facts["thing"]
    return [*_both([(colour, shape)]), ("direction", facts["direction"])]


def _order(facts: Facts) -> list[Pair]:
    ordinals = ("first", "second", "last")
    return [
        pair
        for ordinal, thing in zip(ordinals, facts["things"], strict=True)
        for pair in _placed(*thing, ordinal)
    ]


def _changing(facts: Facts) -> list[Pair]:
    (before, shape_before), (after, shape_after) = facts["before"], facts["after"]
    found = [("first colour", before), ("last colour", after)]
    return [*found, ("first shape", shape_before), ("last shape", shape_after)]


_PAIRS: dict[str, Callable[[Facts], list[Pair]]] = {
    "objects": _objects,
    "pair": _pair,
    "crowd": _crowd,
    "sign": _sign,
    "small_print": _small_print,
    "form": _form,
    "bars": _bars,
    "table": _table,
    "screen": _screen,
    "sum": _sum,
    "text": _text,
    "same": _single_things,
    "which_has": _single_things,
    "difference": _difference,
    "more": _more,
    "moving": _moving,
    "order": _order,
    "changing": _changing,
}
