"""GGUF files: llama.cpp computes from them what transformers computes from the checkpoint."""

import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionForConditionalGeneration

from onevision import files as disk
from onevision.errors import BundleError, ExportError
from onevision.export.backbone import export_backbone, write_gguf
from onevision.export.checkpoint import Checkpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.tokenizer import CHAT_TEMPLATE
from onevision.native.gguf import GgufFile
from onevision.native.llama import last_llama_error
from onevision.native.quantize import FILE_TYPES, RECIPES, quantize_gguf, report
from onevision.precisions import BackbonePrecision
from tests.export.llama import last_logits

SMALL = SynthSpec(vocab=600, vision_layers=1)
# One layer as wide as the 0.5B's, whose rows of 896 do not divide into the 256 of a k-quant's block.
WIDE = SynthSpec(layers=1, hidden=896, heads=14, kv_heads=2, intermediate=1024, vocab=600, vision_layers=1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    synthesize(folder / "checkpoint", WIDE)
    with Checkpoint.open(folder / "checkpoint") as checkpoint:
        write_gguf(checkpoint, folder / "bf16.gguf", dtype="bf16", name="wide")
        yield checkpoint, folder / "bf16.gguf"


@pytest.fixture
def checkpoint(tmp_path):
    synthesize(tmp_path / "checkpoint", SMALL)
    with Checkpoint.open(tmp_path / "checkpoint") as opened:
        yield opened


def relative_error(values, reference):
    return np.linalg.norm(values - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize(
    "spec",
    [
        replace(SMALL, hidden=256, heads=4, kv_heads=2),  # head_dim 64
        replace(SMALL, hidden=256, heads=8, kv_heads=8, tied=False, dtype="f32"),  # head_dim 32
        replace(SMALL, hidden=256, heads=8, kv_heads=1, layers=4, dtype="f16", shards=3),
        replace(SMALL, hidden=192, heads=3, kv_heads=3, tied=False, dtype="f16", naming="hf-5"),
        WIDE,
    ],
    ids=["tied", "untied-f32", "sharded", "hf-5", "wide"],
)
def test_logits_equal_transformers(tmp_path, spec):
    synthesize(tmp_path / "reference", replace(spec, naming="hf"))
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        tmp_path / "reference", dtype=torch.float32
    )
    ids = torch.randint(0, 590, (1, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        reference = model(input_ids=ids).logits[0, -1].numpy()
    synthesize(tmp_path / "checkpoint", spec)
    with Checkpoint.open(tmp_path / "checkpoint") as checkpoint:
        for precision, tolerance in {"f32": 1e-5, "f16": 5e-3, "q8_0": 0.1}.items():
            export_backbone(checkpoint, tmp_path / "model.gguf", precision, name="test")
            logits = last_logits(tmp_path / "model.gguf", ids[0].tolist())
            assert relative_error(logits, reference) < tolerance, precision


def test_metadata(tmp_path, checkpoint):
    write_gguf(checkpoint, tmp_path / "model.gguf", dtype="f16", name="LLaVA-OneVision test")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tokens, types = fields.pop("tokenizer.ggml.tokens"), fields.pop("tokenizer.ggml.token_type")
    merges = fields.pop("tokenizer.ggml.merges")
    assert fields.pop("qwen2.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert fields == {
        "general.architecture": "qwen2",
        "general.type": "model",
        "general.name": "LLaVA-OneVision test",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "qwen2.vocab_size": 600,
        "qwen2.context_length": 32768,
        "qwen2.embedding_length": 128,
        "qwen2.block_count": 2,
        "qwen2.feed_forward_length": 256,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.rope.dimension_count": 32,
        "qwen2.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": 587,
        "tokenizer.ggml.eos_token_id": 589,
        "tokenizer.ggml.eot_token_id": 589,
        "tokenizer.ggml.padding_token_id": 587,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    assert len(merges) == 587 - 256
    assert tokens[587:593] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<image>",
        "<video>",
        "[PAD592]",
    ]
    assert types == [gguf.TokenType.NORMAL] * 587 + [gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.UNUSED] * 8
    del reader  # it maps the file


def test_llama_cpp_knows_the_file_types():
    import llama_cpp

    for precision, number in FILE_TYPES.items():
        name = f"LLAMA_FTYPE_{'ALL' if precision == 'f32' else 'MOSTLY'}_{precision.upper()}"
        assert getattr(llama_cpp, name) == number
    assert {recipe.mix for recipe in RECIPES.values()} == set(FILE_TYPES)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_values_are_those_of_the_checkpoint(tmp_path, checkpoint, dtype):
    """bf16 to bf16 and f32 lose nothing; f16 is torch's rounding. Vectors are f32 whatever the type."""
    write_gguf(checkpoint, tmp_path / "model.gguf", dtype=dtype, name="test")
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(read) == 2 + 12 * 2
    cases = {
        "token_embd.weight": "embed_tokens.weight",
        "blk.1.attn_k.weight": "layers.1.self_attn.k_proj.weight",
        "blk.1.attn_k.bias": "layers.1.self_attn.k_proj.bias",
        "blk.0.ffn_norm.weight": "layers.0.post_attention_layernorm.weight",
    }
    for target, source in cases.items():
        tensor = checkpoint.tensor(f"model.language_model.{source}")
        kind = "f32" if tensor.ndim == 1 else dtype
        assert read[target].tensor_type.name.lower() == kind
        values = gguf.quants.dequantize(read[target].data, read[target].tensor_type)
        exact = torch.from_numpy(tensor.astype(np.float32))
        wanted = exact.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind])
        assert np.array_equal(values.reshape(tensor.shape), wanted.float().numpy()), target


def test_header_reader_agrees_with_gguf(wide, tmp_path):
    _, source = wide
    quantize_gguf(source, tmp_path / "q.gguf", RECIPES["q4_k_m"])
    theirs = gguf.GGUFReader(tmp_path / "q.gguf").tensors
    ours = GgufFile(tmp_path / "q.gguf").tensors.values()
    assert [(t.name, t.tensor_type.name.lower(), tuple(t.shape[::-1]), t.n_bytes) for t in theirs] == [
        (t.name, t.type, t.shape, t.bytes) for t in ours
    ]


# Bits per weight of the wide shape, and the types that stand in where rows do not divide into blocks.
TYPES = {
    "f32": (32.0, set()),
    "f16": (16.01, set()),
    "bf16": (16.01, set()),
    "q8_0": (8.52, set()),
    "q4_0": (4.94, {"q8_0"}),
    "q4_1": (5.39, {"q8_0"}),
    "q5_0": (5.83, {"q8_0"}),
    "q5_1": (6.28, {"q8_0"}),
    "iq4_nl": (4.97, {"q5_1", "q8_0"}),
    "q2_k": (4.77, {"q4_0", "q5_0", "q8_0"}),
    "q3_k_m": (5.13, {"q4_0", "q5_0", "q5_1", "q8_0"}),
    "q4_k_s": (5.67, {"q5_0", "q5_1", "q8_0"}),
    "q4_k_m": (6.09, {"q5_0", "q8_0"}),
    "q5_k_m": (6.44, {"q5_1", "q8_0"}),
    "q6_k": (8.17, {"q8_0"}),
    "iq4_nl-attn-q8_0": (6.37, {"q8_0"}),
    "q4_0-attn-q8_0": (6.37, {"q8_0"}),
    "iq4_nl-pure": (4.53, set()),
    "q4_0-pure": (4.53, set()),
}


@pytest.mark.parametrize("precision", get_args(BackbonePrecision))
def test_each_precision(wide, tmp_path, precision):
    checkpoint, _ = wide
    seen = []
    made = export_backbone(
        checkpoint, tmp_path / "model.gguf", precision, name="wide", threads=2, advance=seen.append
    )
    bits, instead = TYPES[precision]
    assert made.precision == precision
    assert made.bits_per_weight == pytest.approx(bits, abs=0.01)
    assert made.bytes == (tmp_path / "model.gguf").stat().st_size
    assert {kind for kinds in made.fallbacks.values() for kind in kinds} == instead
    assert sum(made.tensor_types.values()) == 2 + 12
    assert precision in made.summary
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    field = gguf.GGUFReader(tmp_path / "model.gguf").fields["general.file_type"]
    assert field.contents() == FILE_TYPES[RECIPES[precision].mix]


def test_a_k_quant_that_does_not_fit_is_told(wide, tmp_path):
    _, source = wide
    made = quantize_gguf(source, tmp_path / "model.gguf", RECIPES["q4_k_m"])
    assert made.fallbacks["blk.*.attn_q.weight"] == ("q5_0",)
    assert "blk.*.ffn_down.weight" not in made.fallbacks  # rows of 1024
    assert "rows do not divide" in made.summary
    assert made.summary.endswith("q4_0 is faster here")
    assert "q4_0 is" not in quantize_gguf(source, tmp_path / "model.gguf", RECIPES["q5_0"]).summary


def test_a_k_quant_that_fits_has_no_fallbacks(tmp_path):
    synthesize(tmp_path / "checkpoint", replace(SMALL, hidden=256))
    with Checkpoint.open(tmp_path / "checkpoint") as checkpoint:
        for precision in ("q4_k_m", "q4_0"):
            made = export_backbone(checkpoint, tmp_path / "model.gguf", precision, name="test")
            assert made.fallbacks == {}
            assert made.tensor_types.keys() <= {"f32", "q4_k", "q5_k", "q6_k", "q4_0"}


def test_rows_that_fit_no_block_stay_f16(tmp_path):
    synthesize(tmp_path / "checkpoint", replace(SMALL, hidden=80, heads=4))
    with Checkpoint.open(tmp_path / "checkpoint") as checkpoint:
        made = export_backbone(checkpoint, tmp_path / "model.gguf", "q8_0", name="test")
    assert made.fallbacks["blk.*.attn_q.weight"] == ("f16",)
    assert made.fallbacks["token_embd.weight"] == ("f16",)


@pytest.mark.parametrize("hidden", [128, 80])
def test_q8_0_is_llama_cpps(tmp_path, hidden):
    """The same tensors, bit for bit, and the same types where rows fit no block."""
    synthesize(tmp_path / "checkpoint", replace(SMALL, hidden=hidden, heads=4, dtype="f32"))
    with Checkpoint.open(tmp_path / "checkpoint") as checkpoint:
        write_gguf(checkpoint, tmp_path / "floats.gguf", dtype="f32", name="test")
        ours = write_gguf(checkpoint, tmp_path / "ours.gguf", dtype="q8_0", name="test")
    theirs = quantize_gguf(tmp_path / "floats.gguf", tmp_path / "theirs.gguf", RECIPES["q8_0"])
    assert replace(ours, bytes=0) == replace(theirs, bytes=0)
    one, other = (gguf.GGUFReader(tmp_path / name).tensors for name in ("ours.gguf", "theirs.gguf"))
    assert {t.name: t.tensor_type for t in one} == {t.name: t.tensor_type for t in other}
    expected = {t.name: t.data for t in other}
    for tensor in one:
        np.testing.assert_array_equal(tensor.data, expected[tensor.name])


def test_same_checkpoint_same_bytes(tmp_path, checkpoint):
    for name in ("a", "b"):
        export_backbone(checkpoint, tmp_path / name, "q8_0", name="test", threads=1 + (name == "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_reaches_the_terminal(capfd, wide, tmp_path):
    _, source = wide
    quantize_gguf(source, tmp_path / "model.gguf", RECIPES["q4_k_m"])
    last_logits(tmp_path / "model.gguf", [1, 2, 3])
    assert capfd.readouterr() == ("", "")


def test_values_beyond_f16_are_refused(tmp_path):
    folder = synthesize(tmp_path / "checkpoint", SMALL)
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    save_file(tensors, folder / "model.safetensors")
    with Checkpoint.open(folder) as checkpoint:
        with pytest.raises(ExportError, match=r"layers\.1\.mlp\.up_proj\.weight has values that f16"):
            export_backbone(checkpoint, tmp_path / "model.gguf", "f16", name="test")
        assert (
            export_backbone(checkpoint, tmp_path / "model.gguf", "bf16", name="test").bits_per_weight < 16.1
        )
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "model.gguf"}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\0" * 4096])
def test_a_file_that_is_cut_off(tmp_path, content, wide, capfd):
    _, source = wide
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(source.read_bytes()[:-50_000] + content)
    with pytest.raises(BundleError, match=r"broken\.gguf is (cut off|damaged)"):
        quantize_gguf(broken, tmp_path / "model.gguf", RECIPES["q8_0"])
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]
    assert capfd.readouterr().err == ""


def test_llama_cpp_says_why_it_refuses(tmp_path, wide, capfd):
    _, source = wide
    broken = tmp_path / "broken.gguf"
    name = b"general.architecture" + (8).to_bytes(4, "little") + (5).to_bytes(8, "little")
    assert source.read_bytes().count(name + b"qwen2") == 1
    broken.write_bytes(source.read_bytes().replace(name + b"qwen2", name + b"qwenX"))
    with pytest.raises(ExportError, match=r"could not quantize to q8_0: .*architecture: 'qwenX'"):
        quantize_gguf(broken, tmp_path / "model.gguf", RECIPES["q8_0"])
    assert last_llama_error()
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("precision", ["f16", "q8_0", "q4_0"])
def test_interrupted_leaves_nothing(tmp_path, checkpoint, precision):
    def interrupt(fraction):
        if fraction > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_backbone(checkpoint, tmp_path / "model.gguf", precision, name="test", advance=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to threads only elsewhere")
def test_interrupted_while_llama_cpp_works(tmp_path, wide):
    """The signal comes while llama.cpp is in its log callback, where an exception would be lost."""
    checkpoint, _ = wide

    def interrupt(fraction):
        if fraction > 0.6:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        export_backbone(checkpoint, tmp_path / "model.gguf", "q4_0", name="test", advance=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_found_out_before(tmp_path, checkpoint, monkeypatch):
    """Room for the float file alone is not enough for one that llama.cpp quantizes."""
    needed = sum(
        np.prod(checkpoint.shape(name)) * 2
        for name in checkpoint.names
        if name.startswith("model.language_model")
    )
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=int(needed * 1.2)))
    with pytest.raises(ExportError, match="not enough disk space") as caught:
        export_backbone(checkpoint, tmp_path / "model.gguf", "q5_1", name="test")
    assert "are needed in" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    export_backbone(checkpoint, tmp_path / "model.gguf", "f16", name="test")


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("precision", ["f16", "q8_0", "q4_0"])
def test_disk_that_fills_up_on_the_way(tmp_path, checkpoint, precision):
    """A limit on the size of files stands for a disk that is full in the middle of the work."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(ExportError, match="cannot write in") as caught:
            export_backbone(checkpoint, tmp_path / "model.gguf", precision, name="test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "are needed in" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_no_such_folder(tmp_path, checkpoint):
    with pytest.raises(ExportError, match="No such file"):
        export_backbone(checkpoint, tmp_path / "absent" / "model.gguf", "f16", name="test")


def test_report_reads_what_is_there(wide):
    _, source = wide
    made = report(source, RECIPES["bf16"])
    assert made.tensor_types == {"bf16": 8, "f32": 6}
    assert made.summary.startswith("bf16: 16.")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    """195 MB of weights in tensors of at most 4 MB, in five shards, are converted within 40 MB."""
    spec = SynthSpec(layers=36, hidden=512, heads=8, kv_heads=8, intermediate=1024, vocab=4096, shards=5)
    synthesize(tmp_path / "checkpoint", spec)
    code = f"""
        import re
        from pathlib import Path
        import gguf, llama_cpp, psutil, torch
        from onevision.export.backbone import export_backbone
        from onevision.export.checkpoint import Checkpoint
        folder = Path({str(tmp_path)!r})
        with Checkpoint.open(folder / "checkpoint") as checkpoint:
            before = psutil.Process().memory_info().rss
            for precision in ("f16", "q8_0"):
                made = export_backbone(checkpoint, folder / "model.gguf", precision, name="test", threads=2)
            peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
            print(checkpoint.bytes_of(), made.bytes, peak - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, written, extra = map(int, run.stdout.split())
    assert weights > 190e6
    assert written > 90e6
    assert extra < 40e6
