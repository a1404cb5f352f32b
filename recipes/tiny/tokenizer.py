"""The tiny model's tokenizer: byte-level BPE as Qwen2's, learned from the suite's questions and answers.

Words in capitals, which stand in pictures, are left out of what it learns from: they stay single letters, so
that a word that was never seen can be read letter by letter.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from onevision.eval.suite import FAMILIES, build_scene
from onevision.eval.suite.sample import FORMS, INSTRUCTIONS, LETTERS
from onevision.export.config import IMAGE_TOKEN, VIDEO_TOKEN
from onevision.export.synth.vocabulary import SynthVocabulary
from onevision.export.tokenizer import END_OF_TEXT, IM_END, IM_START, PRE_TOKENIZER
from onevision.runtime.prompt import DEFAULT_SYSTEM
from recipes.tiny.data import CAPTION_PROMPT
from recipes.tiny.tiles import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPECIALS = (END_OF_TEXT, IM_START, IM_END, IMAGE_TOKEN, VIDEO_TOKEN)
MOST_TOKENS = 1024
SCENES_EACH = 200


def train_tokenizer() -> SynthVocabulary:
    """Learn the vocabulary."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    any_tokenizer: Any = Tokenizer(models.BPE())
    any_tokenizer.normalizer = normalizers.NFC()
    any_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS - len(SPECIALS),
        min_frequency=4,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    any_tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(any_tokenizer.to_str())["model"]
    return _vocabulary(model)


def read_vocabulary(checkpoint: Path) -> SynthVocabulary:
    """The vocabulary of an exported checkpoint: trained elsewhere, ties may have fallen in another order."""
    model = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return _vocabulary(model)


def _vocabulary(model: dict[str, Any]) -> SynthVocabulary:
    """Of the ``model`` in a ``tokenizer.json``, whose merges are pairs, or texts in older files."""
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    tokens = tuple(sorted(model["vocab"], key=model["vocab"].__getitem__))
    return SynthVocabulary(tokens, tuple((left, right) for left, right in merges), SPECIALS)


def load_tokenizer(vocabulary: SynthVocabulary) -> Any:  # noqa: ANN401
    """The vocabulary as a ``tokenizers.Tokenizer``."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from tokenizers import Tokenizer

    with TemporaryDirectory() as folder:
        vocabulary.write(Path(folder))
        return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def label_tokens(vocabulary: SynthVocabulary) -> list[tuple[int, int]]:
    """The tokens of each of stage 0's labels: with a space before it, if that is one token, and without."""
    tokenizer = load_tokenizer(vocabulary)
    pairs = []
    for label in LABELS:
        (bare,) = tokenizer.encode(label, add_special_tokens=False).ids
        spaced = tokenizer.encode(f" {label}", add_special_tokens=False).ids
        pairs.append((bare, spaced[0] if len(spaced) == 1 else bare))
    return pairs


def corpus() -> Iterator[str]:
    """All that is said about some scenes of each kind, without the words in capitals."""
    yield from (DEFAULT_SYSTEM, "system\n", "user\n", "assistant\n", CAPTION_PROMPT)
    for name in dict.fromkeys(FAMILIES.values()):
        for number in range(SCENES_EACH):
            scene = build_scene(name, "train", 0, number)
            lines = [scene.caption]
            for question in scene.questions:
                options = [
                    f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)
                ]
                lines += [question.text, *options, question.answer, question.sentence]
                lines += [INSTRUCTIONS[form] for form in FORMS]
            yield re.sub(r"[A-Z]{2,}", "", "\n".join(lines))
