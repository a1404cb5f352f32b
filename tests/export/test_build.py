"""The export as a whole: the same bytes every time, nothing left by an interruption, and faults found."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from onevision import OneVision, __version__
from onevision.bundle import BACKBONE, CARD, GOLDEN, MANIFEST, VISION, VISION_DATA, Manifest, open_bundle
from onevision.cli import _run
from onevision.errors import CheckpointError, ExportError, OneVisionError, UsageError
from onevision.export import backbone as backbone_module
from onevision.export import reference as export_reference
from onevision.export.build import ExportOptions, export
from onevision.export.hub import FetchedCheckpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.files import readable
from onevision.proof.golden import load_golden
from tests.conftest import NoProgress, make_bundle
from tests.export.conftest import edit_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def checksums(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


def manifest_of(bundle: Path) -> Manifest:
    return open_bundle(bundle, check=True).manifest


# The same again.


@pytest.mark.parametrize("options", [{"backbone": "f32"}, {}, {"vision": "fp16", "backbone": "q4_0"}])
def test_the_same_checkpoint_gives_the_same_bytes(
    toy_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
):
    one = make_bundle(toy_checkpoint, tmp_path / "one", **options)
    moved = shutil.copytree(toy_checkpoint, tmp_path / "elsewhere" / toy_checkpoint.name)
    other = make_bundle(moved, tmp_path / "deep" / "other", **options)
    assert checksums(one) == checksums(other)


EXPORT = """
import sys
import torch
torch.set_num_threads(1)
from onevision.cli import _run
arguments = ["--vision", "fp32", "--backbone", "f32", "--prefill", "none", "--threads", "1"]
assert _run(["export", "--source", sys.argv[1], "-o", sys.argv[2], *arguments]) == 0
"""


def test_another_process_gives_the_same_bytes(toy_checkpoint: Path, toy_bundle: Path, tmp_path: Path):
    """With other hashes of texts, and so another order in every set."""
    command = [sys.executable, "-c", EXPORT, str(toy_checkpoint), str(tmp_path / "bundle")]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=300)
    assert checksums(tmp_path / "bundle") == checksums(toy_bundle)


def test_nothing_in_a_bundle_tells_where_or_when(toy_bundle: Path, toy_checkpoint: Path):
    for path in toy_bundle.iterdir():
        data = path.read_bytes()
        for secret in (str(toy_checkpoint.parent), str(toy_bundle.parent)):
            assert secret.encode() not in data, path.name
    texts = [(toy_bundle / name).read_text(encoding="utf-8") for name in (MANIFEST, CARD)]
    assert not any(re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d", text) for text in texts)


def test_tools_are_named_by_their_versions(toy_bundle: Path):
    import llama_cpp
    import onnx
    import onnxruntime
    import torch
    import transformers

    assert manifest_of(toy_bundle).created_by == {
        "onevision": __version__,
        "gguf": version("gguf"),
        "onnx": onnx.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "onnxruntime": onnxruntime.__version__,
        "llama_cpp": llama_cpp.__version__,
    }


# What the manifest says.


def test_the_manifest_describes_the_checkpoint(tmp_path: Path):
    spec = SynthSpec(
        layers=3, hidden=192, heads=6, kv_heads=3, intermediate=320, vocab=800, image_size=70,
        vision_hidden=96, vision_heads=6, vision_layers=3, vision_intermediate=144, grid=2,
        aspect_ratio="anyres_max_4", naming="lmms-lab",
    )  # fmt: skip
    checkpoint = synthesize(tmp_path / "my-finetune", spec)
    manifest = manifest_of(make_bundle(checkpoint, tmp_path / "bundle", backbone="f16"))
    assert (manifest.schema_version, manifest.name, manifest.size, manifest.variant) == (
        1,
        "my-finetune",
        None,
        None,
    )
    assert vars(manifest.source) == {
        "repo": "my-finetune",
        "revision": None,
        "format": "lmms-lab",
        "adapter": None,
    }
    assert vars(manifest.vision) == {
        "image_size": 70,
        "patch_size": 14,
        "hidden": 96,
        "intermediate": 144,
        "layers": 3,
        # lmms-lab's pairs are (width, height), in the order of the widths.
        "grid_pinpoints": ((70, 70), (140, 70), (70, 140), (140, 140)),
        "aspect_ratio": "anyres_max_4",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    backbone = vars(manifest.backbone).copy()
    assert backbone.pop("bits_per_weight") == pytest.approx(16, abs=0.1)
    assert backbone.pop("eos_ids")
    assert backbone == {
        "hidden": 192,
        "intermediate": 320,
        "layers": 3,
        "heads": 6,
        "kv_heads": 3,
        "context_length": 32768,
        "vocab_size": 800,
    }
    assert vars(manifest.video) == {
        "frames": 32,
        "pooled_side": 3,
        "newline": "one_token",
        "pooling": "bilinear",
        "time_instruction": False,
    }
    assert manifest.prompt.template == "training"
    assert manifest.quality["verify"]["passed"] is True


@pytest.mark.parametrize(("vision", "backbone"), [("fp32", "q8_0"), ("fp16", "q4_k_m")])
def test_precisions_are_in_the_manifest_and_on_the_card(
    toy_checkpoint: Path, tmp_path: Path, vision: Any, backbone: Any
):
    progress = NoProgress()
    source = FetchedCheckpoint(toy_checkpoint, "someone/fine-tune", "a" * 40)
    options = ExportOptions(
        vision=vision, backbone=backbone, size="0.5b", variant="si", name="mine", threads=1
    )
    done = export(source, tmp_path / "bundle", options, progress)
    manifest = manifest_of(tmp_path / "bundle")
    assert manifest.to_json() == done.bundle.manifest.to_json()
    assert done.bundle.folder == tmp_path / "bundle"
    precisions = {name: info.precision for name, info in manifest.files.items() if info.precision}
    assert precisions == {VISION: vision, VISION_DATA: vision, BACKBONE: backbone}
    assert (manifest.name, manifest.size, manifest.variant) == ("mine", "0.5b", "si")
    assert vars(manifest.source) == {
        "repo": "someone/fine-tune",
        "revision": "a" * 40,
        "format": "hf",
        "adapter": None,
    }
    assert manifest.backbone.bits_per_weight == done.backbone.bits_per_weight
    assert done.report.passed
    assert done.backbone.summary in progress.notes
    card = (tmp_path / "bundle" / CARD).read_text(encoding="utf-8")
    assert "someone/fine-tune" in card
    assert backbone in card
    encoder = sum(manifest.files[name].bytes for name in (VISION, VISION_DATA))
    assert f"`vision.onnx`, {vision}, {readable(encoder)}\n" in card
    with OneVision.load(tmp_path / "bundle", device="cpu", threads=1) as model:
        assert model.generate("Hi.", max_tokens=2).text is not None


def test_a_name_comes_from_the_repository(toy_checkpoint: Path, tmp_path: Path):
    source = FetchedCheckpoint(toy_checkpoint, "someone/fine-tune", None)
    done = export(source, tmp_path / "bundle", ExportOptions(backbone="f32", threads=1), NoProgress())
    assert done.bundle.manifest.name == "fine-tune"


# Interruptions.


class Interrupted(NoProgress):
    """Progress that are cut off at one of the calls to them."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._at = at

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self._at:
            raise KeyboardInterrupt

    @contextmanager
    def step(self, name: str) -> Iterator[Any]:
        self._call(f"begin {name}")
        yield lambda fraction: self._call(f"{name}: {fraction:.2f}")
        self._call(f"end {name}")

    def note(self, text: str) -> None:
        self._call(f"note {text}")


#: Not quantised: there, llama.cpp calls back, and Python drops what is raised in a callback of C.
EXACT = ExportOptions(backbone="f32", threads=1)


@pytest.fixture(scope="module")
def calls(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All the calls of one export."""
    progress = Interrupted(at=0)
    target = tmp_path_factory.mktemp("whole") / "bundle"
    export(FetchedCheckpoint(toy_checkpoint, None, None), target, EXACT, progress)
    return progress.calls


def test_an_export_tells_its_steps(calls: list[str]):
    begun = [call.removeprefix("begin ") for call in calls if call.startswith("begin ")]
    assert begun == [
        "vision encoder to ONNX (fp32)",
        "backbone to GGUF (f32)",
        "reference vectors",
        "verifying the bundle",
    ]
    for step in begun[:2]:
        shares = [float(call.rpartition(": ")[2]) for call in calls if call.startswith(f"{step}: ")]
        assert shares == sorted(shares)
        assert shares[-1] == 1


@pytest.mark.parametrize(("share", "standing"), [(0.1, False), (0.5, True), (0.8, False), (1, True)])
def test_an_interrupted_export_leaves_all_as_it_was(
    toy_checkpoint: Path, toy_bundle: Path, tmp_path: Path, calls: list[str], share: float, standing: bool
):
    target = tmp_path / "a" / "bundle"
    if standing:
        shutil.copytree(toy_bundle, target)
    before = checksums(target) if standing else None
    at = 1 + round(share * (len(calls) - 1))
    progress = Interrupted(at)
    options = replace(EXACT, force=standing)
    with pytest.raises(KeyboardInterrupt):
        export(FetchedCheckpoint(toy_checkpoint, None, None), target, options, progress)
    assert progress.calls == calls[:at]
    if standing:
        assert checksums(target) == before
        assert list(target.parent.iterdir()) == [target]
    else:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", range(4))
def test_no_step_leaves_files_behind(toy_checkpoint: Path, tmp_path: Path, calls: list[str], number: int):
    at = 1 + [index for index, call in enumerate(calls) if call.startswith("begin ")][number]
    with pytest.raises(KeyboardInterrupt):
        export(
            FetchedCheckpoint(toy_checkpoint, None, None),
            tmp_path / "bundle",
            EXACT,
            Interrupted(at),
        )
    assert list(tmp_path.iterdir()) == []


# Refusals.


def refuse(checkpoint: Path, target: Path, kind: type[OneVisionError], wrong: str, **options: Any) -> None:
    with pytest.raises(kind, match=wrong) as caught:
        make_bundle(checkpoint, target, **options)
    assert caught.value.hint


def test_a_bundle_that_stands_there_is_not_replaced_unasked(toy_checkpoint: Path, tmp_path: Path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "mine").touch()
    refuse(toy_checkpoint, target, UsageError, "exists")
    with pytest.raises(UsageError, match="is not a bundle"):
        make_bundle(toy_checkpoint, target, force=True)
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_force_replaces_a_bundle(toy_checkpoint: Path, toy_bundle: Path, tmp_path: Path):
    target = shutil.copytree(toy_bundle, tmp_path / "bundle")
    (target / "prefill.onnx").touch()
    make_bundle(toy_checkpoint, target, backbone="f32", force=True)
    assert checksums(target) == checksums(toy_bundle)
    assert list(tmp_path.iterdir()) == [target]


def test_a_damaged_checkpoint_leaves_nothing(toy_checkpoint: Path, tmp_path: Path):
    checkpoint = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    edit_tensors(checkpoint, lambda tensors: tensors.pop("image_newline"))
    refuse(checkpoint, tmp_path / "bundle", CheckpointError, "image_newline")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


FAULTS = {
    "gate and up swapped": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "norms swapped": ("input_layernorm.weight", "post_attention_layernorm.weight"),
    "biases of keys and values swapped": ("self_attn.k_proj.bias", "self_attn.v_proj.bias"),
}


@pytest.mark.parametrize(("one", "other"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_conversion_never_becomes_a_bundle(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str
):
    names = backbone_module._LAYER_TENSORS
    swapped = {**names, one: names[other], other: names[one]}
    monkeypatch.setattr(backbone_module, "_LAYER_TENSORS", swapped)
    wrong = "differs from the reference: logits of the image case"
    refuse(toy_checkpoint, tmp_path / "bundle", ExportError, wrong, backbone="f32")
    assert list(tmp_path.iterdir()) == []


def test_a_language_model_too_large_for_the_memory_is_left_out_of_the_proof(
    toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_reference, "fits_in_memory", lambda checkpoint: False)
    progress = NoProgress()
    source = FetchedCheckpoint(toy_checkpoint, None, None)
    done = export(source, tmp_path / "bundle", ExportOptions(threads=1), progress)
    assert any("too large for this memory" in note for note in progress.notes)
    assert done.report.passed
    for case in load_golden(tmp_path / "bundle" / GOLDEN):
        assert case.logits is case.tokens is None
    stages = {stage.stage: stage.passed for stage in done.report.cases[0].stages}
    assert stages == {
        "prompt": True,
        "tiles": True,
        "image features": True,
        "visual tokens": True,
        "logits": None,
    }
    card = (tmp_path / "bundle" / CARD).read_text(encoding="utf-8")
    assert "visual tokens" in card
    assert json.loads((tmp_path / "bundle" / MANIFEST).read_text(encoding="utf-8"))["quality"]["verify"][
        "passed"
    ]


# Without the extra ``proof``.


@pytest.fixture
def unproven(toy_checkpoint: Path, tmp_path: Path) -> Path:
    """A bundle exported without torch."""
    progress, target = NoProgress(), tmp_path / "bundle"
    source = FetchedCheckpoint(toy_checkpoint, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onevision.extras.find_spec", lambda name: None if name == "torch" else name)
        done = export(source, target, ExportOptions(backbone="f32", threads=1), progress)
    assert done.report.passed is None
    assert [note for note in progress.notes if note.startswith("unproven: ")]
    return target


def test_an_unproven_bundle_says_so(unproven: Path, capsys: pytest.CaptureFixture[str]):
    manifest = manifest_of(unproven)
    assert manifest.quality == {"verify": {"passed": None, "cases": []}}
    assert GOLDEN not in manifest.files
    assert manifest.created_by.keys() == {"onevision", "gguf", "onnx"}
    assert "Unproven: " in (unproven / CARD).read_text(encoding="utf-8")
    assert _run(["inspect", str(unproven)]) == 0
    proves = f"onevision verify -m {unproven} --reference CHECKPOINT"
    assert f"unproven; {proves} --write proves it" in " ".join(capsys.readouterr().out.split())
    assert _run(["verify", "-m", str(unproven)]) == 1
    error = capsys.readouterr().err
    assert "no reference vectors" in error
    assert proves in error


def test_it_is_proven_later(toy_checkpoint: Path, toy_bundle: Path, unproven: Path):
    """And is then the bundle that an export with the extra writes; files of the user stay."""
    (unproven / "notes.txt").write_text("mine", encoding="utf-8")
    command = ["verify", "-m", str(unproven), "--reference", str(toy_checkpoint), "--threads", "1"]
    assert _run(command) == 0
    assert GOLDEN not in manifest_of(unproven).files, "without --write nothing is written"
    assert _run([*command, "--write"]) == 0
    assert (unproven / "notes.txt").read_text(encoding="utf-8") == "mine"
    (unproven / "notes.txt").unlink()
    assert checksums(unproven) == checksums(toy_bundle)
    assert list(unproven.parent.iterdir()) == [unproven]


def test_a_bundle_that_fails_is_not_marked(tmp_path: Path, unproven: Path):
    other = synthesize(tmp_path / "other", SynthSpec(seed=9))
    before = checksums(unproven)
    command = ["verify", "-m", str(unproven), "--reference", str(other), "--threads", "1", "--write"]
    assert _run(command) == 1
    assert checksums(unproven) == before


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--write"], "need --reference"),
        (["--reference", "x", "--write", "--prompt", "Hi"], "leave --image and --prompt out"),
    ],
)
def test_write_needs_the_standard_cases(
    toy_bundle: Path, words: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
):
    assert _run(["verify", "-m", str(toy_bundle), *words]) == 2
    assert wrong in capsys.readouterr().err


def test_vectors_beside_the_checkpoint_prove_without_torch(
    toy_checkpoint: Path, toy_bundle: Path, tmp_path: Path
):
    checkpoint = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    shutil.copy(toy_bundle / GOLDEN, checkpoint)
    source, progress = FetchedCheckpoint(checkpoint, None, None), NoProgress()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onevision.extras.find_spec", lambda name: None if name == "torch" else name)
        done = export(source, tmp_path / "bundle", ExportOptions(backbone="f32", threads=1), progress)
    assert done.report.passed
    assert not any("unproven" in note for note in progress.notes)
    assert manifest_of(tmp_path / "bundle").quality["verify"] == manifest_of(toy_bundle).quality["verify"]
    assert "torch" not in manifest_of(tmp_path / "bundle").created_by
