"""Language alone: short instructions without a image."""

from __future__ import annotations

from random import Random

from onevision.eval.suite.maths import question_of_sum
from onevision.eval.suite.sample import Question, Scene, Split, options_of
from onevision.eval.suite.vocabulary import COLORS, draw_sum, draw_things, draw_words


def text(random: Random, split: Split) -> Scene:
    """A sum, a word of a list, and a fact to find in two sentences."""
    a, b = draw_sum(random, split)
    listed = draw_words(random, split, 3)
    at = random.randrange(3)
    things = draw_things(random, split, 2, new=True)  # or a test sample could be in training
    color, shape = random.choice(things)
    told = " ".join(f"The {shape} is {color}." for color, shape in things)
    questions = [
        question_of_sum("text_sum", f"What is {a} + {b}?", a, b, split, random),
        Question(
            "text_list",
            f"Which is the {('first', 'second', 'third')[at]} word: {', '.join(listed)}?",
            listed[at],
            options_of(listed[at], listed, random),
            f"The word is {listed[at]}.",
            1 / len(listed),
        ),
        Question(
            "text_fact",
            f"{told} What colour is the {shape}?",
            color,
            options_of(color, list(COLORS), random),
            f"The {shape} is {color}.",
            1 / len(things),
        ),
    ]
    more = [draw_sum(random, split) for _ in range(6)]
    facts = {"sum": (a, b), "list": listed, "things": things, "more sums": more}
    return Scene("text", (), None, "", tuple(questions), facts)
