"""The scripts of ``/benchmarks`` run. No test looks at how fast anything is."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from onevision.bundle import BACKBONE

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, capsys: pytest.CaptureFixture[str], *arguments: Any, **options: Any) -> str:
    runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"](*arguments, **options)
    return capsys.readouterr().out


def test_cache(toy_bundle: Path, capsys: pytest.CaptureFixture[str]):
    found = json.loads(run("cache", capsys, toy_bundle, rounds=1, pairs=2, threads=1))
    slow_disk = found.pop("a disk that takes a second, over none")
    assert slow_disk["clock"] > 0
    assert list(found) == ["in memory", "new process, --cache DIR"]
    assert all(one["first"] > 0 and one["second"] > 0 for one in found.values())


def test_video(capsys: pytest.CaptureFixture[str]):
    found = json.loads(run("video", capsys, minutes=0.1, frames=2, gop=30, rounds=1))
    assert found["frames"] == 180
    assert found["ratio"] == pytest.approx(found["read"] / found["decoded whole"], rel=0.05)


def test_backbones(toy_bundle: Path, capsys: pytest.CaptureFixture[str]):
    options: dict[str, Any] = {"types": "f16,q8_0", "tokens": 40, "rounds": 1, "threads": 1}
    lines = run("backbones", capsys, toy_bundle / BACKBONE, **options).splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["type"] for row in rows] == ["f16", "q8_0"]
    assert rows[0]["bytes"] > rows[1]["bytes"]


def test_encoder(toy_bundle: Path, capsys: pytest.CaptureFixture[str]):
    table = run("encoder", capsys, toy_bundle, toy_bundle, threads=1, runs=2, tiles=2)
    (ours,) = [line for line in table.splitlines() if line.startswith("| onevision int8")]
    assert " 1.00000 " in ours, "the same bundle twice"


def test_prefill(toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tests.conftest import make_bundle

    bundle = make_bundle(toy_checkpoint, tmp_path / "bundle", backbone="f32", prefill="fp32", prove=False)
    found = json.loads(run("prefill", capsys, bundle, tokens="40,80", rounds=1, threads=1))
    assert set(found["40"]["median_ms"]) == set(found["80"]["median_ms"]) == {"onnx", "llama"}
    assert found["warnings"] == []


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_described_and_listed(path: Path):
    assert f"python benchmarks/{path.name}" in path.read_text(encoding="utf-8")
    assert f"benchmarks/{path.name}" in (SCRIPTS / "README.md").read_text(encoding="utf-8")


def test_forms(toy_bundle: Path, capsys: pytest.CaptureFixture[str]):
    script = runpy.run_path(str(SCRIPTS / "forms.py"))
    script["masks"](toy_bundle)
    script["answers"](toy_bundle, rounds=1, tokens=8, threads=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[1:5]] == [
        "object, llguidance", "object, GBNF", "any JSON, llguidance", "any JSON, GBNF"
    ]  # fmt: skip
    assert [line.partition(":")[0] for line in lines[5:]] == ["free", "schema", "regex"]


def test_forms_against_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A keyword that is kept to, one that is refused by name, and one that llama.cpp's converter ignores."""
    groups = [
        {"schema": {"type": "array", "items": {"type": "null"}}, "tests": [{"data": [None], "valid": True}]},
        {"schema": {"type": "array", "uniqueItems": True, "items": {"type": "null"}}, "tests": [
            {"data": [None, None], "valid": False}
        ]},
    ]  # fmt: skip
    named = [{"description": "", **group} for group in groups]
    (tmp_path / "arrays.json").write_text(json.dumps(named), encoding="utf-8")
    runpy.run_path(str(SCRIPTS / "forms.py"))["suite"](tmp_path)
    ours, theirs = capsys.readouterr().out.splitlines()
    assert ours == "llguidance {'kept to': 1, 'refused': 1}"
    assert theirs == "GBNF {'kept to': 1, 'wrong': 1}"
