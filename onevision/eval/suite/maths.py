"""Mathematics: a sum in the image. Questions that compare counts are in ``general.crowd``."""

from __future__ import annotations

from random import Random

from onevision.eval.suite.draw import Canvas, fitting
from onevision.eval.suite.general import image_size
from onevision.eval.suite.sample import Question, Scene, Split, options_of
from onevision.eval.suite.vocabulary import draw_font, draw_sum, sums


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
    question = question_of_sum("sum", "What is the sum in the picture?", a, b, split, random)
    return Scene.of_image(canvas.finish(), f"The picture says {a} + {b}.", [question], {"sum": (a, b)})


def question_of_sum(family: str, text: str, a: int, b: int, split: Split, random: Random) -> Question:
    """A question for a + b."""
    total = str(a + b)
    if max(a, b) < 10:
        totals = [str(total) for total in sorted({x + y for x, y in sums(split)})]
    else:
        totals = [str(a + b + by) for by in range(-10, 11)]
    return Question(
        family, text, total, options_of(total, totals, random), f"{a} + {b} is {total}.", 1 / len(totals)
    )
