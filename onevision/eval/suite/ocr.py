"""Reading: a word, a number, and small print on a large image, unreadable in the base view."""

from __future__ import annotations

from random import Random

from onevision.eval.suite.draw import Canvas, fitting, shade
from onevision.eval.suite.general import image_size
from onevision.eval.suite.sample import Question, Scene, Split, options_of
from onevision.eval.suite.vocabulary import COLORS, draw_font, draw_numbers, draw_words, like, numbers, words


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
        Question(
            "word",
            "Which word is written in the picture?",
            word,
            options_of(word, [other for other in others if other != word], random),
            f"The word is {word}.",
            1 / len(words(split)),
        ),
        Question(
            "number",
            "Which number is written in the picture?",
            number,
            options_of(number, like(number, random, split), random),
            f"The number is {number}.",
            1 / len(numbers(split)),
        ),
    ]
    upper, lower = (word, number) if heights[0] < heights[1] else (number, word)
    caption = f"The picture says {upper} and {lower}."
    return Scene.of_image(canvas.finish(), caption, questions, {"word": word, "number": number})


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
        Question(
            "small_print",
            f"Which number is in the small {color} frame?",
            value,
            options_of(value, like(value, random, split), random),
            f"The number in the {color} frame is {value}.",
            1 / len(numbers(split)),
        )
        for color, value in labels.items()
    ]
    frames = " ".join(f"The {color} frame says {value}." for color, value in labels.items())
    facts = {"heading": heading, "labels": labels}
    return Scene.of_image(canvas.finish(), f"The heading says {heading}. {frames}", questions, facts)
