"""Checkpoints of the right shape with random weights: tests and benchmarks without a download.

In: a :class:`SynthSpec`. Out: a folder that looks like a published checkpoint (config, tokenizer,
safetensors), in any of the naming schemes in which they exist. Weights, biases, norms and newline are all
random and distinct, so that none can be dropped or mixed up unnoticed, and of a size at which activations
stay as in a trained model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import TYPE_CHECKING, Literal

from onevision.errors import UsageError
from onevision.export.config import ASPECT_RATIO
from onevision.export.synth_config import CONTEXT_LENGTH, TORCH_DTYPES, config_files
from onevision.export.synth_vocab import QWEN2_TOKENS, Vocabulary, write_json
from onevision.files import disk_space, is_vacant, whole_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from onevision.progress import Advance

SynthSize = Literal["0.5b", "7b"]
Naming = Literal["hf", "hf-4.52", "hf-5", "lmms-lab"]
SynthDtype = Literal["bf16", "f16", "f32"]

_BACKBONE = ("model.language_model.", "lm_head.")  # prefixes in memory
_SPARE_ROWS = 8  # of a small vocabulary's embedding, beyond its tokenizer

#: Prefixes of tensor names: in memory since transformers 4.52, and in the files of each scheme.
_PREFIXES: dict[str, dict[Naming, str]] = {
    "model.language_model.": {"hf": "language_model.model.", "lmms-lab": "model."},
    "lm_head.": {"hf": "language_model.lm_head."},
    "model.vision_tower.vision_model.": {
        "hf": "vision_tower.vision_model.",
        "hf-5": "model.vision_tower.",
        "lmms-lab": "model.vision_tower.vision_tower.vision_model.",
    },
    "model.multi_modal_projector.linear_1.": {
        "hf": "multi_modal_projector.linear_1.",
        "lmms-lab": "model.mm_projector.0.",
    },
    "model.multi_modal_projector.linear_2.": {
        "hf": "multi_modal_projector.linear_2.",
        "lmms-lab": "model.mm_projector.2.",
    },
    "model.image_newline": {"hf": "image_newline"},
}


@dataclass(frozen=True)
class SynthSpec:
    """What to synthesise. The defaults are a toy of 0.5 M parameters.

    Raises:
        UsageError: Numbers that no model can have.
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
        counts = [value for value in vars(self).values() if type(value) is int]
        fits = {
            "sizes must be positive": min(counts[:-1]) > 0,
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
        if wrong := [rule for rule, fit in fits.items() if not fit]:
            raise UsageError(f"no model has this shape: {wrong[0]}")

    @classmethod
    def preset(cls, size: SynthSize, naming: Naming = "hf") -> SynthSpec:
        """The shape of a published checkpoint; take :func:`dataclasses.replace` to change some of it."""
        spec = _PRESETS[size]
        # HF pads the embedding, after two more tokens, to a multiple of 64.
        return replace(spec, naming=naming, vocab=spec.vocab + (0 if naming == "lmms-lab" else 64))

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer that goes with it."""
        with_media = self.naming != "lmms-lab"
        most = self.vocab - (5 if with_media else 3)
        return Vocabulary.of_size(
            QWEN2_TOKENS if most >= QWEN2_TOKENS else most - _SPARE_ROWS, with_media=with_media
        )


_PRESETS: dict[SynthSize, SynthSpec] = {
    "0.5b": SynthSpec(
        layers=24,
        hidden=896,
        heads=14,
        kv_heads=2,
        intermediate=4864,
        vocab=151936,
        vision_layers=26,
        vision_hidden=1152,
        vision_heads=16,
        vision_intermediate=4304,
        image_size=384,
    )
}
_PRESETS["7b"] = replace(
    _PRESETS["0.5b"],
    layers=28,
    hidden=3584,
    heads=28,
    kv_heads=4,
    intermediate=18944,
    vocab=152064,
    tied=False,
    shards=16,
)


def synthesise(out: Path, spec: SynthSpec, *, advance: Advance | None = None) -> Path:
    """Write a checkpoint of random weights. Same spec, same bytes, on the same kind of machine.

    Memory: one shard, and once more its largest tensor in float32.

    Args:
        out: Folder to make; it may exist if it is empty.
        spec: What to write.
        advance: Told the fraction that is done.

    Returns:
        ``out``.

    Raises:
        UsageError: There is something at ``out``.
        ExportError: No disk space.
    """
    if not is_vacant(out):
        raise UsageError(f"{out} exists and is not an empty folder", hint="choose another")
    tensors = list(_tensors(spec))
    size = sum(prod(shape) for _, shape in tensors) * (4 if spec.dtype == "f32" else 2)
    with whole_folder(out) as work, disk_space(work, size):
        vocabulary = spec.vocabulary
        vocabulary.write(work, context_length=CONTEXT_LENGTH)
        for name, values in config_files(spec, vocabulary.ids).items():
            (work / name).parent.mkdir(exist_ok=True)
            write_json(work / name, values)
        _write_weights(work, spec, tensors, advance)
    return out


def weights_of(spec: SynthSpec) -> tuple[int, int]:
    """How many weights the vision encoder with its projector has, and the backbone with its head."""
    counts = [(name.startswith(_BACKBONE), prod(shape)) for name, shape in _tensors(spec)]
    spoken = sum(count for is_backbone, count in counts if is_backbone)
    return sum(count for _, count in counts) - spoken, spoken


def _tensors(spec: SynthSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names, as transformers 4.52 and later have them in memory, and shapes of all tensors."""
    hidden, width = spec.hidden, spec.vision_hidden
    yield "model.image_newline", (hidden,)
    yield from _linear("model.multi_modal_projector.linear_1", hidden, width)
    yield from _linear("model.multi_modal_projector.linear_2", hidden, hidden)
    tower = "model.vision_tower.vision_model"
    yield from _affine(f"{tower}.embeddings.patch_embedding", (width, 3, spec.patch_size, spec.patch_size))
    yield f"{tower}.embeddings.position_embedding.weight", ((spec.image_size // spec.patch_size) ** 2, width)
    for index in range(spec.vision_layers):
        layer = f"{tower}.encoder.layers.{index}"
        yield from _affine(f"{layer}.layer_norm1", (width,))
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        yield from _affine(f"{layer}.layer_norm2", (width,))
        yield from _linear(f"{layer}.mlp.fc1", spec.vision_intermediate, width)
        yield from _linear(f"{layer}.mlp.fc2", width, spec.vision_intermediate)
    yield from _affine(f"{tower}.post_layernorm", (width,))
    yield "model.language_model.embed_tokens.weight", (spec.vocab, hidden)
    keys = hidden // spec.heads * spec.kv_heads
    for index in range(spec.layers):
        layer = f"model.language_model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        for part, rows in (("q_proj", hidden), ("k_proj", keys), ("v_proj", keys)):
            yield from _linear(f"{layer}.self_attn.{part}", rows, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (spec.intermediate, hidden)
        yield f"{layer}.mlp.up_proj.weight", (spec.intermediate, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, spec.intermediate)
    yield "model.language_model.norm.weight", (hidden,)
    if not spec.tied:
        yield "lm_head.weight", (spec.vocab, hidden)


def _linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    return _affine(name, (rows, columns))


def _affine(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _random(name: str, shape: tuple[int, ...], spec: SynthSpec) -> torch.Tensor:
    """One tensor, drawn from a generator of its own: the same under all naming schemes and shardings."""
    import torch

    seed = int.from_bytes(hashlib.sha256(f"{spec.seed} {name}".encode()).digest()[:7], "little")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if name.endswith(".bias"):
        values.mul_(0.05)
    elif "norm" in name:
        values.mul_(0.1).add_(1)
    elif len(shape) == 1 or "position" in name:
        values.mul_(0.3)
    else:
        # Keeps the variance of what passes through; what a layer of the backbone adds outweighs the
        # embedding, else a tied head would say the last token again and again.
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        values.mul_((3 if adds else 1) / sqrt(prod(shape[1:])))
    return values.to(getattr(torch, TORCH_DTYPES[spec.dtype]))


def _file_name(name: str, naming: Naming) -> str:
    """A tensor's name in the files of a scheme."""
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[prefix].get(naming, prefix) + name.removeprefix(prefix)


def _write_weights(
    folder: Path,
    spec: SynthSpec,
    tensors: list[tuple[str, tuple[int, ...]]],
    advance: Advance | None,
) -> None:
    """Draw and write shard by shard: tensors in their order, cut where each shard has had its part."""
    from safetensors.torch import save_file

    total = sum(prod(shape) for _, shape in tensors)
    parts: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(spec.shards)]
    before = 0
    for name, shape in tensors:
        parts[before * spec.shards // total].append((name, shape))
        before += prod(shape)
    parts = [part for part in parts if part]
    weight_map = {}
    done = 0
    for number, part in enumerate(parts, start=1):
        one = len(parts) == 1
        file = "model.safetensors" if one else f"model-{number:05}-of-{len(parts):05}.safetensors"
        shard = {}
        for name, shape in part:
            shard[_file_name(name, spec.naming)] = _random(name, shape, spec)
            done += prod(shape)
            if advance is not None:
                advance(done / total)
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    if len(parts) > 1:
        size = total * (4 if spec.dtype == "f32" else 2)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
