"""A checkpoint's Qwen2 tokenizer, laid out row by row as GGUF wants it.

In: ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``, and the added tokens of the files beside them.
Out: a :class:`Tokenizer` with one token and one type for every row of the embedding. Only byte-level BPE with
Qwen2's pre-tokenizer and NFC is accepted: anything else would be split differently by llama.cpp.

llama.cpp's own ``qwen2`` pre-tokenizer was compared with the tokenizers library over all code points. Classes
differ only for letters and digits that are new in Unicode 16, and ``'ſ`` counts as the contraction ``'s`` in
the library alone. No merge of Qwen2's vocabulary spans such a place, so the ids are the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from onevision.errors import CheckpointError, UnsupportedCheckpointError
from onevision.export.config import IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.section import DAMAGED_HINT, SCOPE_HINT, Section, read_json, show
from onevision.models.shapes import ModelConfig

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

#: Tokens that no user may type and no answer shows, beside those that end an answer.
RESERVED = (
    END_OF_TEXT, IM_START, IM_END, IMAGE_TOKEN, VIDEO_TOKEN,
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

#: Qwen2's pre-tokenizer (transformers, ``tokenization_qwen2.PRETOKENIZE_REGEX``).
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: ChatML as in training (LLaVA-NeXT ``conv_qwen``), which differs from the template on the Hub.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class TokenType(IntEnum):
    """GGUF's token types (``tokenizer.ggml.token_type``)."""

    NORMAL = 1
    CONTROL = 3  # never matched in a user's text, and not shown
    USER_DEFINED = 4  # matched before the text is split, and shown
    UNUSED = 5  # a row of the embedding without a token


@dataclass(frozen=True)
class Tokenizer:
    """Byte-level BPE. ``tokens`` and ``types`` have one entry for each of the embedding's rows.

    Vocabulary tokens are written in GPT-2's byte alphabet (:func:`byte_alphabet`), added tokens as they are.
    """

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]  # "left right", best first
    bos_id: int | None
    eos_id: int  # ends generation; llama.cpp adds im_end and end-of-text by their names
    pad_id: int
    im_start_id: int
    im_end_id: int
    image_id: int | None  # None: lmms-lab tokenizers have no such token, and its id is not needed
    video_id: int | None

    @property
    def never_sampled(self) -> tuple[int, ...]:
        """Ids that no answer may hold: rows without a token, and the places of images and videos."""
        unused = [index for index, kind in enumerate(self.types) if kind is TokenType.UNUSED]
        return tuple(index for index in (self.image_id, self.video_id, *unused) if index is not None)

    @property
    def added(self) -> tuple[str, ...]:
        """Tokens of a fine-tune, which may be typed and are shown."""
        pairs = zip(self.tokens, self.types, strict=True)
        return tuple(text for text, kind in pairs if kind is TokenType.USER_DEFINED)


@dataclass(frozen=True)
class _Source:
    """Content of the tokenizer's files, before the ids are laid out."""

    vocabulary: dict[str, int]
    merges: tuple[str, ...]
    added: dict[int, str]
    file: Path


def byte_alphabet() -> tuple[str, ...]:
    """The 256 characters that stand for bytes 0 to 255 in GPT-2's vocabulary files."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    characters = {byte: chr(byte) for byte in printable}
    characters.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return tuple(characters[byte] for byte in range(256))


def read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """Read a checkpoint's tokenizer.

    Args:
        folder: The checkpoint's folder.
        config: Its shape; ``config.text.vocab_size`` is the number of rows.

    Raises:
        CheckpointError: No tokenizer, damaged files, or ids that contradict each other or the embedding.
        UnsupportedCheckpointError: Another kind of tokenizer.
    """
    source = _read_source(folder)
    rows = config.text.vocab_size
    ends = {index for index in (config.text.bos_id, *config.text.eos_ids) if index is not None}
    tokens, types = _lay_out(source, rows, ends)
    _check_merges(source)
    added = {text: index for index, text in source.added.items()}
    missing = [text for text in (END_OF_TEXT, IM_START, IM_END) if text not in added]
    if missing:
        raise UnsupportedCheckpointError(f"{source.file} has no token {' and no '.join(missing)}")
    eos_ids = config.text.eos_ids or (added[IM_END],)
    for index in (config.text.bos_id, *eos_ids):
        if index is not None and (index >= rows or types[index] is TokenType.UNUSED):
            raise CheckpointError(f"config.json names token {index}, which {source.file} does not have")
    return Tokenizer(
        tokens=tokens,
        types=types,
        merges=source.merges,
        bos_id=config.text.bos_id,
        eos_id=added[IM_END] if added[IM_END] in eos_ids else eos_ids[0],
        pad_id=added[END_OF_TEXT],
        im_start_id=added[IM_START],
        im_end_id=added[IM_END],
        image_id=_checked_id(IMAGE_TOKEN, config.image_token_id, added, source.file),
        video_id=_checked_id(VIDEO_TOKEN, config.video_token_id, added, source.file),
    )


def _checked_id(text: str, configured: int | None, added: dict[str, int], file: Path) -> int | None:
    """The id of the image or video token, on which config and tokenizer have to agree."""
    if text in added and configured is not None and added[text] != configured:
        raise CheckpointError(f"config.json gives {text} the id {configured}, {file} the id {added[text]}")
    return added.get(text)


def _read_source(folder: Path) -> _Source:
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    settings = _section(folder / "tokenizer_config.json")
    extra = _added_beside(folder, settings)
    if whole.is_file():
        return _from_tokenizer_json(whole, extra)
    if vocabulary.is_file() and merges.is_file():
        if settings.get("tokenizer_class") != "Qwen2TokenizerFast":
            settings.expect("tokenizer_class", "Qwen2Tokenizer")
        return _Source(_ids(read_json(vocabulary), vocabulary), _read_merges(merges), extra, vocabulary)
    raise CheckpointError(
        f"{folder} has no tokenizer", hint="a checkpoint needs tokenizer.json, or vocab.json and merges.txt"
    )


def _from_tokenizer_json(path: Path, extra: dict[int, str]) -> _Source:
    root = Section(read_json(path), f"{path.name}: ")
    model = root.section("model")
    _check_kind(root, model)
    merges: Any = model.get("merges")
    entries: Any = root.get("added_tokens", [])
    try:
        pairs = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in merges)
        added = {int(entry["id"]): str(entry["content"]) for entry in entries}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has bad merges or added_tokens", hint=DAMAGED_HINT) from error
    if len(added) != len(entries):
        raise CheckpointError(f"{path}: added_tokens give one id twice", hint=DAMAGED_HINT)
    return _Source(_ids(model.get("vocab"), path), pairs, _joined(extra, added, path), path)


def _check_kind(root: Section, model: Section) -> None:
    """Refuse what llama.cpp's ``qwen2`` pre-tokenizer would split otherwise."""
    model.expect("type", "BPE", absent=None)
    for option, without in {
        "byte_fallback": False,
        "ignore_merges": False,
        "dropout": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
    }.items():
        model.expect(option, without)
    root.section("normalizer").expect("type", "NFC", absent=None)
    sequence = root.section("pre_tokenizer")
    steps = sequence.get("pretokenizers")
    if not isinstance(steps, list) or len(steps) != 2:
        raise UnsupportedCheckpointError(
            f"{sequence.where}pretokenizers is {show(steps)}, must be Qwen2's Split and ByteLevel",
            hint=SCOPE_HINT,
        )
    split, to_bytes = (Section(step, f"{sequence.where}pretokenizers.") for step in steps)
    split.expect("type", "Split", absent=None)
    split.expect("pattern", {"Regex": PRE_TOKENIZER}, absent=None)
    split.expect("behavior", "Isolated", absent=None)
    split.expect("invert", False)
    to_bytes.expect("type", "ByteLevel", absent=None)
    to_bytes.expect("use_regex", False, absent=True)
    to_bytes.expect("add_prefix_space", False, absent=True)


def _added_beside(folder: Path, settings: Section) -> dict[int, str]:
    """Added tokens by id, of ``added_tokens.json`` and of ``tokenizer_config.json``."""
    path = folder / "added_tokens.json"
    plain = _ids(read_json(path), path) if path.is_file() else {}
    added = {index: text for text, index in plain.items()}
    decoder: Any = settings.get("added_tokens_decoder", {})
    try:
        known = {int(index): str(entry["content"]) for index, entry in decoder.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{settings.where}added_tokens_decoder is damaged"
        raise CheckpointError(message, hint=DAMAGED_HINT) from error
    return _joined(added, known, folder / "tokenizer_config.json")


def _joined(first: dict[int, str], second: dict[int, str], path: Path) -> dict[int, str]:
    """Added tokens of two files; ``second`` is read from ``path``."""
    for index in first.keys() & second.keys():
        if first[index] != second[index]:
            raise CheckpointError(
                f"{path} calls token {index} {second[index]!r}, a file beside it {first[index]!r}",
                hint=DAMAGED_HINT,
            )
    return first | second


def _lay_out(
    source: _Source, rows: int, ends: Collection[int]
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Tokens and types by row; rows without a token are marked unused, so that they are never sampled.

    Added tokens may be typed, special ones too (a fine-tune's ``<bbox>``), but for those that are reserved.
    """
    placed: dict[int, tuple[str, TokenType]] = {}
    for index, text in source.added.items():
        is_control = text in RESERVED or index in ends
        placed[index] = (text, TokenType.CONTROL if is_control else TokenType.USER_DEFINED)
    for text, index in source.vocabulary.items():
        if source.added.get(index) == text:
            continue
        if index in placed:
            raise CheckpointError(
                f"{source.file} gives {placed[index][0]!r} and {text!r} the same id {index}"
            )
        placed[index] = (text, TokenType.NORMAL)
    outside = [index for index in placed if not 0 <= index < rows]
    if outside:
        raise CheckpointError(
            f"{source.file} has token id {max(outside, key=abs)}, the embedding has {rows} rows",
            hint="config.json and tokenizer are of different checkpoints",
        )
    everything = [placed.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(rows)]
    seen: dict[str, int] = {}
    for index, (text, _) in enumerate(everything):
        if (first := seen.setdefault(text, index)) != index:
            raise CheckpointError(f"{source.file} gives {text!r} two ids, {first} and {index}")
    return tuple(text for text, _ in everything), tuple(kind for _, kind in everything)


def _check_merges(source: _Source) -> None:
    """All 256 bytes, and both halves and the result of every merge, have to be tokens."""
    if not source.vocabulary.keys() >= set(byte_alphabet()):
        raise UnsupportedCheckpointError(f"{source.file} is not byte-level: not every byte is a token")
    for merge in source.merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= source.vocabulary.keys():
            raise CheckpointError(
                f"{source.file} is damaged: its vocabulary lacks tokens of the merge {merge!r}"
            )


def _ids(data: object, path: Path) -> dict[str, int]:
    """A vocabulary as JSON has it: ids by token."""
    if isinstance(data, dict) and all(type(index) is int for index in data.values()):
        return data
    raise CheckpointError(f"{path}: the vocabulary is not a table of ids", hint=DAMAGED_HINT)


def _read_merges(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", hint=DAMAGED_HINT) from error
    return tuple(line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version"))


def _section(path: Path) -> Section:
    """A settings file; an empty one when it is not there."""
    return Section(read_json(path) if path.is_file() else {}, f"{path.name}: ")
