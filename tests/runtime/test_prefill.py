"""The prefill graph and its hand-over: the answer of llama.cpp's own prefill, one way or the other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision import OneVision
from onevision.bundle import BACKBONE, PREFILL, PREFILL_DATA
from onevision.errors import BundleError, GenerationError, UsageError
from onevision.export.checkpoint import Checkpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.tensors import TEXT_PREFIX
from onevision.graphs.qwen2 import write_prefill
from onevision.native import device as device_module
from onevision.native.gguf import GgufFile
from onevision.proof.verify import greedy_tokens
from onevision.runtime.prefill import graph as graph_module
from onevision.runtime.prefill import state as states
from onevision.runtime.prefill.graph import KeysValues, PrefillGraph, chunk_tokens
from onevision.runtime.prefill.policy import EMBEDDING
from onevision.runtime.prefill.state import LayoutError, StateLayout
from tests.conftest import make_bundle, replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.graphs.qwen2 import PrefillPrecision

QUESTION = "What is on the table?"
# Of a text of some hundred tokens, so that `auto` takes the graph.
LONG = "one two three four five six seven eight nine ten " * 30


@pytest.fixture(scope="session")
def exact(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy's bundle in full precision, graph included."""
    target = tmp_path_factory.mktemp("prefill") / "exact"
    return make_bundle(toy_checkpoint, target, backbone="f32", prefill="fp32")


@pytest.fixture(scope="session")
def small(untied_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied toy's bundle in few bits."""
    target = tmp_path_factory.mktemp("prefill") / "small"
    return make_bundle(untied_checkpoint, target, backbone="q8_0", prefill="int8")


def load(bundle: Path, prefill: str = "onnx") -> OneVision:
    return OneVision.load(bundle, device="cpu", threads=1, prefill=prefill)


def write_graph(checkpoint: Checkpoint, path: Path, precision: PrefillPrecision) -> None:
    write_prefill(
        path,
        checkpoint.config.text,
        lambda name: checkpoint.tensor(TEXT_PREFIX + name),
        precision=precision,
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


# The same answer.


def test_in_full_precision_the_answer_is_the_same(exact: Path, photo: Path):
    answers = {}
    for way in ("llama", "onnx"):
        with load(exact, way) as model:
            answers[way] = model.generate(QUESTION, images=[photo], max_tokens=16)
            assert model.generate(LONG, max_tokens=4).warnings == ()
    assert answers["onnx"].token_ids == answers["llama"].token_ids
    assert answers["onnx"].usage == answers["llama"].usage
    assert answers["onnx"].warnings == ()


@pytest.mark.parametrize("backbone", ["f16", "q8_0", "q4_0"])
def test_other_caches_take_the_keys_and_values_over(
    toy_checkpoint: Path, exact: Path, tmp_path: Path, backbone: str
):
    """f16 has its values transposed, the quantised ones have not. The graph's weights are not quantised."""
    bundle = make_bundle(toy_checkpoint, tmp_path / "bundle", backbone=backbone, prefill="fp32")
    logits = {}
    for way in ("llama", "onnx"):
        with load(bundle, way) as model:
            assert model.generate(LONG, max_tokens=1).warnings == ()
            logits[way] = model.pipeline.backbone.logits()
    assert cosine(logits["onnx"], logits["llama"]) > (0.97 if backbone == "q4_0" else 0.999)


def test_int8_comes_close(small: Path, photo: Path):
    logits = {}
    for way in ("llama", "onnx"):
        with load(small, way) as model:
            assert model.generate(QUESTION, images=[photo], max_tokens=1).warnings == ()
            logits[way] = model.pipeline.backbone.logits()
    assert cosine(logits["onnx"], logits["llama"]) > 0.98


@pytest.mark.parametrize(("heads", "kv_heads", "theta"), [(4, 1, 1e6), (4, 4, 1e4), (8, 2, 1e6)])
def test_every_number_of_heads(tmp_path: Path, heads: int, kv_heads: int, theta: float):
    from tests.export.conftest import edit_json

    folder = synthesize(tmp_path / "checkpoint", SynthSpec(heads=heads, kv_heads=kv_heads))
    edit_json(folder / "config.json", lambda config: config["text_config"].update(rope_theta=theta))
    bundle = make_bundle(folder, tmp_path / "bundle", backbone="f32", prefill="fp32")
    tokens = []
    for way in ("llama", "onnx"):
        with load(bundle, way) as model:
            answer = model.generate(LONG, max_tokens=8)
            assert answer.warnings == ()
            tokens.append(answer.token_ids)
    assert tokens[0] == tokens[1]


@settings(max_examples=15)
@given(tokens=st.integers(1, 40), chunk=st.integers(1, 41), precision=st.sampled_from(["fp32", "int8"]))
def test_chunks_change_nothing(toy_graphs: dict[str, Path], tokens: int, chunk: int, precision: str):
    path = toy_graphs[precision]
    whole, cut = PrefillGraph(path, threads=1, chunk=tokens), PrefillGraph(path, threads=1, chunk=chunk)
    embeddings = np.random.default_rng(tokens).standard_normal((tokens, whole.hidden)).astype(np.float32)
    done: list[int] = []
    parts = np.split(embeddings, sorted({tokens // 3, tokens // 2}))
    ours, theirs = cut.run(parts, done.append), whole.run([embeddings])
    assert done == [*range(chunk, tokens, chunk), tokens]
    # A step per token: rounding to bytes may turn on the last bit of a float, once in a while.
    tolerance = 1e-4 if precision == "fp32" else 0.05
    for a, b in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(
    ("threads", "tokens"), [(1, 128), (2, 128), (4, 128), (5, 256), (7, 256), (8, 512), (64, 512)]
)
def test_chunks_grow_with_threads(threads: int, tokens: int, monkeypatch: pytest.MonkeyPatch):
    for size in (None, 1 << 20):
        monkeypatch.setattr(graph_module, "l2_cache_bytes", lambda size=size: size)
        assert chunk_tokens(threads) == tokens
    monkeypatch.setattr(graph_module, "l2_cache_bytes", lambda: 0)
    assert chunk_tokens(threads) == 128, "without flash attention, scores of a chunk are held"


@pytest.mark.parametrize(
    ("machine", "flags", "prefill", "on"),
    [
        ("x86_64", ["avx2", "i8mm", "sve"], "llama", True),
        ("aarch64", ["asimd"], "llama", True),  # Neoverse N1
        ("aarch64", ["i8mm", "sve"], "llama", False),
        ("arm64", ["i8mm", "sve", "bf16"], "llama", False),
        ("aarch64", ["i8mm", "sve"], "auto", True),  # the graph prefills
    ],
)
def test_flash_attention_by_processor(
    machine: str, flags: list[str], prefill: str, on: bool, small: Path, monkeypatch: pytest.MonkeyPatch
):
    """Off where llama.cpp prefills and is slower with it: llama.cpp issue 27086."""
    monkeypatch.setattr(device_module.platform, "machine", lambda: machine)
    monkeypatch.setattr(device_module, "cpu_flags", lambda: flags)
    with load(small, prefill) as model:
        assert model.pipeline.backbone.flash_attention == on


@pytest.fixture(scope="session")
def toy_graphs(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    paths = {precision: folder / precision / PREFILL for precision in ("fp32", "int8")}
    with Checkpoint.open(toy_checkpoint) as checkpoint:
        for precision, path in paths.items():
            path.parent.mkdir()
            write_graph(checkpoint, path, precision)
    return paths


def test_embedding_rows_are_those_of_the_gguf(small: Path):
    file = GgufFile(small / BACKBONE)
    whole = file.tensor(EMBEDDING)
    np.testing.assert_array_equal(file.rows(EMBEDDING, [5, 0, 7]), whole[[5, 0, 7]])
    with pytest.raises(IndexError, match="row"):
        file.rows(EMBEDDING, [len(whole)])


# Who reads.


def test_auto_reads_long_prompts_by_the_graph(exact: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    run = PrefillGraph.run

    def counted(self, parts, on_chunk=None):
        read.append(sum(map(len, parts)))
        return run(self, parts, on_chunk)

    monkeypatch.setattr(PrefillGraph, "run", counted)
    with load(exact, "auto") as model:
        model.generate("Hi.", max_tokens=1)
        assert read == []
        tokens = model.generate(LONG, max_tokens=1).usage.prompt_tokens
        assert read[-1] == tokens - 1
        assert len(read) == 2  # the check, once
        model.generate(LONG, max_tokens=1)
        assert len(read) == 3
    with load(exact, "llama") as model:
        model.generate(LONG, max_tokens=1)
    assert len(read) == 3


def test_progress_counts_tokens(exact: Path):
    steps: list[tuple[str, int, int]] = []
    with load(exact) as model:
        usage = model.generate(LONG, max_tokens=1, on_progress=lambda *step: steps.append(step)).usage
    done = [count for stage, count, _ in steps if stage == "prefill"]
    assert done == sorted(set(done))
    assert done[-1] == usage.prompt_tokens
    assert len(done) > 1


def test_a_bundle_without_the_graph(toy_bundle: Path):
    with pytest.raises(UsageError, match="no prefill graph") as caught:
        load(toy_bundle)
    assert "--prefill onnx" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="unknown prefill"):
        load(toy_bundle, "torch")
    with load(toy_bundle, "auto") as model:
        assert model.generate(LONG, max_tokens=1).warnings == ()


# Damage.


@pytest.mark.parametrize("name", [PREFILL, PREFILL_DATA])
def test_a_graph_cut_short_is_an_error(exact: Path, tmp_path: Path, name: str):
    copy = shutil.copytree(exact, tmp_path / "copy")
    data = (copy / name).read_bytes()
    replace_file(copy, name, data[: len(data) // 2])
    with load(copy) as model, pytest.raises(BundleError, match=r"prefill\.onnx"):
        model.generate(QUESTION, max_tokens=1)


def test_another_graph_is_an_error(exact: Path, tmp_path: Path):
    copy = shutil.copytree(exact, tmp_path / "copy")
    replace_file(copy, PREFILL, (copy / "vision.onnx").read_bytes())
    with load(copy) as model, pytest.raises(BundleError, match="is no prefill graph"):
        model.generate(QUESTION, max_tokens=1)


def test_a_graph_of_another_model_is_not_used(exact: Path, tmp_path: Path):
    other = synthesize(tmp_path / "other", SynthSpec(seed=5))
    copy = shutil.copytree(exact, tmp_path / "copy")
    with Checkpoint.open(other) as checkpoint:
        write_graph(checkpoint, tmp_path / PREFILL, "fp32")
    for name in (PREFILL, PREFILL_DATA):
        replace_file(copy, name, (tmp_path / name).read_bytes())
    with load(copy) as model, pytest.raises(GenerationError, match=r"cannot be used: .*cosine"):
        model.generate(LONG, max_tokens=8)
    with load(copy, "auto") as model:
        answer = model.generate(LONG, max_tokens=8)
        assert any("cosine" in warning for warning in answer.warnings)
    with load(exact, "llama") as model:
        assert model.generate(LONG, max_tokens=8).token_ids == answer.token_ids


def test_an_unknown_layout_falls_back_unless_the_graph_was_asked_for(
    exact: Path, monkeypatch: pytest.MonkeyPatch
):
    from onevision.runtime.backbone import Backbone

    save = Backbone.save
    monkeypatch.setattr(Backbone, "save", lambda self: bytes(save(self)) + b"more")
    with load(exact) as model, pytest.raises(GenerationError, match="the prefill graph cannot be used"):
        model.generate(LONG, max_tokens=8)
    with load(exact, "auto") as model:
        answer = model.generate(LONG, max_tokens=8)
        assert "prefill runs in llama.cpp" in answer.warnings[0]
        assert model.generate(LONG, max_tokens=8).token_ids == answer.token_ids
    with load(exact, "llama") as model:
        assert model.generate(LONG, max_tokens=8).token_ids == answer.token_ids


def test_a_closed_graph_says_so(toy_graphs: dict[str, Path]):
    graph = PrefillGraph(toy_graphs["fp32"], threads=1)
    graph.close()
    graph.close()
    with pytest.raises(GenerationError, match="closed"):
        graph.run([np.zeros((1, graph.hidden), np.float32)])


# Layouts.

LAYOUTS = [
    StateLayout(magic, 0, turned, kind, kind, layers=2, kv_heads=2, head_dim=4)
    for magic, turned, kind in ((7, False, 1), (8, True, 1), (9, True, 0), (10, False, 0))
]


def filled(layout: StateLayout, cells: int) -> KeysValues:
    shape = (layout.kv_heads, cells, layout.head_dim)
    arrays = np.random.default_rng(0).integers(-99, 99, (2, layout.layers, *shape)).astype(np.float32)
    return KeysValues(list(arrays[0]), list(arrays[1]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cells", [1, 5])
def test_a_layout_is_learnt_from_a_state(layout: StateLayout, cells: int):
    given_ = filled(layout, cells)
    state = layout.pack(filled(layout, cells)).tobytes()
    assert StateLayout.learn(state, layers=2, kv_heads=2, head_dim=4) == layout
    back = layout.unpack(state)
    for ours, theirs in zip(back.keys + back.values, given_.keys + given_.values, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_refused(layout: StateLayout):
    state = layout.pack(filled(layout, 3)).tobytes()
    shape = {"layers": 2, "kv_heads": 2, "head_dim": 4}
    for bad in (b"", state[:10], state[:-1], state + b"\0", state[:8] + b"\2" + state[9:], state[4:]):
        with pytest.raises(LayoutError):
            StateLayout.learn(bad, **shape)
    with pytest.raises(LayoutError):
        StateLayout.learn(state, **{**shape, "layers": 3})
    with pytest.raises(LayoutError):
        StateLayout.learn(state, **{**shape, "head_dim": 8})
    unknown = replace(layout, key_type=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(states._TYPES, 8, np.dtype("<f2"))
        state = unknown.pack(filled(unknown, 3)).tobytes()
    with pytest.raises(LayoutError, match="type 8"):
        StateLayout.learn(state, **shape)


def test_the_running_library_writes_such_states(exact: Path):
    with load(exact, "llama") as model:
        model.generate(LONG, max_tokens=1)
        backbone = model.pipeline.backbone
        before, used = backbone.logits(), backbone.used
        state = backbone.save()
        info = model.bundle.manifest.backbone
        layout = StateLayout.learn(
            state, layers=info.layers, kv_heads=info.kv_heads, head_dim=info.hidden // info.heads
        )
        assert layout.transposed
        assert layout.key_type == layout.value_type == 0
        backbone.append(5)
        after = greedy_tokens(model, 4)
        backbone.start(used + 8)
        backbone.restore(np.frombuffer(state, np.uint8), used)
        backbone.append(5)
        assert greedy_tokens(model, 4) == after
        assert np.isfinite(before).all()
        with pytest.raises(GenerationError, match="take"):
            backbone.restore(np.frombuffer(state[:-8], np.uint8), used)
