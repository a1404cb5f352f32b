"""The importance matrix: its values against transformers', its file, and what the quantizer makes of it."""

from __future__ import annotations

import ctypes
import shutil
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from onevision import OneVision
from onevision.bundle import BACKBONE
from onevision.errors import ExportError, GenerationError, ImageError, InputError, UsageError
from onevision.eval.suite import FAMILIES, iter_samples
from onevision.native import ggml
from onevision.native.gguf import GgufFile
from onevision.native.quantize import RECIPES, predicted_bits, quantize_gguf
from onevision.quant import imatrix as imatrix_module
from onevision.quant.imatrix import Imatrix, InputSquares, collect_imatrix, read_imatrix, write_imatrix
from onevision.quant.measure import prepare
from tests.conftest import make_bundle, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from onevision.eval.suite import Sample

ASKED = ("colour", "which_has", "change", "text_sum")  # an image, several, a video, none


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(islice(iter_samples("train", 0, ASKED), len(ASKED)))


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(toy_bundle, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def collected(model: OneVision, samples: list[Sample]) -> Imatrix:
    return collect_imatrix(model, samples, dataset="a test")


@pytest.fixture
def damaged_bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_bundle, tmp_path / "damaged")


def put(bundle: Path, tensor: str, value: float) -> None:
    """Change the first value of one of the backbone's tensors."""
    reader = gguf.GGUFReader(bundle / BACKBONE, "r+")
    next(each for each in reader.tensors if each.name == tensor).data.flat[0] = value
    reader.data.flush()
    del reader  # it maps the file
    replace_file(bundle, BACKBONE, (bundle / BACKBONE).read_bytes())


# Values.


def test_values_are_transformers_activations(
    model: OneVision, samples: list[Sample], collected: Imatrix, toy_checkpoint: Path
):
    """Every matrix: the last layer's FFN and the head see only positions that predict an answer's token."""
    reference = LlavaOnevisionForConditionalGeneration.from_pretrained(toy_checkpoint, dtype=torch.float32)
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}
    first = 0  # position from which on answers are predicted

    def watch(name: str, module: torch.nn.Module, *, answers_only: bool) -> None:
        def add(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            seen = inputs[0][0, first if answers_only else 0 :].double().numpy()
            sums[name] = sums.get(name, 0) + (seen**2).sum(0)
            rows[name] = rows.get(name, 0) + len(seen)

        module.register_forward_pre_hook(add)

    layers = reference.language_model.layers
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        for theirs, ours in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"),
                             ("o_proj", "attn_output")):  # fmt: skip
            watch(f"blk.{number}.{ours}.weight", getattr(layer.self_attn, theirs), answers_only=False)
        for ours in ("gate", "up", "down"):
            watch(f"blk.{number}.ffn_{ours}.weight", getattr(layer.mlp, f"{ours}_proj"), answers_only=last)
    watch("token_embd.weight", reference.lm_head, answers_only=True)

    table = reference.get_input_embeddings().weight.detach()
    for sample in samples:
        prepared = prepare(model, sample)
        visual = iter(model.pipeline.encode(prepared))
        parts = [table[list(part)] if isinstance(part, tuple) else torch.from_numpy(next(visual))
                 for part in prepared.parts]  # fmt: skip
        answer = model.pipeline.backbone.tokenizer.encode(sample.answers[0])
        first = sum(map(len, parts)) - 1
        with torch.no_grad():
            reference(inputs_embeds=torch.cat([*parts, table[answer]])[None])

    assert collected.inputs.keys() == sums.keys()
    for name, seen in collected.inputs.items():
        assert seen.rows == rows[name], name
        assert np.allclose(seen.sums, sums[name], rtol=2e-4, atol=1e-5 * sums[name].max()), name
        assert np.allclose(collected.means()[name], sums[name] / rows[name], rtol=2e-4, atol=1e-3), name


def test_the_first_layer_sees_normalized_embeddings(model: OneVision, samples: list[Sample], collected):
    """The same by hand, from the file's own numbers."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in
               gguf.GGUFReader(model.bundle.path(BACKBONE)).tensors}  # fmt: skip
    table, norm = tensors["token_embd.weight"], tensors["blk.0.attn_norm.weight"]
    expected, rows = np.zeros(len(norm)), 0
    for sample in samples:
        prepared = prepare(model, sample)
        visual = iter(model.pipeline.encode(prepared))
        answer = model.pipeline.backbone.tokenizer.encode(sample.answers[0])
        for part in (*prepared.parts, tuple(answer)):
            x = (table[list(part)] if isinstance(part, tuple) else next(visual)).astype(np.float64)
            x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * norm
            expected += (x**2).sum(axis=0)
            rows += len(x)
    for name in ("attn_q", "attn_k", "attn_v"):
        seen = collected.inputs[f"blk.0.{name}.weight"]
        assert seen.rows == rows
        assert np.allclose(seen.sums, expected, rtol=1e-5)


def test_the_model_answers_as_before(model: OneVision, samples: list[Sample]):
    sample = samples[0]
    before = model.generate(sample.prompt, images=sample.images, max_tokens=8)
    collect_imatrix(model, samples[:1])
    assert model.generate(sample.prompt, images=sample.images, max_tokens=8).token_ids == before.token_ids


def test_built_in_prompts_give_every_family_a_turn(model: OneVision, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    real = imatrix_module.prepare
    monkeypatch.setattr(
        imatrix_module, "prepare", lambda model, sample: asked.append(sample.family) or real(model, sample)
    )
    positions = len(FAMILIES) * 200  # more than one round, fewer than two
    monkeypatch.setattr(imatrix_module, "POSITIONS", positions)
    seen: list[float] = []
    made = collect_imatrix(model, advance=seen.append)
    assert asked == list(FAMILIES) * 2
    assert made.inputs["blk.0.attn_q.weight"].rows >= positions
    assert seen == sorted(seen)
    assert seen[-1] == 1
    seen.clear()
    monkeypatch.setattr(imatrix_module, "POSITIONS", 1)
    collect_imatrix(model, advance=seen.append)
    assert asked == list(FAMILIES) * 3
    assert seen[-2] < seen[-1] == 1


# What cannot be.


def test_a_quantized_bundle_is_refused(toy_checkpoint: Path, tmp_path: Path, samples: list[Sample]):
    make_bundle(toy_checkpoint, tmp_path / "bundle", backbone="q8_0")
    with (
        OneVision.load(tmp_path / "bundle", threads=1) as loaded,
        pytest.raises(UsageError, match="made from a backbone in floats, and this one is q8_0"),
    ):
        collect_imatrix(loaded, samples)


def test_no_questions(model: OneVision):
    with pytest.raises(UsageError, match="no questions"):
        collect_imatrix(model, [])


def test_one_unreadable_image_among_good_ones(model: OneVision, samples: list[Sample], tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = replace(samples[0], images=(tmp_path / "bad.png",))
    with pytest.raises(ImageError, match=r"bad\.png"):
        collect_imatrix(model, [samples[0], bad, samples[3]])


def test_values_that_are_not_finite(damaged_bundle: Path, samples: list[Sample]):
    put(damaged_bundle, "blk.0.ffn_norm.weight", np.nan)
    with (
        OneVision.load(damaged_bundle, threads=1) as loaded,
        pytest.raises(GenerationError, match=r"inputs of blk\.0\.ffn_.* are not finite"),
    ):
        collect_imatrix(loaded, samples[3:])


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to threads only elsewhere")
def test_interrupted_in_a_callback(model: OneVision, samples: list[Sample], monkeypatch: pytest.MonkeyPatch):
    real = imatrix_module.matmul_callback
    calls: list[str] = []

    def watched(visit):
        def interrupt(name, inputs):
            calls.append(name)
            if len(calls) == 20:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            visit(name, inputs)

        return real(interrupt)

    monkeypatch.setattr(imatrix_module, "matmul_callback", watched)
    with pytest.raises(KeyboardInterrupt):
        collect_imatrix(model, samples)
    count = len(calls)
    assert model.generate("Hi.", max_tokens=2).usage.completion_tokens == 2
    assert len(calls) == count, "the callback is removed"


# The file.


def test_the_file_is_read_as_written(collected: Imatrix, tmp_path: Path):
    write_imatrix(collected, tmp_path / "imatrix.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]
    again = read_imatrix(tmp_path / "imatrix.gguf")
    assert (again.datasets, again.chunk_size) == (("a test",), 512)
    assert again.inputs.keys() == collected.inputs.keys()
    for name, seen in again.inputs.items():
        assert np.array_equal(seen.sums, collected.inputs[name].sums)
        assert seen.rows == collected.inputs[name].rows
    (tmp_path / "imatrix.gguf").unlink()  # nothing maps it, on Windows as well


def test_the_file_is_llama_imatrixs(collected: Imatrix, tmp_path: Path):
    """Keys, types and shapes that ``IMatrixCollector::save_imatrix`` writes."""
    write_imatrix(collected, tmp_path / "imatrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    fields = {name: (field.types, field.contents()) for name, field in reader.fields.items()}
    kinds = gguf.GGUFValueType
    rows = max(seen.rows for seen in collected.inputs.values())
    assert rows > 512
    assert {name: value for name, value in fields.items() if not name.startswith("GGUF.")} == {
        "general.type": ([kinds.STRING], "imatrix"),
        "imatrix.datasets": ([kinds.ARRAY, kinds.STRING], ["a test"]),
        "imatrix.chunk_count": ([kinds.UINT32], rows // 512),
        "imatrix.chunk_size": ([kinds.UINT32], 512),
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == [
        name + suffix for name in sorted(collected.inputs) for suffix in (".in_sum2", ".counts")
    ]
    for name, seen in collected.inputs.items():
        sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
        assert sums.tensor_type == counts.tensor_type == gguf.GGMLQuantizationType.F32
        assert (sums.shape.tolist(), counts.shape.tolist()) == ([len(seen.sums)], [1])
        assert counts.data.tolist() == [seen.rows]


def test_damaged_files(collected: Imatrix, tmp_path: Path):
    write_imatrix(collected, tmp_path / "imatrix.gguf")
    whole = (tmp_path / "imatrix.gguf").read_bytes()
    random = np.random.default_rng(3)
    for end in (0, 3, 4, 20, *random.integers(30, len(whole) - 40, 30).tolist()):
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"cut\.gguf is damaged"):
            read_imatrix(tmp_path / "cut.gguf")
    for _ in range(100):
        changed = bytearray(whole)
        changed[int(random.integers(0, 2000))] ^= 1 << int(random.integers(8))
        (tmp_path / "changed.gguf").write_bytes(changed)
        with suppress(InputError):
            assert read_imatrix(tmp_path / "changed.gguf").inputs


def test_other_files(model: OneVision, tmp_path: Path):
    with pytest.raises(InputError, match=r"cannot read .*absent"):
        read_imatrix(tmp_path / "absent.gguf")
    with pytest.raises(InputError, match="cannot read"):
        read_imatrix(tmp_path)
    with pytest.raises(InputError, match=r"backbone\.gguf is no importance matrix"):
        read_imatrix(model.bundle.path(BACKBONE))
    (tmp_path / "old.dat").write_bytes(np.int32([1, 4]).tobytes() + b"name" * 40)
    with pytest.raises(InputError, match=r"old\.dat is damaged, or no GGUF file"):
        read_imatrix(tmp_path / "old.dat")
    write_imatrix(Imatrix({}, ()), tmp_path / "empty.gguf")
    with pytest.raises(InputError, match="without values"):
        read_imatrix(tmp_path / "empty.gguf")
    with pytest.raises(ExportError, match="cannot write"):
        write_imatrix(Imatrix({}, ()), tmp_path / "absent" / "imatrix.gguf")


@pytest.mark.parametrize(
    ("counts", "value", "problem"),
    [([4.0, 4.0], 1.0, "mixture of experts"), ([np.nan], 1.0, "without counts"),
     ([-1.0], 1.0, "impossible values"), ([4.0], np.inf, "impossible values"),
     ([4.0], -1.0, "impossible values")],
)  # fmt: skip
def test_impossible_values(tmp_path: Path, counts: list[float], value: float, problem: str):
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "none")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.full(8, value, np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.array(counts, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=problem):
        read_imatrix(tmp_path / "imatrix.gguf")


# Its use.


def test_what_does_not_fit_the_model(model: OneVision, collected: Imatrix, tmp_path: Path):
    source = model.bundle.path(BACKBONE)
    inputs = dict(collected.inputs)
    name = "blk.1.attn_v.weight"
    lacking = {key: value for key, value in inputs.items() if key != name}
    cases = {
        f"nothing for {name}": lacking,
        f"127 columns for {name}, the model 128": inputs | {name: InputSquares(inputs[name].sums[1:], 9)},
        r"has blk\.7\.attn_v\.weight, the model has no such": inputs | {"blk.7.attn_v.weight": inputs[name]},
    }
    for problem, values in cases.items():
        for call in (
            lambda values=values: quantize_gguf(
                source, tmp_path / "q.gguf", RECIPES["q4_0"], imatrix=Imatrix(values, ())
            ),
            lambda values=values: predicted_bits(source, RECIPES["q4_0"], imatrix=Imatrix(values, ())),
        ):
            with pytest.raises(InputError, match=problem):
                call()
    without_head = {key: value for key, value in inputs.items() if key.startswith("blk.")}
    Imatrix(without_head, ()).check(GgufFile(source).tensors.values())  # as llama-imatrix leaves it
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_that_saw_nothing_is_not_weighed():
    assert Imatrix({"a": InputSquares(np.zeros(3, np.float32), 0)}, ()).means()["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("recipe", ["q4_0-pure", "iq4_nl-pure"])
def test_weighted_errors_fall(model: OneVision, collected: Imatrix, tmp_path: Path, recipe):
    """The error of every product, Σ over columns of mean square input · squared error, is what counts."""
    source = model.bundle.path(BACKBONE)
    floats = {tensor.name: tensor.data for tensor in gguf.GGUFReader(source).tensors}

    def errors(imatrix: Imatrix | None) -> dict[str, float]:
        made = quantize_gguf(source, tmp_path / "q.gguf", RECIPES[recipe], imatrix=imatrix, threads=1)
        assert made.fallbacks == {}
        found = {}
        for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors:
            if tensor.name in collected.inputs:
                rounded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                squares = (rounded.astype(np.float64) - floats[tensor.name]) ** 2
                found[tensor.name] = float((squares @ collected.means()[tensor.name]).sum())
        return found

    plain, weighed = errors(None), errors(collected)
    assert plain.keys() == collected.inputs.keys()
    assert all(weighed[name] < plain[name] for name in plain)
    assert np.mean([weighed[name] / plain[name] for name in plain]) < 0.97


def test_q8_0_has_no_use_for_it(model: OneVision, collected: Imatrix, tmp_path: Path):
    source = model.bundle.path(BACKBONE)
    for name, imatrix in (("plain", None), ("weighed", collected)):
        quantize_gguf(source, tmp_path / name, RECIPES["q8_0"], imatrix=imatrix, threads=1)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "weighed").read_bytes()


def test_another_layout_of_tensors_is_found_out(
    model: OneVision, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    """Before anything is read by the wrong one."""
    fields = (("new", ctypes.c_int64), *ggml.GgmlTensor._fields_)
    monkeypatch.setattr(ggml, "GgmlTensor", type("Other", (ctypes.Structure,), {"_fields_": fields}))
    with pytest.raises(GenerationError, match="lays out its tensors in another way"):
        collect_imatrix(model, samples)
