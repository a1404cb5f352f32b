"""Logarithms of probabilities, as the model has them.

In: logits float32 [V]. Out: log-probabilities, of all tokens or of one with the most likely in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onevision.runtime.answer import TokenLogprob

if TYPE_CHECKING:
    import numpy.typing as npt

    from onevision.runtime.tokenizer import GgufTokenizer


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log-probabilities float32 [V] of logits [V]."""
    shifted: npt.NDArray[np.float32] = logits - logits.max()
    shifted -= np.log(np.exp(shifted).sum(dtype=np.float64))
    return shifted


def token_logprob(
    row: npt.NDArray[np.float32], token: int, tokenizer: GgufTokenizer, top: int = 0
) -> TokenLogprob:
    """Log-probability of a token.

    Args:
        row: Log-probabilities of all tokens.
        token: Its id.
        tokenizer: For the texts; a token of incomplete UTF-8 has the replacement character.
        top: Number of the most likely tokens to give with it.
    """
    best = np.argpartition(row, -top)[-top:] if top else np.empty(0, np.intp)
    ranked = tuple(token_logprob(row, each, tokenizer) for each in best[np.argsort(-row[best])].tolist())
    text = tokenizer.piece(token).decode("utf-8", "replace")
    return TokenLogprob(token, text, round(float(row[token]), 6), ranked)
