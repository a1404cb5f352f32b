"""Shape of a synthetic checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onevision.errors import UsageError
from onevision.export.config import ASPECT_RATIO
from onevision.export.synth.vocabulary import QWEN2_TOKENS, SynthVocabulary
from onevision.models.shapes import ModelConfig, Naming, SynthDtype, SynthSize, published_config

_SPARE_ROWS = 8  # rows of a small embedding beyond its tokenizer


@dataclass(frozen=True)
class SynthSpec:
    """What to synthesize. The defaults are a toy with 0.5 M parameters.

    Raises:
        UsageError: Sizes that contradict each other.
    """

    layers: int = 2
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    vocab: int = 768  # rows of the embedding; from 151,648 on the vocabulary is Qwen2's
    tied: bool = True
    vision_layers: int = 2  # that run; lmms-lab's config counts one more
    vision_hidden: int = 64
    vision_heads: int = 4
    vision_intermediate: int = 128
    image_size: int = 56
    patch_size: int = 14
    aspect_ratio: str = "anyres_max_9"
    grid: int = 6  # most tiles per side
    naming: Naming = "hf"
    dtype: SynthDtype = "bf16"
    shards: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: value for name, value in vars(self).items() if type(value) is int and name != "seed"}
        rules = {
            "sizes must be positive": min(counts.values()) > 0,
            "hidden must divide by heads": self.heads > 0 and self.hidden % self.heads == 0,
            "hidden / heads must be even": self.heads > 0 and self.hidden // self.heads % 2 == 0,
            "heads must divide by kv-heads": self.kv_heads > 0 and self.heads % self.kv_heads == 0,
            "vision-hidden must divide by vision-heads": (
                self.vision_heads > 0 and self.vision_hidden % self.vision_heads == 0
            ),
            "patch-size must not exceed image-size": self.patch_size <= self.image_size,
            "aspect-ratio must be anyres or anyres_max_N": bool(ASPECT_RATIO.fullmatch(self.aspect_ratio)),
            f"vocab must be at least {256 + 5 + _SPARE_ROWS}": self.vocab >= 256 + 5 + _SPARE_ROWS,
        }
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise UsageError(f"no model has this shape: {broken[0]}")

    @classmethod
    def preset(cls, size: SynthSize, naming: Naming = "hf") -> SynthSpec:
        """The shape of a published checkpoint; use :func:`dataclasses.replace` to change parts of it."""
        config = published_config(size, "lmms-lab" if naming == "lmms-lab" else "hf")
        text, vision = config.text, config.vision
        return cls(
            layers=text.layers,
            hidden=text.hidden_size,
            heads=text.heads,
            kv_heads=text.kv_heads,
            intermediate=text.intermediate_size,
            vocab=text.vocab_size,
            tied=text.tied,
            vision_layers=vision.layers,
            vision_hidden=vision.hidden_size,
            vision_heads=vision.heads,
            vision_intermediate=vision.intermediate_size,
            image_size=vision.image_size,
            naming=naming,
            shards=16 if size == "7b" else 1,
        )

    @property
    def vocabulary(self) -> SynthVocabulary:
        """Its tokenizer."""
        with_media = self.naming != "lmms-lab"
        most = self.vocab - (5 if with_media else 3)
        tokens = QWEN2_TOKENS if most >= QWEN2_TOKENS else most - _SPARE_ROWS
        return SynthVocabulary.of_size(tokens, with_media=with_media)

    @property
    def config(self) -> ModelConfig:
        """The shape as the export reads it; ids of special tokens are left at the published ones."""
        base = published_config("7b", "lmms-lab" if self.naming == "lmms-lab" else "hf")
        vision = replace(
            base.vision,
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.vision_hidden,
            intermediate_size=self.vision_intermediate,
            layers=self.vision_layers,
            heads=self.vision_heads,
        )
        text = replace(
            base.text,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            vocab_size=self.vocab,
            tied=self.tied,
        )
        sides = [self.image_size * count for count in range(1, self.grid + 1)]
        pairs = tuple((first, second) for first in sides for second in sides)
        return replace(base, vision=vision, text=text, aspect_ratio=self.aspect_ratio, grid_pinpoints=pairs)
