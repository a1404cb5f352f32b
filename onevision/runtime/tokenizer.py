"""The tokenizer of a GGUF file, in llama.cpp.

In: text. Out: token ids, and for each id the bytes of its text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp as api  # after native.llama, which sets its threads up

from onevision.errors import GenerationError, PromptError
from onevision.native.llama import LlamaModel, last_llama_error


class GgufTokenizer:
    """Text to token ids and back.

    Args:
        model: The file, with or without its weights.

    Attributes:
        size: Rows of the embedding, those that no token has included.
    """

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._vocab: Any = api.llama_model_get_vocab(model.pointer)
        self.size = int(api.llama_vocab_n_tokens(self._vocab))

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any text without lone surrogates.
            control: Parse control tokens such as ``<|im_end|>``; otherwise they are text like any other.

        Raises:
            PromptError: The text cannot be encoded as UTF-8.
            GenerationError: The model is closed.
        """
        if self._model.pointer is None:
            raise GenerationError("the language model is closed")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error.reason}") from error
        # A token stands for at least one byte.
        ids = (api.llama_token * max(1, len(data)))()
        count = api.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, control)
        if count < 0:
            raise GenerationError(f"llama.cpp could not tokenize the text: {last_llama_error() or count}")
        return list(ids[:count])

    def control_id(self, token: str) -> int | None:
        """Id of a control token, or None if there is no such token."""
        ids = self.encode(token, control=True)
        return ids[0] if len(ids) == 1 else None

    def piece(self, token: int) -> bytes:
        """Bytes of a token: part of a UTF-8 text, empty for control tokens."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = api.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def ends(self, token: int) -> bool:
        """Whether a token ends the answer (``<|im_end|>``, ``<|endoftext|>``)."""
        return bool(api.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    def end_ids(self) -> list[int]:
        """Ids of all tokens that end the answer."""
        return [token for token in range(self.size) if self.ends(token)]

    @property
    def unused(self) -> range:
        """Rows of the embedding that no token has; they are at the end."""
        first = self.size
        while first > 0 and api.llama_vocab_get_attr(self._vocab, first - 1) & api.LLAMA_TOKEN_ATTR_UNUSED:
            first -= 1
        return range(first, self.size)


@contextmanager
def open_tokenizer(path: Path) -> Iterator[GgufTokenizer]:
    """The tokenizer of a GGUF file, without loading its weights.

    Raises:
        BundleError: The file cannot be loaded.
    """
    model = LlamaModel(path, vocab_only=True)
    try:
        yield GgufTokenizer(model)
    finally:
        model.close()
