"""Choices: each is scored as a whole, and one of them is the answer.

In: a backbone that holds the prompt, and the choices. Out: the logarithm of each choice's probability, that
the model writes its tokens and then ends the answer. The end is part of it: ``yes`` is not ``yes, please``.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np

from onevision.runtime.logprobs import log_softmax, token_logprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.runtime.answer import TokenLogprob
    from onevision.runtime.backbone import Backbone
    from onevision.runtime.messages import Message

#: What a question of the training data ends with, after its options.
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."


def with_letters(messages: Sequence[Message], choices: Sequence[str]) -> list[Message]:
    """Messages whose question, the last text, lists the choices as multiple-choice data do."""
    *before, question = messages
    listed = "\n".join(f"{letter}. {each}" for letter, each in zip(ascii_uppercase, choices, strict=False))
    content = list(question.content)
    texts = [at for at, part in enumerate(content) if isinstance(part, str)]
    at = texts[-1] if texts else len(content)
    asked = [str(content.pop(at))] if texts else []
    content.insert(at, "\n".join([*asked, listed, LETTER_INSTRUCTION]))
    return [*before, replace(question, content=tuple(content))]


def score(
    backbone: Backbone, sequences: Sequence[Sequence[int]], top: int = 0
) -> list[tuple[float, tuple[TokenLogprob, ...]]]:
    """Score token sequences, each with the end after it, as continuations of what the backbone holds.

    Beginnings in common are computed once. The sequence of the backbone is left as it was.

    Args:
        backbone: With the logits of the prompt's last position.
        sequences: Token ids, not empty.
        top: Number of the most likely tokens to give at each position.

    Returns:
        For each sequence, the logarithm of its probability, and those of its tokens.
    """
    start, tokenizer = backbone.used, backbone.tokenizer
    path: tuple[int, ...] = ()
    rows = [log_softmax(backbone.logits())]  # after each token of the path
    backbone.resume(start, start + max(map(len, sequences)))
    tokens: list[TokenLogprob] = []
    scores = {}
    for sequence in sorted(map(tuple, sequences)):
        common = len([*takewhile(lambda pair: pair[0] == pair[1], zip(path, sequence, strict=False))])
        if common < len(path):
            backbone.resume(start + common, start + common)
        del rows[common + 1 :], tokens[common:]
        for token in sequence[common:]:
            tokens.append(token_logprob(rows[-1], token, tokenizer, top))
            backbone.append(token)
            rows.append(log_softmax(backbone.logits()))
        path = sequence
        end = np.logaddexp.reduce(rows[-1][tokenizer.end_ids])
        scores[sequence] = sum(each.logprob for each in tokens) + float(end), tuple(tokens)
    backbone.resume(start, start)
    return [scores[tuple(sequence)] for sequence in sequences]
