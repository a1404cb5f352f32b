r"""Answers in a form: tokens that keep to a JSON Schema, a regular expression or a grammar.

In: the form, and the bytes of every token. Out, before each token: the ids that may come next. The automata
are llguidance's. What it would not keep to exactly is refused here before a model is loaded, by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from onevision.errors import GenerationError, UsageError
from onevision.extras import require
from onevision.runtime.schema import check_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt
    from llguidance import LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from onevision.runtime.tokenizer import GgufTokenizer

#: One way to write a value, but for a space after commas and colons: unlimited whitespace may never end, and
#: a key that could be spelled with ``\u0061`` as well could occur twice.
_JSON: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": '"\\bfnrt',
}
_MAX_BYTES = 2**20


@lru_cache(maxsize=64)
def compile_grammar(kind: str, text: str) -> str:
    """Compile a form for llguidance, and check that there is an answer in it.

    Args:
        kind: ``json_schema``, ``regex`` or ``grammar`` (GBNF of llama.cpp, or llguidance's Lark).
        text: The form; see :func:`schema_text` and :func:`grammar_text`.

    Raises:
        UsageError: It is not valid, asks for something that cannot be kept to, or llguidance is missing.
    """
    require("schema", kind)
    from llguidance import LLMatcher, grammar_from

    if len(text) > _MAX_BYTES:
        raise UsageError(f"{kind} has {len(text):,} characters, at most {_MAX_BYTES:,} are taken")
    try:
        if kind == "json_schema":
            check_schema(json.loads(text))
            source = LLMatcher.grammar_from_json_schema(text, overrides=_JSON)
        elif kind == "regex":
            source = LLMatcher.grammar_from_regex(text)
        elif "%json" in text:
            raise UsageError(
                "grammar has a %json, which is not checked", hint="give the schema alone: --json-schema"
            )
        else:
            source = grammar_from("gbnf" if "::=" in text else "lark", text)
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{kind}: {_reason(str(error))}") from error
    failed, (*messages,) = LLMatcher.validate_grammar_with_warnings(source)
    if messages:  # the only warning is of special tokens, which no answer may have
        raise UsageError(f"{kind}: {_reason(messages[0]) if failed else 'tokens by name or id are refused'}")
    try:
        Constraint(_byte_tokens(), source).allowed()
    except GenerationError as error:
        raise UsageError(f"{kind}: {error.message}") from error
    return source


def _reason(message: str) -> str:
    """Reason of llguidance, with the position in words and without the excerpt."""
    if "regex parse error" in message:
        return message.rpartition("error: ")[2].splitlines()[0]
    message = message.replace("Failed to convert the grammar from GBNF to Lark: ", "")
    first = message.strip().splitlines()[0]
    return re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", first)


@dataclass(frozen=True)
class _Tokens:
    """A tokenizer in the form that llguidance reads. No token has a name, so that none can be asked for.

    Attributes:
        tokens: Their bytes.
        special_token_ids: Tokens that are no text.
        eos_token_id: The token that ends an answer.
        encode: Token ids of a text: the way in which a text without a choice is written.
    """

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    encode: Callable[[str], Sequence[int]]
    bos_token_id: None = None

    def __call__(self, text: str) -> Sequence[int]:
        return self.encode(text)


def make_tokens(tokenizer: GgufTokenizer, banned: Sequence[int]) -> LLTokenizer:
    """Tables of a tokenizer for llguidance: they take a second, and are to be kept.

    Args:
        tokenizer: The tokenizer.
        banned: Tokens that no answer has.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    tokens = [tokenizer.piece(token) for token in range(tokenizer.size)]
    for token in banned:
        tokens[token] = b""
    special = [token for token, piece in enumerate(tokens) if not piece or piece[0] == 0xFF]
    ends = tokenizer.end_ids
    wrapped = TokenizerWrapper(_Tokens(tokens, special, ends[-1], tokenizer.encode))
    return LLTokenizer(wrapped, eos_token=ends)


@cache
def _byte_tokens() -> LLTokenizer:
    """Tables of a token per byte, and one that ends."""
    from llguidance import LLTokenizer, TokenizerWrapper

    end = 256
    tokens = [*(bytes([byte]) for byte in range(end)), b""]
    wrapped = TokenizerWrapper(_Tokens(tokens, [0xFF, end], end, lambda text: list(text.encode())))
    return LLTokenizer(wrapped)


class Constraint:
    """The state of an answer under a grammar.

    Args:
        tokens: Of :func:`make_tokens`.
        source: Of :func:`compile_grammar`.
    """

    def __init__(self, tokens: LLTokenizer, source: str) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokens, source, log_level=0)

    @property
    def complete(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> npt.NDArray[np.intp]:
        """Ids that may come next, in order; an end-of-sequence token only where the answer is whole.

        Raises:
            GenerationError: There is none, or the grammar needs too much work for one token.
        """
        import numpy as np  # not with the options, which the help of the command line imports

        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.flatnonzero(np.unpackbits(mask, bitorder="little"))

    def accept(self, token: int) -> None:
        """Go on with a token.

        Raises:
            GenerationError: The grammar needs too much work for it.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise GenerationError(
                "no answer can be of this form" if reason.startswith("NoExtension") else reason,
                hint="make the form simpler: fewer nested repetitions",
            )
