"""Checkpoints whose config, tokenizer, weights or adapter cannot be right."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from typing import Any

from tests.bad.made import Bad, Make, Place, as_is, checkpoint, config

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EXPORT = "export --source ck -o out"
Header = dict[str, Any]


def header(change: Callable[[Header, str], object]) -> Make:
    """Weights whose header is changed; it gets the header, and the name of a tensor in it."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.checkpoint, place.cwd / "ck") / WEIGHTS
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + size])
        change(entries, next(name for name in entries if "q_proj.weight" in name))
        new = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])

    return make


def entry(**values: object) -> Make:
    """Weights one of whose tensors has other values in the header."""
    return header(lambda entries, name: entries[name].update(values))


def index(data: object) -> Make:
    """A shard and an index."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.checkpoint, place.cwd / "ck") / WEIGHTS
        path.rename(path.with_name("model-00001-of-00001.safetensors"))
        (path.parent / INDEX).write_text(
            data if isinstance(data, str) else json.dumps(data), encoding="utf-8"
        )

    return make


def tokenizer(key: str, value: object) -> Make:
    """A checkpoint with another ``tokenizer.json``."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.checkpoint, place.cwd / "ck") / "tokenizer.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        *sections, last = key.split(".")
        target = data
        for section in sections:
            target = target[section]
        target[last] = value
        path.write_text(json.dumps(data), encoding="utf-8")

    return make


def linked(name: str, target: str) -> Make:
    """A file of the checkpoint in whose place is a symbolic link."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.checkpoint, place.cwd / "ck") / name
        path.unlink()
        path.symlink_to(target)

    return make


def adapter(settings: object, weights: bytes | None = struct.pack("<Q", 2) + b"{}") -> Make:
    """The folder of an adapter, ``a``."""

    def make(place: Place) -> None:
        folder = place.cwd / "a"
        folder.mkdir()
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        if weights is not None:
            (folder / "adapter_model.safetensors").write_bytes(weights)

    return make


LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
CONFIGS = tuple(
    Bad(f"config with {key.replace('__', '.')} {value!r}"[:60], EXPORT, says, make=config(**{key: value}))
    for key, value, says in (
        ("text_config__hidden_size", 0, "text_config.hidden_size is 0"),
        ("text_config__hidden_size", -128, "text_config.hidden_size is -128"),
        ("text_config__hidden_size", True, "text_config.hidden_size is true"),
        ("text_config__hidden_size", 128.5, "text_config.hidden_size is 128.5"),
        ("text_config__hidden_size", 10**30, "text_config.hidden_size is 1000"),
        ("text_config__num_attention_heads", 0, "num_attention_heads is 0"),
        ("text_config__num_attention_heads", 3, "not divisible by num_attention_heads 3"),
        ("text_config__num_key_value_heads", 3, "not divisible by num_key_value_heads 3"),
        ("text_config__num_hidden_layers", 10**9, "from 1 to 1000"),
        ("text_config__intermediate_size", 1, "of the wrong shape"),
        ("text_config__rms_norm_eps", 0, "must be a number above zero"),
        ("text_config__rms_norm_eps", float("nan"), "rms_norm_eps is NaN"),
        ("text_config__rope_theta", -1, "rope_theta is -1"),
        ("text_config__max_position_embeddings", 0, "max_position_embeddings is 0"),
        ("text_config__tie_word_embeddings", "yes", "must be true or false"),
        ("text_config__eos_token_id", 10**9, "eos_token_id is 1000000000"),
        ("text_config__layer_types", ["sliding_attention"] * 2, "text_config.layer_types"),
        ("text_config", [], "text_config is not a JSON object"),
        ("text_config", ..., "does not have the tensors"),
        ("vision_config", None, "must be multiples of 384"),
        ("vision_config__image_size", 57, "must be multiples of 57"),
        ("vision_config__patch_size", 100, "patch_size is 100"),
        ("vision_config__hidden_size", 65, "not divisible"),
        ("vision_config__num_channels", 1, "num_channels is 1, must be 3"),
        ("image_grid_pinpoints", [], "must be a list of pairs"),
        ("image_grid_pinpoints", [["a", "b"]], "must be multiples of 56"),
        ("image_grid_pinpoints", "(1x1),...,(999x999)", "must be a list of pairs"),
        ("image_token_index", -1, "image_token_index is -1"),
        ("vision_feature_layer", -2, "vision_feature_layer is -2"),
        ("vision_feature_select_strategy", "default", 'must be "full"'),
        ("vision_aspect_ratio", "pad", "must be anyres"),
        ("model_type", ..., "model_type is null"),
        ("architectures", ["X"], "architectures is"),
        ("multimodal_projector_bias", False, "multimodal_projector_bias is false"),
    )
)
FILES = tuple(
    Bad(f"{name} that is {what}", EXPORT, f"{name} is not {says}", make=checkpoint(name, as_is(data)))
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json")
    for what, data, says in (
        ("empty", b"", "valid JSON: it is empty"),
        ("binary", b"\xff\xfe", "valid JSON: it is not UTF-8 text"),
        ("nested without end", b"[" * 100_000, "valid JSON: it is nested too deeply"),
        ("of a key twice", b'{"a": 1, "a": 2}', "valid JSON: the key 'a' stands twice"),
        ("a number", b"5", "a JSON object"),
    )
)
TOKENIZERS = tuple(
    Bad(f"tokenizer with {key} {value!r}"[:60], EXPORT, f"tokenizer.json.*{says}", make=tokenizer(key, value))
    for key, value, says in (
        ("model", None, 'must be "BPE"'),
        ("model.type", "Unigram", 'must be "BPE"'),
        ("model.vocab", [], "is not a table of ids"),
        ("model.vocab", {}, "is not byte-level"),
        ("model.vocab", {"a": "x"}, "is not a table of ids"),
        ("model.vocab", {"a": 1, "b": 1}, "the same id 1"),
        ("model.vocab", {"a": -1}, "token id -1"),
        ("model.merges", ["a"], "lacks tokens of the merge"),
        ("model.merges", [5], "bad merges"),
        ("added_tokens", "x", "bad merges or added_tokens"),
        ("added_tokens", [{"id": 0}], "bad merges or added_tokens"),
        ("added_tokens", [{"id": 10**9, "content": "a"}], "token id 1000000000"),
        ("pre_tokenizer", None, "pre_tokenizer"),
        ("normalizer", {"type": "Lowercase"}, 'normalizer.type is "Lowercase"'),
    )
)
STORED = tuple(
    Bad(f"weights {name}", EXPORT, f"{WEIGHTS} is truncated or corrupt.*{says}", make=make)
    for name, make, says in (
        ("of another type", entry(dtype="I64"), "invalid shape, data type, or offset"),
        ("of an unknown type", entry(dtype="X9"), "X9"),
        ("of another shape", entry(shape=[1]), "invalid shape"),
        ("outside of the file", entry(data_offsets=[0, 10**12]), "invalid offset"),
        ("that overlap", entry(data_offsets=[0, 32768]), "invalid offset"),
        ("before the file", entry(data_offsets=[-5, 5]), "-5"),
        ("that nobody names", header(lambda entries, name: entries.pop(name)), "invalid offset"),
        ("with more behind", checkpoint(WEIGHTS, lambda data: data + b"xx"), "not fully covered"),
        (
            "with a header of an exabyte",
            checkpoint(WEIGHTS, lambda data: struct.pack("<Q", 1 << 60)),
            "header",
        ),
        ("of three bytes", checkpoint(WEIGHTS, lambda data: data[:3]), "header too small"),
        ("that are a pickle", checkpoint(WEIGHTS, as_is(b"\x80\x02}q\x00.")), "header too small"),
        ("that are a web page", checkpoint(WEIGHTS, as_is(b"<!DOCTYPE html>" + b" " * 99)), "header"),
    )
)
INDEXES = tuple(
    Bad(f"index {name}", EXPORT, f"{INDEX} {says}", make=index(data))
    for name, data, says in (
        ("that is empty", "", "is not valid JSON: it is empty"),
        ("that is a list", [], "is not a JSON object"),
        ("of nothing", {}, "has no weight_map"),
        ("of a list", {"weight_map": []}, "has no weight_map"),
        ("of a number", {"weight_map": {"a": 5}}, "names 5"),
        (
            "that leaves the folder",
            {"weight_map": {"a": "../../etc/passwd"}},
            "names .*, which is no safetensors file",
        ),
        (
            "of an absolute path",
            {"weight_map": {"a": "/etc/passwd"}},
            "names .*, which is no safetensors file",
        ),
        ("of a null byte", {"weight_map": {"a": "a\0b"}}, "names .*, which is no safetensors file"),
        ("of pickles", {"weight_map": {"a": "x.bin"}}, "names .*, which is no safetensors file"),
        (
            "of an absent tensor",
            {"weight_map": {"a": "model-00001-of-00001.safetensors"}},
            "names tensors that",
        ),
    )
)
LINKS = tuple(
    Bad(f"{name} that links to {target}", EXPORT, says, make=linked(name, target))
    for name, target, says in (
        ("config.json", "config.json", "cannot read ck/config.json: .*links"),
        ("config.json", "no", "ck has no config.json"),
        ("config.json", "/dev/null", "it is empty"),
        (WEIGHTS, WEIGHTS, "neither model.safetensors nor an index"),
        (WEIGHTS, "/dev/null", "cannot read ck/model.safetensors"),
    )
)
ADAPTERS = tuple(
    Bad(f"adapter {name}", "export --source {checkpoint} --adapter a -o out", says, make=make)
    for name, make, says in (
        ("whose config is empty", adapter(""), "it is empty"),
        ("whose config is a list", adapter("[]"), "is not a JSON object"),
        ("nested without end", adapter("[" * 100_000), "it is nested too deeply"),
        ("of no type", adapter({"r": 4}), "of type None"),
        ("of another type", adapter({"peft_type": "IA3"}), "of type IA3"),
        ("with DoRA", adapter(LORA | {"use_dora": True}), "use_dora"),
        ("without weights", adapter(LORA, None), "lacks adapter_model.safetensors"),
        ("of no bytes", adapter(LORA, b""), "truncated or corrupt"),
        ("of garbage", adapter(LORA, b"x" * 99), "truncated or corrupt"),
        ("of no tensors", adapter(LORA), "has no tensors"),
    )
)

ROWS = (*CONFIGS, *FILES, *TOKENIZERS, *STORED, *INDEXES, *LINKS, *ADAPTERS)
