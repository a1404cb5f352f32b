"""Recipes: what becomes of them, against llama.cpp's own quantiser, gguf's arithmetic and the file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import gguf
import llama_cpp
import numpy as np
import pytest

from onevision.errors import BundleError, ExportError
from onevision.export.backbone import write_gguf
from onevision.export.checkpoint import Checkpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.native.gguf import GgufFile
from onevision.native.llama import silence_llama
from onevision.native.quantize import FILE_TYPES, RECIPES, predicted_bits, quantize_gguf
from onevision.precisions import BackbonePrecision
from tests.export.llama import last_logits

if TYPE_CHECKING:
    from pathlib import Path

# As wide as the shipped tiny model, whose rows divide into the 256 of a k-quant's block, and as the 0.5b.
TINY = SynthSpec(layers=3, hidden=256, heads=4, kv_heads=2, intermediate=768, vocab=700, vision_layers=1)
WIDE = SynthSpec(layers=1, hidden=896, heads=14, kv_heads=2, intermediate=1024, vocab=600, vision_layers=1)
MIXED = [name for name in RECIPES if name not in FILE_TYPES]


def make_source(folder: Path, spec: SynthSpec) -> Path:
    synthesize(folder / "checkpoint", spec)
    with Checkpoint.open(folder / "checkpoint") as checkpoint:
        write_gguf(checkpoint, folder / "f32.gguf", dtype="f32", name="test")
    return folder / "f32.gguf"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("wide"), WIDE)


def types_of(path: Path) -> dict[str, str]:
    """Types of the matrices, those of layer 0 by their short names."""
    return {
        tensor.name.removeprefix("blk.0.").removesuffix(".weight"): tensor.type
        for tensor in GgufFile(path).tensors.values()
        if len(tensor.shape) > 1 and tensor.name.startswith(("blk.0.", "token_embd", "output."))
    }


def test_recipes_are_named_once():
    assert tuple(sorted(RECIPES)) == tuple(sorted(get_args(BackbonePrecision)))
    assert all(recipe.name == name and recipe.mix in FILE_TYPES for name, recipe in RECIPES.items())
    assert {recipe.mix for name, recipe in RECIPES.items() if name in FILE_TYPES} == set(FILE_TYPES)
    contents = [(recipe.mix, *recipe.overrides.items()) for recipe in RECIPES.values()]
    assert len(set(contents)) == len(RECIPES)


@pytest.mark.parametrize("name", FILE_TYPES)
def test_a_plain_recipe_is_llama_cpps_own_quantiser(source: Path, tmp_path: Path, name: BackbonePrecision):
    silence_llama()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = FILE_TYPES[name]
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(tmp_path / "own").encode(), options) == 0
    quantize_gguf(source, tmp_path / "ours", RECIPES[name], threads=2)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "own").read_bytes()


@pytest.mark.parametrize("name", ["q8_0", "q4_0-pure", "q4_0-attn-q8_0"])
def test_values_are_what_gguf_computes(source: Path, tmp_path: Path, name: BackbonePrecision):
    quantize_gguf(source, tmp_path / "q.gguf", RECIPES[name], threads=1)
    floats = {tensor.name: tensor.data for tensor in gguf.GGUFReader(source).tensors}
    compared = set()
    for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors:
        if tensor.tensor_type.name in ("Q8_0", "Q4_0"):
            wanted = gguf.quants.quantize(floats[tensor.name], tensor.tensor_type)
            assert np.array_equal(tensor.data, wanted), tensor.name
            compared.add(tensor.name.split(".")[-2])
    assert compared >= {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}


ATTENTION, FFN = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")


@pytest.mark.parametrize(
    ("name", "attention", "ffn", "embedding", "embedding_of_896"),
    [
        ("q4_0-attn-q8_0", "q8_0", "q4_0", "q6_k", "q8_0"),
        ("iq4_nl-attn-q8_0", "q8_0", "iq4_nl", "q6_k", "q8_0"),
        ("q4_0-pure", "q4_0", "q4_0", "q4_0", "q4_0"),
        ("iq4_nl-pure", "iq4_nl", "iq4_nl", "iq4_nl", "iq4_nl"),
    ],
)
def test_types_of_mixed_recipes(
    source: Path, wide: Path, tmp_path: Path, name, attention, ffn, embedding, embedding_of_896
):
    for file, table in ((source, embedding), (wide, embedding_of_896)):
        made = quantize_gguf(file, tmp_path / "q.gguf", RECIPES[name], threads=1)
        wanted = dict.fromkeys(ATTENTION, attention) | dict.fromkeys(FFN, ffn) | {"token_embd": table}
        assert types_of(tmp_path / "q.gguf") == wanted
        assert made.precision == name
        assert made.fallbacks == ({} if table == embedding else {"token_embd.weight": ("q8_0",)})


def test_a_head_of_its_own_goes_with_the_embedding(tmp_path: Path):
    file = make_source(tmp_path, replace(TINY, layers=1, tied=False))
    quantize_gguf(file, tmp_path / "q.gguf", RECIPES["iq4_nl-pure"], threads=1)
    assert set(types_of(tmp_path / "q.gguf").values()) == {"iq4_nl"}
    quantize_gguf(file, tmp_path / "q.gguf", RECIPES["q4_0"], threads=1)
    assert types_of(tmp_path / "q.gguf")["output"] == "q6_k"
    assert types_of(tmp_path / "q.gguf")["token_embd"] == "q4_0"


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_fit_no_block_stay_f16(tmp_path: Path, name: BackbonePrecision):
    """llama.cpp would end the process if it were told these types in another way."""
    file = make_source(tmp_path, replace(TINY, layers=1, hidden=80, heads=4, intermediate=96))
    made = quantize_gguf(file, tmp_path / "q.gguf", RECIPES[name], threads=1)
    assert made.fallbacks["blk.*.attn_q.weight"] == made.fallbacks["token_embd.weight"] == ("f16",)
    assert "blk.*.ffn_down.weight" not in made.fallbacks  # rows of 96


@pytest.mark.parametrize("name", RECIPES)
def test_bits_are_known_before_and_true_after(wide: Path, tmp_path: Path, name: BackbonePrecision):
    before = sorted(wide.parent.iterdir())
    predicted = predicted_bits(wide, RECIPES[name])
    assert sorted(wide.parent.iterdir()) == before
    made = quantize_gguf(wide, tmp_path / "q.gguf", RECIPES[name], threads=1)
    tensors = gguf.GGUFReader(tmp_path / "q.gguf").tensors
    true = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    assert made.bits_per_weight == pytest.approx(true)
    assert predicted == pytest.approx(true, abs=0.005)


def test_recipes_go_from_large_to_small(source: Path):
    bits = [predicted_bits(source, recipe) for recipe in RECIPES.values()]
    assert bits == sorted(bits, reverse=True)


def test_what_the_types_cost(source: Path, tmp_path: Path):
    """Logits after some tokens: attention in q8_0 is nearer, a table in 4 bits farther than the plain mix."""
    ids = np.random.default_rng(0).integers(0, 650, 48).tolist()
    exact = last_logits(source, ids)

    def error(name: BackbonePrecision) -> float:
        quantize_gguf(source, tmp_path / "q.gguf", RECIPES[name], threads=1)
        return float(np.linalg.norm(last_logits(tmp_path / "q.gguf", ids) - exact) / np.linalg.norm(exact))

    errors = {name: error(name) for name in ("q8_0", "q4_0-attn-q8_0", "q4_0", "q4_0-pure")}
    assert list(errors.values()) == sorted(errors.values())
    assert errors["q8_0"] < 0.05
    assert errors["q4_0-pure"] < 0.75


def test_what_is_quantised_already_is_refused(source: Path, tmp_path: Path):
    quantize_gguf(source, tmp_path / "q.gguf", RECIPES["q4_0"], threads=1)
    for call in (
        lambda: quantize_gguf(tmp_path / "q.gguf", tmp_path / "again.gguf", RECIPES["q8_0"]),
        lambda: predicted_bits(tmp_path / "q.gguf", RECIPES["q8_0"]),
    ):
        with pytest.raises(ExportError, match=r"q\.gguf is already quantized \(q4_0, q6_k\)"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 40, b"no model at all" * 9])
def test_no_gguf_file(tmp_path: Path, content: bytes):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(BundleError, match=r"bad\.gguf is damaged, or not a GGUF file"):
        quantize_gguf(tmp_path / "bad.gguf", tmp_path / "q.gguf", RECIPES["q8_0"])
    with pytest.raises(BundleError, match=r"cannot read .*absent"):
        quantize_gguf(tmp_path / "absent.gguf", tmp_path / "q.gguf", RECIPES["q8_0"])
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]
