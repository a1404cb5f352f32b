"""Scenes with their questions, and samples: one question in one answer form.

The three forms are LLaVA-1.5's: a short answer, a letter of given choices, a full sentence. The prompt names
the form.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from onevision.runtime.choices import LETTER_INSTRUCTION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    import numpy as np
    from numpy.typing import NDArray

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
    def of_image(
        cls, image: NDArray[np.uint8], caption: str, questions: list[Question], facts: Mapping[str, Any]
    ) -> Scene:
        """A scene of one image."""
        return cls("image", (image,), None, caption, tuple(questions), facts)

    @classmethod
    def of_images(
        cls,
        images: list[NDArray[np.uint8]],
        caption: str,
        questions: list[Question],
        facts: Mapping[str, Any],
    ) -> Scene:
        """A scene of several images."""
        return cls("images", tuple(images), None, caption, tuple(questions), facts)

    @classmethod
    def of_video(
        cls, frames: NDArray[np.uint8], caption: str, questions: list[Question], facts: Mapping[str, Any]
    ) -> Scene:
        """A scene of frames in time."""
        return cls("video", (), frames, caption, tuple(questions), facts)


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


def options_of(answer: str, pool: tuple[str, ...] | list[str], random: Random) -> tuple[str, ...]:
    """The answer and up to three others from the pool, in random order."""
    others = [other for other in pool if other != answer]
    chosen = [answer, *random.sample(others, min(3, len(others)))]
    return tuple(random.sample(chosen, len(chosen)))


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
