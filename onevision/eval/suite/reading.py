"""Reading: a word, a number, small print, a sum; and language alone, without an image."""

from __future__ import annotations

from random import Random

from onevision.eval.suite.draw import Canvas, fitting, shade
from onevision.eval.suite.general import image_size
from onevision.eval.suite.sample import Question, Scene, Split, ask
from onevision.eval.suite.vocabulary import (
    COLORS,
    draw_font,
    draw_numbers,
    draw_sum,
    draw_things,
    draw_words,
    like,
    numbers,
    sums,
    words,
)


def sign(random: Random, split: Split) -> Scene:
    """A word and a number, one above the other, each in its own font, size and color."""
    canvas = Canvas(random, image_size(random, 66))
    word, number = draw_words(random, split, 1)[0], draw_numbers(random, split, 1)[0]
    heights = random.sample((0.3, 0.72), 2)
    for text, at in zip((word, number), heights, strict=True):
        font, angle = draw_font(random, split), random.uniform(-6, 6)
        cap = fitting(text, font, canvas.height * random.uniform(0.2, 0.32), canvas.width * 0.88)
        x = canvas.width * random.uniform(0.48, 0.52)
        canvas.text(text, (x, at * canvas.height), font, cap, canvas.ink(), angle)
    others = draw_words(random, split, 4)
    questions = [
        ask(random, "word", word, others, len(words(split))),
        ask(random, "number", number, like(number, random, split), len(numbers(split))),
    ]
    upper, lower = (word, number) if heights[0] < heights[1] else (number, word)
    caption = f"The picture says {upper} and {lower}."
    return Scene.of(canvas.finish(), caption, questions, {"word": word, "number": number})


def small_print(random: Random, split: Split) -> Scene:
    """A large image with a heading, and small labels in colored frames with a number each."""
    size = random.choice(((200, 200), (210, 180), (180, 210), (270, 200), (200, 270), (260, 260)))
    width, height = (side + random.randint(-10, 10) for side in size)
    canvas = Canvas(random, (width, height))
    heading, font = draw_words(random, split, 1)[0], draw_font(random, split)
    cap = fitting(heading, font, height * 0.14, width * 0.8)
    canvas.text(heading, (width / 2, height * 0.16), font, cap, canvas.ink())
    labels = {}
    colors = random.sample(sorted(COLORS), random.randint(2, 3))
    cells = random.sample([(column, row) for column in range(2) for row in range(2)], len(colors))
    values = draw_numbers(random, split, len(colors))
    for color, (column, row), value in zip(colors, cells, values, strict=True):
        x = width * (0.27 + 0.46 * column + random.uniform(-0.06, 0.06))
        y = height * (0.47 + 0.34 * row + random.uniform(-0.05, 0.05))
        cap = random.uniform(11.5, 14.0)
        half = cap * 1.5
        canvas.rectangle((x - half, y - cap, x + half, y + cap), None, shade(random, color), line=4)
        canvas.text(value, (x, y), draw_font(random, split), cap, canvas.ink())
        labels[color] = value
    questions = [
        ask(random, "small_print", value, like(value, random, split), len(numbers(split)), color=color)
        for color, value in labels.items()
    ]
    frames = " ".join(f"The {color} frame says {value}." for color, value in labels.items())
    facts = {"heading": heading, "labels": labels}
    return Scene.of(canvas.finish(), f"The heading says {heading}. {frames}", questions, facts)


def sum_in_image(random: Random, split: Split) -> Scene:
    """Two numbers and a plus sign on a line, or one above the other as on paper."""
    canvas = Canvas(random, image_size(random))
    a, b = draw_sum(random, split)
    font, ink = draw_font(random, split), canvas.ink()
    if random.random() < 0.5:
        text = f"{a}+{b}"
        cap = fitting(text, font, canvas.height * random.uniform(0.25, 0.4), canvas.width * 0.8)
        place = canvas.width / 2, canvas.height * random.uniform(0.35, 0.65)
        canvas.text(text, place, font, cap, ink, random.uniform(-6, 6))
    else:
        cap = min(canvas.height * random.uniform(0.2, 0.26), canvas.width * 0.3)
        x = canvas.width * random.uniform(0.55, 0.7)
        canvas.text(str(a), (x, canvas.height * 0.24), font, cap, ink)
        canvas.text(str(b), (x, canvas.height * 0.62), font, cap, ink)
        canvas.text("+", (x - cap * 1.3, canvas.height * 0.62), font, cap, ink)
        low = canvas.height * 0.84
        canvas.line((x - cap * 2, low), (x + cap * 0.7, low), ink, 1.5)
    question = _ask_sum("sum", a, b, split, random)
    return Scene.of(canvas.finish(), f"The picture says {a} + {b}.", [question], {"sum": (a, b)})


def text(random: Random, split: Split) -> Scene:
    """A sum, a word of a list, and a fact to find in two sentences."""
    a, b = draw_sum(random, split)
    listed = draw_words(random, split, 3)
    at = random.randrange(3)
    things = draw_things(random, split, 2, new=True)  # or a test sample could be in training
    color, shape = random.choice(things)
    told = " ".join(f"The {shape} is {color}." for color, shape in things)
    questions = [
        _ask_sum("text_sum", a, b, split, random),
        ask(
            random,
            "text_list",
            listed[at],
            listed,
            nth=("first", "second", "third")[at],
            words=", ".join(listed),
        ),
        ask(random, "text_fact", color, COLORS, len(things), told=told, shape=shape),
    ]
    more = [draw_sum(random, split) for _ in range(6)]
    facts = {"sum": (a, b), "list": listed, "things": things, "more sums": more}
    return Scene("text", (), None, "", tuple(questions), facts)


def _ask_sum(family: str, a: int, b: int, split: Split, random: Random) -> Question:
    """A question for a + b."""
    total = str(a + b)
    if max(a, b) < 10:
        totals = [str(total) for total in sorted({x + y for x, y in sums(split)})]
    else:
        totals = [str(a + b + by) for by in range(-10, 11)]
    return ask(random, family, total, totals, a=a, b=b)
