"""The proof: it passes for a good bundle, and names the stage of whatever is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onevision import OneVision
from onevision.bundle import BACKBONE, GOLDEN, MANIFEST, NEWLINE, VISION_DATA
from onevision.cli import _run
from onevision.proof.golden import load_golden, save_golden
from onevision.proof.verify import LOGITS_TOLERANCE, Report, verify
from tests.conftest import make_bundle, replace_file
from tests.runtime.media import decode_all, photograph

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.proof.golden import Rows

VISUAL_STAGES = ("prompt", "tiles", "image features", "visual tokens", "logits", "greedy tokens")


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def prove(bundle: Path) -> Report:
    with OneVision.load(bundle, device="cpu", threads=1) as model:
        return verify(model, load_golden(bundle / GOLDEN))


def failed(report: Report) -> dict[str, list[str]]:
    """Stages that failed, by case."""
    return {
        case.name: [stage.stage for stage in case.stages if stage.passed is False]
        for case in report.cases
        if not case.passed
    }


def test_a_good_bundle_passes_every_stage(toy_bundle: Path):
    told: list[str] = []
    with OneVision.load(toy_bundle, device="cpu", threads=1) as model:
        report = verify(model, load_golden(toy_bundle / GOLDEN), told.append)
    assert told == ["image", "images", "video", "text"]
    assert report.passed
    for case in report.cases:
        names = tuple(stage.stage for stage in case.stages)
        assert names == (("prompt", "logits", "greedy tokens") if case.name == "text" else VISUAL_STAGES)
        for stage in case.stages:
            assert stage.passed is True
            assert stage.max_error is not None
            if stage.relative_error is not None and stage.tolerance is not None:
                assert 0 <= stage.relative_error < stage.tolerance / 10
    data = report.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == json.loads(json.dumps(data))


def test_what_verify_found_at_export_is_what_it_finds_now(toy_bundle: Path):
    manifest = json.loads((toy_bundle / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["quality"]["verify"] == json.loads(json.dumps(prove(toy_bundle).to_dict()))


# Faults. Each is a bundle whose checksums agree, so that nothing but the proof can find it.


def change_floats(bundle: Path, name: str, start: int, count: int, change: Callable[[Any], Any]) -> None:
    data = bytearray((bundle / name).read_bytes())
    values = np.frombuffer(bytes(data), np.float32, count, start)
    data[start : start + 4 * count] = np.asarray(change(values.copy()), np.float32).tobytes()
    replace_file(bundle, name, bytes(data))


def change_manifest(bundle: Path, section: str, **values: Any) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    manifest[section] |= values
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def change_newline(bundle: Path, change: Callable[[Any], Any]) -> None:
    newline = change(np.load(bundle / NEWLINE))
    np.save(bundle / NEWLINE, newline.astype(np.float32))
    replace_file(bundle, NEWLINE, (bundle / NEWLINE).read_bytes())


def gguf_offset(bundle: Path, tensor: str) -> int:
    """Where a tensor's values begin in the backbone's file."""
    from gguf import GGUFReader

    reader = GGUFReader(bundle / BACKBONE)
    return int(next(item.data_offset for item in reader.tensors if item.name == tensor))


def change_backbone(bundle: Path, tensor: str, change: Callable[[Any], Any], count: int = 128) -> None:
    change_floats(bundle, BACKBONE, gguf_offset(bundle, tensor), count, change)


#: What is changed, and the first stage that must fail in each case; None where a case does not notice.
FAULTS: dict[str, tuple[Callable[[Path], None], dict[str, str | None]]] = {
    "a weight of the encoder": (
        lambda bundle: change_floats(bundle, VISION_DATA, 4096, 64, lambda values: values + 0.05),
        {"image": "image features", "images": "image features", "video": "image features", "text": None},
    ),
    "the newline": (
        lambda bundle: change_newline(bundle, lambda newline: newline * 1.1),
        {"image": "visual tokens", "images": "visual tokens", "video": "visual tokens", "text": None},
    ),
    "the order in the newline": (
        lambda bundle: change_newline(bundle, lambda newline: np.roll(newline, 1)),
        {"image": "visual tokens", "images": "visual tokens", "video": "visual tokens", "text": None},
    ),
    "a bias of the backbone": (
        lambda bundle: change_backbone(bundle, "blk.0.attn_q.bias", lambda values: values + 0.5),
        {"image": "logits", "images": "logits", "video": "logits", "text": "logits"},
    ),
    "a norm of the backbone": (
        lambda bundle: change_backbone(bundle, "output_norm.weight", lambda values: values * 1.01),
        {"image": "logits", "images": "logits", "video": "logits", "text": "logits"},
    ),
    "values that are none": (
        lambda bundle: change_backbone(bundle, "blk.1.ffn_norm.weight", lambda values: values * np.nan),
        {"image": "logits", "images": "logits", "video": "logits", "text": "logits"},
    ),
    "the grids": (
        lambda bundle: change_manifest(bundle, "vision", grid_pinpoints=[[112, 112]]),
        {"image": "tiles", "images": None, "video": None, "text": None},
    ),
    "the bound on tiles": (
        lambda bundle: change_manifest(bundle, "vision", aspect_ratio="anyres_max_1"),
        {"image": "visual tokens", "images": None, "video": None, "text": None},
    ),
    "the scale of pixels": (
        lambda bundle: change_manifest(bundle, "vision", mean=[0.48, 0.46, 0.41]),
        {"image": "image features", "images": "image features", "video": "image features", "text": None},
    ),
    "the system prompt": (
        lambda bundle: change_manifest(bundle, "prompt", system="You are a pirate."),
        {"image": "prompt", "images": "prompt", "video": "prompt", "text": "prompt"},
    ),
}


@pytest.mark.parametrize(("fault", "first"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_where_it_is(
    bundle: Path, fault: Callable[[Path], None], first: dict[str, str | None]
):
    fault(bundle)
    report = prove(bundle)
    assert not report.passed
    found = failed(report)
    assert {name: found.get(name, [None])[0] for name in first} == first
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_command_fails_and_names_the_stage(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert _run(["verify", "-m", str(bundle), "--device", "cpu", "--threads", "1"]) == 0
    assert "FAIL" not in capsys.readouterr().out
    change_newline(bundle, lambda newline: newline * 2)
    command = ["verify", "-m", str(bundle), "--device", "cpu", "--threads", "1"]
    assert _run([*command, "--check"]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert "visual tokens" in rows[0]
    assert _run([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    image = next(case for case in report["cases"] if case["name"] == "image")
    assert next(stage["stage"] for stage in image["stages"] if not stage["passed"]) == "visual tokens"


# Faults in what the reference says show that each figure is looked at.


def at(place: int, shape: int | tuple[int, ...]) -> Any:
    """Zeros with a one at a place, counted through all axes."""
    return (np.arange(np.prod(shape)) == place).reshape(shape)


def swapped(rows: Rows) -> Rows:
    return replace(rows, values=rows.values[[1, 0, *range(2, len(rows.values))]])


def lengthened(rows: Rows, row: int) -> Rows:
    return replace(rows, norms=rows.norms * (1 + at(row, len(rows.norms))))


ALTERED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "an id": ("prompt_ids", lambda ids: ids + at(3, len(ids))),
    "an id too few": ("prompt_ids", lambda ids: ids[:-1]),
    "one level of one pixel": ("tiles", lambda tiles: tiles ^ at(77, tiles.shape)),
    "a tile too many": ("tiles", lambda tiles: np.concatenate([tiles, tiles[:1]])),
    "two features swapped": ("features", swapped),
    "a feature too few": ("features", lambda rows: replace(rows, norms=rows.norms[:-1])),
    "two visual tokens swapped": ("embeddings", swapped),
    "the norm of a visual token": ("embeddings", lambda rows: lengthened(rows, 20)),
    "a logit": ("logits", lambda logits: logits + 3 * at(9, len(logits))),
    "logits of another vocabulary": ("logits", lambda logits: logits[:-1]),
    "a token": ("tokens", lambda tokens: tokens + at(31, len(tokens))),
    "a token too few": ("tokens", lambda tokens: tokens[:-1]),
}
STAGES = {
    "prompt_ids": "prompt",
    "tiles": "tiles",
    "features": "image features",
    "embeddings": "visual tokens",
    "logits": "logits",
    "tokens": "greedy tokens",
}


@pytest.mark.parametrize(("key", "alter"), ALTERED.values(), ids=ALTERED)
def test_every_figure_of_the_reference_counts(toy_bundle: Path, key: str, alter: Callable[[Any], Any]):
    case = load_golden(toy_bundle / GOLDEN)[0]
    value = alter(getattr(case, key))
    if isinstance(value, np.ndarray):
        value = value.astype(getattr(case, key).dtype)
    with OneVision.load(toy_bundle, device="cpu", threads=1) as model:
        report = verify(model, [replace(case, **{key: value})])
    assert failed(report) == {"image": [STAGES[key]]}


def test_a_reference_without_the_language_model_says_so(bundle: Path):
    cases = [replace(case, logits=None, tokens=None) for case in load_golden(bundle / GOLDEN)]
    save_golden(bundle / GOLDEN, cases)
    replace_file(bundle, GOLDEN, (bundle / GOLDEN).read_bytes())
    report = prove(bundle)
    assert report.passed
    for case in report.cases:
        last = case.stages[-1]
        assert (last.stage, last.passed) == ("logits", None)
        assert "too large" in last.note


@pytest.mark.parametrize(
    ("vision", "backbone"), [("fp32", "f16"), ("fp32", "q8_0"), ("fp16", "f32"), ("fp32", "q4_0")]
)
def test_lossy_precisions_are_judged_by_their_own_tolerance(
    toy_checkpoint: Path, tmp_path: Path, vision: str, backbone: str
):
    report = prove(make_bundle(toy_checkpoint, tmp_path / "bundle", vision=vision, backbone=backbone))
    assert report.passed
    for case in report.cases:
        stages = {stage.stage: stage for stage in case.stages}
        assert stages["greedy tokens"].passed is None  # told, not judged
        limit = stages["logits"].tolerance
        assert limit is not None
        assert limit >= LOGITS_TOLERANCE.get(backbone, 0.5)
        error = stages["logits"].relative_error
        assert error is not None
        assert 0 < error <= limit


def test_the_reference_runs_live_on_photographs_and_a_video(
    toy_checkpoint: Path, toy_bundle: Path, clip: Path
):
    from onevision.export.checkpoint import Checkpoint
    from onevision.export.tokenizer import read_tokenizer
    from onevision.proof.reference import Reference

    pictures = [np.asarray(photograph(name)) for name in ("china", "hopper")]
    frames = np.stack([np.asarray(frame) for frame in decode_all(clip)])
    with Checkpoint.open(toy_checkpoint) as checkpoint:
        never_sampled = read_tokenizer(toy_checkpoint, checkpoint.config).never_sampled
        reference = Reference(checkpoint, never_sampled=never_sampled)
        cases = [
            reference.case("one", "What is it?", images=pictures[:1]),
            reference.case("two", "Which is older?", images=pictures),
            reference.case("clip", "What happens?", video=frames),
            reference.case("nothing", "Why?"),
        ]
    with OneVision.load(toy_bundle, device="cpu", threads=1) as model:
        report = verify(model, cases)
    assert report.passed, failed(report)
