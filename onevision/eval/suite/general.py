"""General questions about one image: color, shape, position, relation, count."""

from __future__ import annotations

from random import Random
from typing import Any

from onevision.eval.suite.draw import Canvas, shade, tilt
from onevision.eval.suite.sample import Question, Scene, Split, ask
from onevision.eval.suite.vocabulary import COLORS, SHAPES, a_thing, draw_things, plural, things

#: Places of a thing, as fractions of width and height.
PLACES: dict[str, tuple[float, float]] = {
    "top left": (0.22, 0.22),
    "top right": (0.78, 0.22),
    "bottom left": (0.22, 0.78),
    "bottom right": (0.78, 0.78),
    "centre": (0.5, 0.5),
}
RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
COUNTS = ("1", "2", "3", "4", "5")


def image_size(random: Random, low: int = 56, high: int = 140) -> tuple[int, int]:
    """(width, height) of a image in pixels: each side is below 70 half of the time."""
    short = max(low, 70)
    width, height = (
        random.choice((random.randint(low, short), random.randint(short, high))) for _ in range(2)
    )
    return width, height


def objects(random: Random, split: Split) -> Scene:
    """Two or three things in different places: questions about color, shape and position."""
    canvas = Canvas(random, image_size(random))
    drawn = draw_things(random, split, random.randint(2, 3))
    facts: list[dict[str, Any]] = []
    side = min(canvas.width, canvas.height)
    for (color, shape), place in zip(drawn, random.sample(sorted(PLACES), len(drawn)), strict=True):
        x, y = (at + random.uniform(-0.05, 0.05) for at in PLACES[place])
        size = side * random.uniform(0.24, 0.36)
        center = (x * canvas.width, y * canvas.height)
        canvas.shape(shape, shade(random, color), center, size, tilt(random, shape))
        facts.append({"colour": color, "shape": shape, "place": place, "centre": center, "size": size})
    questions = []
    for fact in facts:
        questions += [_color(fact, random), _shape(fact, random), _position(fact, random)]
    caption = " ".join(f"There is {a_thing((f['colour'], f['shape']))}, {_at(f['place'])}." for f in facts)
    return Scene.of(canvas.finish(), caption, random.sample(questions, len(questions)), {"things": facts})


def pair(random: Random, split: Split) -> Scene:
    """Two things side by side or one above the other: questions about their relation, color and shape."""
    canvas = Canvas(random, image_size(random))
    (first, second) = draw_things(random, split, 2)
    relation = random.choice(sorted(RELATIONS))
    dx, dy = RELATIONS[relation]
    side = min(canvas.width, canvas.height)
    gap, drift = side * random.uniform(0.38, 0.5), side * random.uniform(-0.1, 0.1)
    size = side * 0.3
    margin = gap / 2 + size / 2
    x = random.uniform(margin, canvas.width - margin) if dx else canvas.width * random.uniform(0.4, 0.6)
    y = random.uniform(margin, canvas.height - margin) if dy else canvas.height * random.uniform(0.4, 0.6)
    facts = []
    for (color, shape), sign in ((first, 0.5), (second, -0.5)):
        center = (x + sign * (dx * gap + dy * drift), y + sign * (dy * gap + dx * drift))
        own = size * random.uniform(0.8, 1.1)
        canvas.shape(shape, shade(random, color), center, own, tilt(random, shape))
        facts.append({"colour": color, "shape": shape, "centre": center, "size": own})
    one, other = facts
    phrase = f"The {one['shape']} is {relation} the {other['shape']}."
    aliases = (f"{relation} the {other['shape']}", relation.removesuffix(" of"))
    question = ask(
        random, "relation", relation, RELATIONS, aliases=aliases, one=one["shape"], other=other["shape"]
    )
    questions = [question, *(_color(fact, random) for fact in facts), _shape(one, random)]
    caption = f"There is {a_thing(first)} and {a_thing(second)}. {phrase}"
    return Scene.of(canvas.finish(), caption, questions, {"things": facts})


def crowd(random: Random, split: Split) -> Scene:
    """One to five things of one shape, and another number of a second: questions about counts."""
    canvas = Canvas(random, image_size(random, 84))
    first, second = random.sample(SHAPES, 2)
    counts = dict(zip((first, second), random.sample(range(1, 6), 2), strict=True))
    cells = random.sample([(column, row) for column in range(3) for row in range(3)], sum(counts.values()))
    places = iter(cells)
    pools = {shape: [color for color, other in things(split) if other == shape] for shape in (first, second)}
    side = min(canvas.width, canvas.height) / 3
    facts = []
    for shape, count in counts.items():
        for _ in range(count):
            column, row = next(places)
            size = side * random.uniform(0.65, 0.8)
            x = (column + 0.5 + random.uniform(-0.08, 0.08)) * canvas.width / 3
            y = (row + 0.5 + random.uniform(-0.08, 0.08)) * canvas.height / 3
            color = random.choice(pools[shape])
            canvas.shape(shape, shade(random, color), (x, y), size, tilt(random, shape))
            facts.append({"colour": color, "shape": shape, "centre": (x, y), "size": size})
    questions = [
        _count(first, counts[first], random),
        _count(second, counts[second], random),
        _more(counts, random),
    ]
    caption = " ".join(_there_are(shape, counts[shape]) for shape in (first, second))
    return Scene.of(canvas.finish(), caption, questions, {"things": facts, "counts": counts})


def _at(place: str) -> str:
    return "in the centre" if place == "centre" else f"at the {place}"


def _there_are(shape: str, count: int) -> str:
    return f"There is 1 {shape}." if count == 1 else f"There are {count} {plural(shape)}."


def _color(fact: dict[str, Any], random: Random) -> Question:
    color, shape = fact["colour"], fact["shape"]
    return ask(random, "colour", color, COLORS, shape=shape)


def _shape(fact: dict[str, Any], random: Random) -> Question:
    color, shape = fact["colour"], fact["shape"]
    return ask(random, "shape", shape, SHAPES, aliases=(f"{color} {shape}",), color=color)


def _position(fact: dict[str, Any], random: Random) -> Question:
    shape, place = fact["shape"], fact["place"]
    aliases = (_at(place), "center", "in the center") if place == "centre" else (_at(place),)
    return ask(random, "position", place, PLACES, aliases=aliases, shape=shape, at=_at(place))


def _count(shape: str, count: int, random: Random) -> Question:
    return ask(random, "count", str(count), COUNTS, things=plural(shape), there_are=_there_are(shape, count))


def _more(counts: dict[str, int], random: Random) -> Question:
    first, second = random.sample(sorted(counts), 2)
    more = plural(first if counts[first] > counts[second] else second)
    fewer = plural(second if counts[first] > counts[second] else first)
    return ask(
        random,
        "compare_counts",
        more,
        (more, fewer),
        aliases=(f"more {more}",),
        first=plural(first),
        second=plural(second),
    )
