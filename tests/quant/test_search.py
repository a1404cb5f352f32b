"""``onevision quant apply`` and a measured ``export``: what passes is written, what does not is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

import onevision
from onevision.bundle import BACKBONE, PREFILL, VISION, VISION_DATA, open_bundle
from onevision.errors import ExportError, QuantError
from onevision.eval.questions import tiny_suite
from onevision.eval.suite import FAMILIES
from onevision.export.build import ExportOptions
from onevision.export.hub import FetchedCheckpoint
from onevision.export.synth import SynthSpec, synthesize
from onevision.quant import candidates as candidates_module
from onevision.quant import imatrix as imatrix_module
from onevision.quant import search as search_module
from onevision.quant.candidates import Candidate, GateConfig, Quantizer
from onevision.quant.gates import Thresholds
from onevision.quant.search import AUTO, Quantized, export_quantized, needs_gate
from onevision.quant.search import quantize as search
from onevision.runtime.vision import VisionEncoder
from tests.conftest import NoProgress, make_bundle, replace_file
from tests.runtime.media import photograph
from tests.test_cli import parsed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.test_cli import Cli

FEW = ("--limit", 4, "--threads", 1)
LAX = Thresholds(cosine=0.9, relative_error=0.4, mean_kl=9, p99_kl=99, top1=0, accuracy_drop=1, family_drop=1)


def quantize(source: Path, target: Path, **options: Any) -> Quantized:
    """Quantize with few questions, and without an importance matrix."""
    few = {"questions": tiny_suite(limit=4), "imatrix": False, "threads": 1, "progress": NoProgress()}
    return search(source, target, **few | options)


# Named precisions.


def test_a_bundle_that_passes(cli: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    words = ("--vision", "fp16", "--backbone", "f16", *FEW)
    status, out, err = cli("quant", "apply", toy_bundle, "small", *words, "--json")
    done = parsed(out)
    assert (status, done["bundle"]) == (0, "small")
    bundle = open_bundle(tmp_path / "small", check=True)
    assert done["bytes"] == bundle.bytes
    assert done["verify"]["passed"]
    gate = done["gate"]
    assert (gate["vision"], gate["backbone"], gate["imatrix"], gate["rejected"]) == ("fp16", "f16", False, [])
    kept = bundle.manifest.quality["gate"]
    assert kept.items() >= json.loads(json.dumps(gate["quality"])).items()
    assert kept["passed"]
    assert kept["reference"] == "fp32 + f32"
    assert kept["thresholds"] == {
        "cosine": 0.999, "relative_error": 0.045, "mean_kl": 0.02, "p99_kl": 0.2, "top1": 0.97,
        "accuracy_drop": 0.01, "family_drop": 0.02, "chance": 0.05,
    }  # fmt: skip
    assert kept["features"]["cosine"] >= 0.999
    assert (kept["tokens"]["samples"], kept["answers"]["n"]) == (2, 4)
    assert "encoder" not in bundle.manifest.quality, "nothing was calibrated"
    assert "mean KL" in (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert "✓ vision encoder in fp16" in err
    status, out, _ = cli("inspect", "small")
    assert status == 0
    assert "passed against fp32 + f32: cosine of the worst tile " in out
    assert "mean KL" in out
    assert "(at most 0.02)" in out


def test_a_bundle_that_fails_is_not_written(cli: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    words = ("quant", "apply", toy_bundle, "small", "--vision", "fp32", "--backbone", "q2_k", *FEW)
    status, out, err = cli(*words, "--no-imatrix")
    assert (status, out) == (1, "")
    error, hint = err.splitlines()[-2:]
    assert error.startswith("error: fp32 + q2_k fails the quality gate: ")
    assert "below 97%" in error
    assert "--force" in hint
    assert list(tmp_path.iterdir()) == []
    status, out, err = cli(*words, "--no-imatrix", "--force")
    assert (status, out.split()[0]) == (0, "small")
    assert "warning: small fails the quality gate: " in err
    gate = open_bundle(tmp_path / "small", check=True).manifest.quality["gate"]
    assert not gate["passed"]
    assert gate["reasons"]
    assert "FAILED against fp32 + f32" in cli("inspect", "small")[1]


def test_the_source_is_as_it_was(toy_bundle: Path, tmp_path: Path) -> None:
    before = (toy_bundle / "onevision.json").read_bytes()
    done = quantize(toy_bundle, tmp_path / "same", vision="fp32", backbone="f32")
    assert done.quality.tokens is not None
    assert done.quality.tokens.mean_kl == 0
    assert (toy_bundle / "onevision.json").read_bytes() == before
    assert open_bundle(toy_bundle, check=True).damage(checksums=True) == []


def test_a_bundle_that_verify_refuses(toy_bundle: Path, tmp_path: Path) -> None:
    """A backbone that is not the one of the reference vectors: the gate compares it with itself."""
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    reader = gguf.GGUFReader(copy / BACKBONE, "r+")
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
    tensor.data[: len(tensor.data) // 2] *= -1
    reader.data.flush()
    del reader, tensor  # they map the file
    replace_file(copy, BACKBONE, (copy / BACKBONE).read_bytes())
    with pytest.raises(QuantError, match="fails the quality gate: verify: logits of the image case"):
        quantize(copy, tmp_path / "small", vision="fp32", backbone="f16")
    assert not (tmp_path / "small").exists()


def test_how_many_questions(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(toy_bundle)
    assert len(GateConfig(tiny_suite(limit=7)).questions_for(bundle)) == 7
    assert len(GateConfig(limit=5).questions_for(bundle)) == 5
    assert len(GateConfig().questions_for(bundle)) == 50 * len(FAMILIES)
    monkeypatch.setattr(candidates_module, "SMALL_BYTES", bundle.bytes - 1)
    assert len(GateConfig().questions_for(bundle)) == 4 * len(FAMILIES)


def test_an_encoder_sees_each_image_once(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = VisionEncoder.encode

    def counted(self: VisionEncoder, pixels: Any, *more: Any) -> Any:
        seen.append(len(pixels))
        return encode(self, pixels, *more)

    monkeypatch.setattr(VisionEncoder, "encode", counted)
    config = GateConfig(tiny_suite(("colour", "same"), limit=4), thresholds=LAX, threads=1)
    quantizer = Quantizer(open_bundle(toy_bundle), tmp_path, config, NoProgress())
    for number, candidate in enumerate(
        (Candidate("fp32", "f16"), Candidate("fp16", "f16"), Candidate("fp16", "q8_0"))
    ):
        (tmp_path / str(number)).mkdir()
        quality = quantizer.measure(quantizer.make(candidate, tmp_path / str(number)))
        assert quality.answers is not None
        tiles = sum(seen)
        seen.clear()
        assert bool(tiles) == (number < 2), "the reference's, then those in fp16, then those again"


# What auto finds.


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that is smaller in int8 than in fp16; the plain one is mostly embeddings, which stay fp32."""
    folder = tmp_path_factory.mktemp("wide")
    checkpoint = synthesize(folder / "checkpoint", SynthSpec(vision_intermediate=512))
    return make_bundle(checkpoint, folder / "bundle", backbone="f32")


def test_auto_takes_the_smallest_that_passes(wide_bundle: Path, tmp_path: Path) -> None:
    progress = NoProgress()
    done = quantize(wide_bundle, tmp_path / "lax", progress=progress, thresholds=LAX)
    assert done.candidate == Candidate("int8", "q4_0-pure")
    assert done.rejected == ()
    assert done.bundle.manifest.quality["encoder"]["cosine"] >= 0.999
    assert [note.split(",")[0] for note in progress.notes] == [
        "int8 + f32 passes",
        "int8 + q4_0-pure passes",
    ]


def test_auto_says_what_it_rejected_and_why(cli: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    status, out, err = cli("quant", "apply", toy_bundle, "small", "--no-imatrix", *FEW, "--json")
    gate = parsed(out)["gate"]
    assert status == 0
    assert gate["quality"]["passed"]
    rejected = [each for each in gate["rejected"] if each["vision"] == gate["vision"]]
    names = [each["backbone"] for each in rejected]
    assert names[0] == "q4_0-pure", "of random weights, four bits leave nothing"
    assert {*names, gate["backbone"]} <= {*AUTO, "f16", "f32"}
    sizes = [each["bytes"] for each in rejected]
    assert sizes == sorted(sizes)
    assert all(each["reasons"] for each in rejected)
    assert [f"{gate['vision']} + {name} is rejected: " in err for name in names] == [True] * len(names)
    assert open_bundle(tmp_path / "small").manifest.files[BACKBONE].precision == gate["backbone"]


def test_auto_knows_the_sizes_before_it_tries(toy_bundle: Path, tmp_path: Path) -> None:
    """With a gate that nothing passes but the floats themselves, all are tried, the smallest first."""
    done = quantize(toy_bundle, tmp_path / "out", vision="fp32", thresholds=Thresholds(mean_kl=0))
    assert done.candidate == Candidate("fp32", "f32")
    assert {each.candidate.backbone for each in done.rejected} == {*AUTO, "f16"}
    sizes = [each.bytes for each in done.rejected]
    assert sizes == sorted(sizes)


def test_auto_goes_on_where_one_cannot_be_made(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Quantizer._encoder

    def refuse(self: Quantizer, precision: Any) -> Any:
        if precision != "fp32":
            raise ExportError(f"no {precision} today")
        return make(self, precision)

    monkeypatch.setattr(Quantizer, "_encoder", refuse)
    done = quantize(toy_bundle, tmp_path / "out", backbone="f16")
    assert done.candidate == Candidate("fp32", "f16")
    assert [each.reasons for each in done.rejected] == [("no int8 today",), ("no fp16 today",)]
    assert [each.bytes for each in done.rejected] == [None, None]


def test_auto_wants_no_int8_that_is_larger_than_fp16(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Quantizer._encoder

    def keep_all(self: Quantizer, precision: Any) -> Any:
        return make(self, "fp32" if precision == "int8" else precision)

    monkeypatch.setattr(Quantizer, "_encoder", keep_all)
    done = quantize(toy_bundle, tmp_path / "out", backbone="f16", thresholds=LAX)
    assert done.candidate == Candidate("fp16", "f16")
    ((reason,),) = [each.reasons for each in done.rejected]
    assert reason.startswith("with the matmuls that have to stay in fp32, its encoder takes ")
    asked_for = quantize(toy_bundle, tmp_path / "int8", vision="int8", backbone="f16", thresholds=LAX)
    assert asked_for.candidate == Candidate("int8", "f16")


def test_an_encoder_that_fails_is_not_tried_with_every_backbone(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Quantizer.measure

    def worse(self: Quantizer, bundle: Any, **options: Any) -> Any:
        return replace(measure(self, bundle, **options), reasons=("the features are bad",))

    monkeypatch.setattr(Quantizer, "measure", worse)
    with pytest.raises(QuantError, match=r"int8 \+ f32 fails the quality gate: the features are bad"):
        quantize(toy_bundle, tmp_path / "out", vision="int8")
    assert list(tmp_path.iterdir()) == []


# Importance matrices.


def test_an_importance_matrix_of_a_file(
    cli: Cli, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imatrix_module, "POSITIONS", 64)
    status, out, _ = cli("quant", "imatrix", toy_bundle, "toy.gguf", "--threads", 1, "--json")
    assert status == 0
    assert parsed(out) == {
        "onevision": onevision.__version__,
        "imatrix": "toy.gguf", "matrices": 15, "bytes": (tmp_path / "toy.gguf").stat().st_size,
    }  # fmt: skip
    backbones = []
    words = ("--vision", "fp32", "--backbone", "q4_0", "--force", *FEW)
    for name, more in (("file", ("--imatrix", "toy.gguf")), ("none", ("--no-imatrix",))):
        assert cli("quant", "apply", toy_bundle, name, *words, *more)[0] == 0
        backbones.append((tmp_path / name / BACKBONE).read_bytes())
        gate = open_bundle(tmp_path / name).manifest.quality["gate"]
        assert gate["imatrix"] is (name != "none")
    assert backbones[0] != backbones[1]


def test_without_a_word_both_are_tried(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imatrix_module, "POSITIONS", 64)
    options: dict[str, Any] = {"vision": "fp32", "backbone": "q4_0", "imatrix": None, "force": True}
    strict = Thresholds(mean_kl=0)
    done = quantize(toy_bundle, tmp_path / "strict", thresholds=strict, **options)
    assert (done.candidate.imatrix, [each.candidate.imatrix for each in done.rejected]) == (False, [True])
    done = quantize(toy_bundle, tmp_path / "lax", thresholds=LAX, **options)
    assert (done.candidate.imatrix, done.rejected) == (True, ())


# Calibration.


def test_one_unreadable_image_among_good_ones(cli: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photograph("china").save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    words = ("--vision", "int8", "--backbone", "f16", "--calibration", "photos", "--force", *FEW)
    status, _, err = cli("quant", "apply", toy_bundle, "small", *words)
    assert status == 0
    assert "calibration: skipped: " in err
    assert "bad.png" in err
    encoder = open_bundle(tmp_path / "small").manifest.quality["encoder"]
    assert (encoder["images"], encoder["calibration"]) == (1, "photos")


# What is refused.


def quantized(bundle: Path) -> None:
    path = bundle / "onevision.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["files"][BACKBONE]["precision"] = "q8_0"
    path.write_text(json.dumps(manifest), encoding="utf-8")


def blind(bundle: Path) -> None:
    """An encoder whose patches are all the same: of each image it says the same."""
    import onnx
    from onnx import external_data_helper

    model = onnx.load(bundle / VISION)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.raw_data = bytes(len(tensor.raw_data))
    data = bundle / VISION_DATA
    data.unlink()
    external_data_helper.convert_model_to_external_data(model, location=VISION_DATA, size_threshold=1024)
    onnx.save(model, bundle / VISION)
    for name in (VISION, VISION_DATA):
        replace_file(bundle, name, (bundle / name).read_bytes())


def not_finite(bundle: Path) -> None:
    weights = np.fromfile(bundle / VISION_DATA, np.float32)
    weights[-1] = np.nan
    replace_file(bundle, VISION_DATA, weights.tobytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantized, r"copy is quantized already \(fp32 \+ q8_0\)"),
        (blind, "image features of .* are the same for all images"),
        (not_finite, "not finite"),
    ],
)
@pytest.mark.parametrize("vision", ["int8", "auto"])
def test_sources_that_cannot_be_quantized(
    change: Any, message: str, vision: Any, toy_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    change(copy)
    with pytest.raises(QuantError, match=message):
        quantize(copy, tmp_path / "small", vision=vision)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        ("{toy} new --vision int9", 2, "--vision is 'int9', it must be one of fp32, fp16, int8, auto"),
        ("{toy} new --backbone q4", 2, "--backbone is 'q4', it must be one of f32"),
        ("{toy} taken", 2, "taken exists"),
        ("{toy} new --calibration absent", 1, "no calibration folder at absent"),
        ("{toy} new --calibration empty", 1, "the calibration folder empty is empty"),
        ("{toy} new --calibration texts", 1, "none of the 1 files in texts is an image"),
        ("{toy} new --imatrix absent.gguf", 1, "cannot read absent.gguf"),
        ("{toy} new --imatrix texts/a.txt", 1, "texts/a.txt is damaged, or no GGUF file"),
        ("{toy} new --imatrix texts/a.txt --no-imatrix", 2, "contradict each other"),
        ("{toy} new --questions absent.jsonl", 1, "absent.jsonl"),
        ("{half} new --vision fp32", 2, "half has fp16: fp32 would be larger and no better"),
        ("absent new", 1, "no bundle at absent"),
    ],
)
def test_words_that_are_wrong(
    words: str, status: int, error: str, cli: Cli, toy_bundle: Path, toy_checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("empty", "texts", "taken"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "a.txt").write_text("no image", encoding="utf-8")
    if "{half}" in words:
        make_bundle(toy_checkpoint, tmp_path / "half", vision="fp16", backbone="f16")
    given = words.format(toy=toy_bundle, half="half").split()
    code, out, err = cli("quant", "apply", *given, *FEW)
    assert (code, out) == (status, "")
    assert error in next(line for line in err.splitlines() if line.startswith("error: "))
    assert not (tmp_path / "new").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# From a checkpoint.


@pytest.mark.parametrize(
    ("vision", "backbone", "measured"),
    [
        ("fp32", "q8_0", False),
        ("fp16", "bf16", False),
        ("fp32", "q4_0", True),
        ("int8", "f16", True),
        ("auto", "q8_0", True),
        ("fp32", "auto", True),
    ],
)
def test_what_is_measured(vision: str, backbone: str, measured: bool) -> None:
    assert needs_gate(vision, backbone) is measured


def test_from_a_checkpoint_it_is_the_same(toy_bundle: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    config = GateConfig(tiny_suite(limit=4), imatrix=False, threads=1)
    source = FetchedCheckpoint(toy_checkpoint, None, None)
    options = ExportOptions(size="toy", threads=1, force=True)
    done = export_quantized(
        source, tmp_path / "a" / "b", options, config, NoProgress(), vision="int8", backbone="q4_0"
    )
    bundle = open_bundle(tmp_path / "a" / "b", check=True)
    assert done.bundle.folder == bundle.folder
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["b"]
    manifest = bundle.manifest
    assert (manifest.size, manifest.name, "torch" in manifest.created_by) == ("toy", "checkpoint", True)
    assert (manifest.files[VISION].precision, manifest.files[BACKBONE].precision) == ("int8", "q4_0")
    other = quantize(toy_bundle, tmp_path / "other", vision="int8", backbone="q4_0", force=True).bundle
    for name in (VISION, VISION_DATA):
        assert bundle.path(name).read_bytes() == other.path(name).read_bytes()


def test_export_that_fails_its_gate(cli: Cli, toy_checkpoint: Path, tmp_path: Path) -> None:
    words = ("export", "--source", toy_checkpoint, "-o", "out", "--vision", "fp32", "--backbone", "q2_k")
    words += ("--no-imatrix", *FEW)
    status, out, err = cli(*words)
    assert (status, out) == (1, "")
    assert "fp32 + q2_k fails the quality gate" in err
    assert list(tmp_path.iterdir()) == []


def test_export_that_measures_nothing(cli: Cli, toy_checkpoint: Path) -> None:
    status, _, err = cli("export", "--source", toy_checkpoint, "--vision", "fp32", "--limit", 4)
    assert status == 2
    assert "are for the quality gate" in err


def test_the_default_is_fast_and_asks_nothing(
    cli: Cli, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's encoder is smaller in fp16 than in int8 with all that has to stay finer."""
    monkeypatch.setattr(candidates_module, "record_reference", None)
    status, out, err = cli("export", "--source", toy_checkpoint, "-o", "out", "--threads", 1, "--json")
    done = parsed(out)
    assert (status, done["verify"]["passed"]) == (0, True)
    assert "fast precisions: " in err
    manifest = open_bundle(tmp_path / "out", check=True).manifest
    precisions = [manifest.files[name].precision for name in (VISION, BACKBONE, PREFILL)]
    assert precisions == ["fp16", "q8_0", "int8"]
    (rejected,) = done["gate"]["rejected"]
    assert (rejected["vision"], "in fp16" in rejected["reasons"][0]) == ("int8", True)
    assert "gate" not in manifest.quality, "nothing was measured"


def test_features_alone_can_be_judged(toy_checkpoint: Path, tmp_path: Path) -> None:
    source, options = FetchedCheckpoint(toy_checkpoint, None, None), ExportOptions(threads=1)
    config = GateConfig((), threads=1)
    done = export_quantized(
        source, tmp_path / "out", options, config, NoProgress(), vision="int8", backbone="q8_0"
    )
    assert done.candidate.name == "int8 + q8_0"
    gate = open_bundle(tmp_path / "out", check=True).manifest.quality["gate"]
    assert gate["passed"]
    assert gate["features"]["cosine"] >= 0.999
    assert {"tokens", "answers"} & set(gate) == set()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"vision": "fp32", "prefill": None}, ("fp32", "q8_0", None)),
        ({"exporter": "optimum", "prefill": None}, ("fp32", "q8_0", None)),
        ({"backbone": "q4_0", "limit": 2, "imatrix": False, "force": True}, ("int8", "q4_0", "int8")),
    ],
    ids=["all named", "optimum", "a coarse backbone"],
)
def test_each_default_can_be_replaced(
    toy_checkpoint: Path, tmp_path: Path, options: dict[str, Any], expected: tuple[str | None, ...]
) -> None:
    onevision.export(toy_checkpoint, tmp_path / "out", threads=1, progress=NoProgress(), **options)
    files = open_bundle(tmp_path / "out").manifest.files
    assert (
        tuple(files[name].precision if name in files else None for name in (VISION, BACKBONE, PREFILL))
        == expected
    )


def test_an_export_needs_room(toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_needed_bytes", lambda *_, **__: 1 << 60)
    with pytest.raises(ExportError, match="not enough disk space"):
        onevision.export(toy_checkpoint, tmp_path / "out", progress=NoProgress())
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(
    cli: Cli, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Quantizer, "measure", stop)
    status, out, err = cli("quant", "apply", toy_bundle, "new/small", "--vision", "int8", *FEW)
    assert (status, out, err.splitlines()[-1]) == (130, "", "error: interrupted")
    assert list(tmp_path.iterdir()) == []
