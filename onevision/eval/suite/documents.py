"""Documents, charts and screens: a field of a form, bars, a cell of a table, the label of a button."""

from __future__ import annotations

from random import Random

from onevision.eval.suite.draw import Canvas, fitting, shade
from onevision.eval.suite.sample import Scene, Split, ask
from onevision.eval.suite.vocabulary import COLORS, draw_font, draw_numbers, draw_words, like, numbers, words

FIELDS = ("ROOM", "SEAT", "AGE", "BUS", "PAGE", "TOTAL", "DAY", "GATE")
ROWS, COLUMNS = "ABC", "PQR"


def form(random: Random, split: Split) -> Scene:
    """Three or four lines, a name and a number each."""
    count = random.randint(3, 4)
    canvas = Canvas(random, (random.randint(126, 150), random.randint(126, 150)))
    font, ink = draw_font(random, split), canvas.ink()
    names = random.sample(FIELDS, count)
    values = draw_numbers(random, split, count)
    step = canvas.height * 0.86 / count
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        y = canvas.height * 0.07 + step * (at + 0.5)
        cap = fitting("TOTAL", font, random.uniform(13, 15), canvas.width * 0.5)
        canvas.text(name, (canvas.width * 0.33, y), font, cap, ink)
        canvas.text(value, (canvas.width * 0.8, y), font, cap, ink)
        if random.random() < 0.5:
            left, right, low = canvas.width * 0.06, canvas.width * 0.94, y + step / 2
            canvas.line((left, low), (right, low), ink, 0.7)
    questions = [
        ask(random, "field", value, like(value, random, split), len(numbers(split)), name=name)
        for name, value in zip(names, values, strict=True)
    ]
    caption = "The form says " + ", ".join(map(" ".join, zip(names, values, strict=True))) + "."
    return Scene.of(canvas.finish(), caption, questions, {"fields": dict(zip(names, values, strict=True))})


def bars(random: Random, split: Split) -> Scene:
    """Three or four bars, each of a color and with its value above; the values agree with the heights."""
    count = random.randint(3, 4)
    canvas = Canvas(random, (random.randint(126, 150), random.randint(110, 150)))
    colors = random.sample(sorted(COLORS), count)
    values = _spread(random, split, count)
    font, ink = draw_font(random, split), canvas.ink()
    floor, step = canvas.height * 0.94, canvas.width * 0.9 / count
    for at, (color, value) in enumerate(zip(colors, values, strict=True)):
        x = canvas.width * 0.05 + step * (at + 0.5)
        top = floor - canvas.height * 0.66 * int(value) / 99
        canvas.rectangle((x - step * 0.36, top, x + step * 0.36, floor), shade(random, color))
        canvas.text(value, (x, top - canvas.height * 0.09), font, fitting("88", font, 14, step * 0.82), ink)
    canvas.line((canvas.width * 0.04, floor), (canvas.width * 0.96, floor), ink, 1.2)
    by_color = dict(zip(colors, values, strict=True))
    order = sorted(colors, key=lambda color: int(by_color[color]))
    questions = [
        ask(random, "highest_bar", color, colors, len(COLORS), extreme=extreme)
        for extreme, color in (("highest", order[-1]), ("lowest", order[0]))
    ]
    questions += [
        ask(random, "bar_value", by_color[color], numbers(split), color=color)
        for color in random.sample(colors, 2)
    ]
    caption = "The bars are " + ", ".join(f"{color} {value}" for color, value in by_color.items()) + "."
    return Scene.of(canvas.finish(), caption, questions, {"bars": by_color})


def table(random: Random, split: Split) -> Scene:
    """Two or three rows A, B, C by two columns P, Q (or three, R), a number in each cell."""
    rows, columns = random.choice(((2, 2), (3, 2), (2, 3)))
    canvas = Canvas(random, (random.randint(126, 150), random.randint(110, 150)))
    font, ink = draw_font(random, split), canvas.ink()
    wide, high = canvas.width * 0.94 / (columns + 0.7), canvas.height * 0.94 / (rows + 0.8)
    left, top = canvas.width * 0.03, canvas.height * 0.03
    cap = fitting("88", font, min(15.0, high * 0.5), wide * 0.72)
    for at, name in enumerate(COLUMNS[:columns]):
        canvas.text(name, (left + wide * (at + 1.2), top + high * 0.4), font, cap, ink)
    cells = {}
    values = iter(random.sample(numbers(split), rows * columns))
    for row in range(rows):
        y = top + high * (row + 1.3)
        canvas.text(ROWS[row], (left + wide * 0.35, y), font, cap, ink)
        for column in range(columns):
            value = next(values)
            canvas.text(value, (left + wide * (column + 1.2), y), font, cap, ink)
            cells[ROWS[row] + COLUMNS[column]] = value
    for row in range(rows + 1):
        y = top + high * (row + 0.8)
        canvas.line((left, y), (canvas.width - left, y), ink, 0.8)
    for column in range(columns):
        x = left + wide * (column + 0.7)
        canvas.line((x, top), (x, canvas.height - top), ink, 0.8)
    questions = [
        ask(random, "cell", value, numbers(split), row=cell[0], column=cell[1])
        for cell, value in random.sample(sorted(cells.items()), 3)
    ]
    lines = [
        f"Row {row}: " + " ".join(cells[row + column] for column in COLUMNS[:columns]) for row in ROWS[:rows]
    ]
    return Scene.of(canvas.finish(), ". ".join(lines) + ".", questions, {"cells": cells})


def screen(random: Random, split: Split) -> Scene:
    """A window with two or three colored buttons, each with a word."""
    count = random.randint(2, 3)
    canvas = Canvas(random, (random.randint(110, 150), random.randint(110, 150)))
    font = draw_font(random, split)
    colors, labels = random.sample(sorted(COLORS), count), draw_words(random, split, count)
    canvas.rectangle((2, 2, canvas.width - 2, canvas.height * 0.13), canvas.ink(), radius=2)
    step = canvas.height * 0.84 / count
    for at, (color, label) in enumerate(zip(colors, labels, strict=True)):
        y = canvas.height * 0.15 + step * (at + 0.5)
        high, wide = min(step * 0.42, canvas.height * 0.17), canvas.width * random.uniform(0.38, 0.44)
        x = canvas.width * 0.5 + random.uniform(-0.04, 0.04) * canvas.width
        face = shade(random, color)
        canvas.rectangle((x - wide, y - high, x + wide, y + high), face, radius=random.uniform(0, 7))
        ink = (15, 15, 20) if sum(face) > 330 else (250, 250, 245)
        canvas.text(label, (x, y), font, fitting(label, font, high * 1.1, wide * 1.8), ink)
    questions = []
    for color, label in zip(colors, labels, strict=True):
        others = draw_words(random, split, 4)
        questions.append(ask(random, "button", label, others, len(words(split)), color=color))
    caption = " ".join(
        f"The {color} button says {label}." for color, label in zip(colors, labels, strict=True)
    )
    return Scene.of(canvas.finish(), caption, questions, {"buttons": dict(zip(colors, labels, strict=True))})


def _spread(random: Random, split: Split, count: int) -> list[str]:
    """Numbers whose highest and lowest differ visibly from the next, by 10 or more."""
    while True:
        values = random.sample(numbers(split), count)
        order = sorted(map(int, values))
        if order[-1] - order[-2] >= 10 and order[1] - order[0] >= 10:
            return values
