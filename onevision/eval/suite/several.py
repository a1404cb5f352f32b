"""Two to four images: same or different, find the difference, which one has it, which one has more."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.eval.suite.draw import Canvas, shade, tilt
from onevision.eval.suite.sample import Question, Scene, Split, ask
from onevision.eval.suite.vocabulary import SHAPES, Thing, a_thing, draw_things, plural, things

ORDINALS = ("first", "second", "third", "fourth")
DIFFERENCES = ("colour", "shape", "size", "number")


def same(random: Random, split: Split) -> Scene:
    """One thing in each of two images: the same color or shape, or another."""
    pool = things(split)
    first = random.choice(pool)
    alike = {"colour": random.random() < 0.5, "shape": random.random() < 0.5}
    second = random.choice(
        [
            thing
            for thing in pool
            if (thing[0] == first[0]) == alike["colour"] and (thing[1] == first[1]) == alike["shape"]
        ]
    )
    images = [_single(thing, random) for thing in (first, second)]
    questions = []
    for aspect, is_same in alike.items():
        answer = "yes" if is_same else "no"
        said = f"have the same {aspect}." if is_same else f"do not have the same {aspect}."
        questions.append(
            ask(
                random,
                "same",
                answer,
                ("yes", "no"),
                aspect=aspect,
                said=f"{answer.capitalize()}, they {said}",
            )
        )
    return Scene.of(images, _caption([first, second]), questions, {"things": [first, second]})


def difference(random: Random, split: Split) -> Scene:
    """Two images of two things, of which one changed its color, shape or size, or is gone."""
    kind = random.choice(DIFFERENCES)
    kept, changed = draw_things(random, split, 2)
    fits = {"colour": 1, "shape": 0}  # the part of a thing that stays
    after: Thing | None = changed
    if kind in fits:
        stays = fits[kind]
        pool = [thing for thing in things(split) if thing[stays] == changed[stays] and thing != changed]
        after = random.choice([thing for thing in pool if kept[0] != thing[0] and kept[1] != thing[1]])
    elif kind == "number":
        after = None
    places = random.sample(((0.27, 0.3), (0.73, 0.3), (0.27, 0.7), (0.73, 0.7)), 2)
    large, small = random.uniform(0.4, 0.44), random.uniform(0.2, 0.24)
    sizes = random.sample((large, small), 2) if kind == "size" else [random.choice((large, small))] * 2
    # Which of the two images comes first says nothing: things vanish and appear, shrink and grow.
    shown = random.sample([(changed, sizes[0]), (after, sizes[1])], 2)
    images = []
    for thing, size in shown:
        canvas = Canvas(random, _size(random))
        _put(canvas, kept, places[0], 0.33, random)
        if thing is not None:
            _put(canvas, thing, places[1], size, random)
        images.append(canvas.finish())
    question = ask(
        random, "difference", kind, DIFFERENCES, aliases=("number of things",) if kind == "number" else ()
    )
    before, later = ([kept, thing] if thing else [kept] for thing, _ in shown)
    facts: dict[str, Any] = {"before": before, "after": later, "sizes": [size for _, size in shown]}
    return Scene.of(images, f"The {kind} differs.", [question], facts)


def which_has(random: Random, split: Split) -> Scene:
    """Two to four images of one thing each: which one has it?"""
    count = random.randint(2, 4)
    drawn = draw_things(random, split, count)
    images = [_single(thing, random) for thing in drawn]
    questions = [
        _which("which_has", a_thing(drawn[at]), at, count, random) for at in random.sample(range(count), 2)
    ]
    return Scene.of(images, _caption(drawn), questions, {"things": drawn})


def more(random: Random, split: Split) -> Scene:
    """Two images with one to four things of one shape: which one has more?"""
    shape = random.choice(SHAPES)
    colors = [color for color, other in things(split) if other == shape]
    counts = random.sample(range(1, 5), 2)
    images = []
    for count in counts:
        canvas = Canvas(random, _size(random))
        for place in random.sample(((0.27, 0.28), (0.73, 0.28), (0.27, 0.72), (0.73, 0.72)), count):
            _put(canvas, (random.choice(colors), shape), place, 0.34, random)
        images.append(canvas.finish())
    at = counts.index(max(counts))
    question = _which("which_more", plural(shape), at, 2, random)
    caption = f"There are {counts[0]} in the first picture and {counts[1]} in the second."
    return Scene.of(images, caption, [question], {"counts": counts})


def _which(family: str, things: str, at: int, count: int, random: Random) -> Question:
    answer = ORDINALS[at]
    return ask(
        random,
        family,
        answer,
        ORDINALS[:count],
        aliases=(f"{answer} picture", f"{answer} one"),
        things=things,
    )


def _size(random: Random) -> tuple[int, int]:
    side = random.randint(66, 100)
    return side, round(side * random.uniform(0.9, 1.1))


def _single(thing: Thing, random: Random) -> NDArray[np.uint8]:
    """A image of one thing."""
    canvas = Canvas(random, _size(random))
    place = random.uniform(0.35, 0.65), random.uniform(0.35, 0.65)
    _put(canvas, thing, place, random.uniform(0.35, 0.6), random)
    return canvas.finish()


def _put(canvas: Canvas, thing: Thing, place: tuple[float, float], size: float, random: Random) -> None:
    """Draw a thing; place and size are fractions of the image's sides."""
    color, shape = thing
    x, y = (at + random.uniform(-0.03, 0.03) for at in place)
    side = min(canvas.width, canvas.height)
    canvas.shape(
        shape, shade(random, color), (x * canvas.width, y * canvas.height), size * side, tilt(random, shape)
    )


def _caption(drawn: list[Thing]) -> str:
    lines = [f"The {ORDINALS[at]} picture has {a_thing(thing)}." for at, thing in enumerate(drawn)]
    return " ".join(lines)
