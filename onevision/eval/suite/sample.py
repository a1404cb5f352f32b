"""Scenes with their questions, and samples: one question in one answer form.

The three forms are LLaVA-1.5's: a short answer, a letter of given choices, a full sentence. The prompt names
the form.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onevision.runtime.choices import LETTER_INSTRUCTION
from onevision.runtime.images import ImageSource
from onevision.runtime.video import VideoSource

InputKind = Literal["image", "images", "video", "text"]
Split = Literal["train", "test"]
Form = Literal["short", "letter", "sentence"]

LETTERS = "ABCD"
FORMS: tuple[Form, ...] = ("short", "short", "letter", "sentence")  # drawn from
INSTRUCTIONS: dict[Form, str] = {
    "short": "Answer the question using a single word or phrase.",
    "letter": LETTER_INSTRUCTION,
    "sentence": "Answer the question with a full sentence.",
}


#: Question and full sentence of the answer, by family.
TEXTS: dict[str, tuple[str, str]] = {
    "colour": ("What colour is the {shape}?", "The {shape} is {answer}."),
    "shape": ("What shape is the {color} thing?", "The {color} thing is a {answer}."),
    "position": ("Where in the picture is the {shape}?", "The {shape} is {at}."),
    "relation": (
        "Where is the {one}: left of, right of, above or below the {other}?",
        "The {one} is {answer} the {other}.",
    ),
    "count": ("How many {things} are in the picture?", "{there_are}"),
    "compare_counts": ("Are there more {first} or more {second}?", "There are more {answer}."),
    "word": ("Which word is written in the picture?", "The word is {answer}."),
    "number": ("Which number is written in the picture?", "The number is {answer}."),
    "small_print": (
        "Which number is in the small {color} frame?", "The number in the {color} frame is {answer}.",
    ),
    "field": ("What is the number next to {name}?", "The number next to {name} is {answer}."),
    "highest_bar": ("Which colour is the {extreme} bar?", "The {extreme} bar is {answer}."),
    "bar_value": ("What is the value of the {color} bar?", "The value of the {color} bar is {answer}."),
    "cell": (
        "Which number is in row {row}, column {column}?",
        "The number in row {row}, column {column} is {answer}.",
    ),
    "button": ("What does the {color} button say?", "The {color} button says {answer}."),
    "sum": ("What is the sum in the picture?", "{a} + {b} is {answer}."),
    "text_sum": ("What is {a} + {b}?", "{a} + {b} is {answer}."),
    "text_list": ("Which is the {nth} word: {words}?", "The word is {answer}."),
    "text_fact": ("{told} What colour is the {shape}?", "The {shape} is {answer}."),
    "same": ("Do the things in the two pictures have the same {aspect}?", "{said}"),
    "difference": (
        "What differs between the two pictures: the colour, the shape, the size or the number of things?",
        "The {answer} differs.",
    ),
    "which_has": ("Which picture has {things}?", "It is the {answer} picture."),
    "which_more": ("Which picture has more {things}?", "It is the {answer} picture."),
    "direction": ("In which direction does the {shape} move?", "The {shape} moves {answer}."),
    "order": ("Which colour appears {when}?", "The {answer} thing appears {when}."),
    "flashes": ("How many times does the {shape} light up?", "The {shape} lights up {times}."),
    "change": (
        "What changes in the video: the colour, the shape, the size or the position?",
        "The {answer} changes.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question about a scene, before it has a form."""

    family: str
    text: str  # "What colour is the star?"
    answer: str  # "red"
    options: tuple[str, ...]  # two to four plausible answers, in random order
    sentence: str  # the answer in a full sentence, "The star is red."
    chance: float  # of guessing the short answer
    aliases: tuple[str, ...] = ()  # other ways to say the answer


@dataclass(frozen=True, eq=False)
class Scene:
    """Pixels with a description and some questions. Exactly one of the four kinds of input."""

    kind: InputKind
    images: tuple[NDArray[np.uint8], ...]  # [h, w, 3] each
    video: NDArray[np.uint8] | None  # [N, h, w, 3]
    caption: str  # all answers, in words
    questions: tuple[Question, ...]
    facts: Mapping[str, Any] = field(repr=False)  # what was drawn, as plain data

    @classmethod
    def of(
        cls,
        seen: NDArray[np.uint8] | list[NDArray[np.uint8]],
        caption: str,
        questions: list[Question],
        facts: Mapping[str, Any],
    ) -> Scene:
        """A scene of an image [h, w, 3], of a list of images, or of frames in time [N, h, w, 3]."""
        if isinstance(seen, list):
            return cls("images", tuple(seen), None, caption, tuple(questions), facts)
        images, film = ((), seen) if seen.ndim == 4 else ((seen,), None)
        return cls("image" if images else "video", images, film, caption, tuple(questions), facts)


@dataclass(frozen=True, eq=False)
class Sample:
    """One question as a model gets it, with its right answers: of this suite, or of a user's file."""

    id: str
    family: str
    kind: InputKind
    form: Form
    prompt: str
    images: tuple[ImageSource, ...]  # the suite's are uint8 [h, w, 3]
    video: VideoSource | None  # the suite's is uint8 [N, h, w, 3]
    answers: tuple[str, ...]  # accepted; the first is what training teaches
    chance: float | None  # probability of guessing right without looking, if known
    split: Split | None = None  # of this suite; None for a user's question
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)  # for oracles, never for a model


@dataclass(frozen=True)
class Posed:
    """A question in a form: the prompt, the accepted answers, the probability of guessing."""

    form: Form
    prompt: str
    answers: tuple[str, ...]
    chance: float

    def sample(self, name: str, family: str, scene: Scene, split: Split) -> Sample:
        """The sample of that name."""
        return Sample(
            name, family, scene.kind, self.form, self.prompt, scene.images, scene.video, self.answers,
            self.chance, split, scene.facts,
        )  # fmt: skip


def pose(question: Question, random: Random) -> Posed:
    """Draw a form and put a question into it. Options are shuffled, so that letters are balanced."""
    form = random.choice(FORMS)
    text, instruction = question.text, INSTRUCTIONS[form]
    if form == "letter":
        options = random.sample(question.options, len(question.options))
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
        prompt = "\n".join([text, *lines, instruction])
        return Posed(form, prompt, (LETTERS[options.index(question.answer)],), 1 / len(options))
    prompt = f"{text}\n{instruction}"
    if form == "sentence":
        return Posed(form, prompt, (question.sentence, question.answer, *question.aliases), question.chance)
    return Posed(form, prompt, (question.answer, *question.aliases), question.chance)


def ask(
    random: Random,
    family: str,
    answer: str,
    pool: Iterable[str],
    among: int | None = None,
    *,
    aliases: tuple[str, ...] = (),
    **words: object,
) -> Question:
    """A question; its options are the answer and up to three others from the pool, in random order.

    Args:
        random: Source of all variation.
        family: Key of :data:`TEXTS`.
        answer: The right answer.
        pool: Answers to choose options from.
        among: Number of possible answers, for the chance of a guess; None: all of the pool.
        aliases: Other ways to say the answer.
        words: Fields of the texts besides ``answer``.
    """
    known = list(pool)
    others = [other for other in known if other != answer]
    chosen = [answer, *random.sample(others, min(3, len(others)))]
    options = tuple(random.sample(chosen, len(chosen)))
    text, sentence = (template.format(answer=answer, **words) for template in TEXTS[family])
    return Question(family, text, answer, options, sentence, 1 / (among or len(known)), aliases)


def score(sample: Sample, text: str) -> bool:
    """Whether a model's answer is right.

    A letter must be the expected one, with or without a full stop or parenthesis after it. A short answer may
    differ in case, punctuation and a leading article. A sentence must contain the answer, in whole words, and
    have at most 1.5 times as many words as the expected sentence, which is the first answer.
    """
    if sample.form == "letter":
        return re.sub(r"[.)]$", "", text.strip()) in sample.answers
    said = normalize(text)
    accepted = [normalize(answer) for answer in sample.answers]
    if sample.form == "short":
        return said in accepted
    # Listing all possible answers is not an answer.
    if len(said.split()) > 1.5 * len(accepted[0].split()):
        return False
    return any(f" {phrase} " in f" {said} " for phrase in accepted)


def normalize(text: str) -> str:
    """Text as scoring compares it: lower case, no punctuation, single spaces, no leading article."""
    words = re.sub(r"[^\w+\s]", " ", unicodedata.normalize("NFC", text.casefold())).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "a", "an") else words)
