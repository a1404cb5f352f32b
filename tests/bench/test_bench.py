"""``onevision bench`` from end to end, on a toy. No test looks at how fast it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from onevision.bench import benchmark, roofline
from onevision.bench.matmul import MatmulSize
from onevision.bench.report import unaccounted
from onevision.bench.result import read_result
from onevision.cli import _run
from onevision.runtime.clock import STAGES

if TYPE_CHECKING:
    from pathlib import Path

SCENARIOS = ("text", "multi-4", "followup", "video-8")


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch):
    measure = roofline.measure
    size = MatmulSize(4, 32, 4)
    monkeypatch.setattr(
        roofline,
        "measure",
        lambda **options: measure(**options | {"seconds": 0.0, "size": size, "memory": 1 << 16}),
    )


def test_a_bench_from_end_to_end(
    toy_bundle: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "result.json"
    chosen = [word for name in SCENARIOS for word in ("--scenario", name)]
    words = ["bench", "-m", toy_bundle, *chosen, "--file", photo, "--runs", 1, "--threads", 1]
    words += ["--template", "hf", "--system", "Be brief."]
    assert _run([*map(str, words), "--json", "--output", str(out)]) == 0
    data = json.loads(capfd.readouterr().out)
    result = read_result(out)
    assert [one["scenario"] for one in data["scenarios"]] == [*SCENARIOS, photo.name]
    assert not result.interrupted
    assert result.load
    assert result.rates
    for one in result.measured:
        assert one.skipped is None
        assert one.counts
        assert one.counts.completion_tokens == 16
        assert one.memory
        assert one.memory.peak > 0
        assert set(one.work) == ({"encode"} if one.counts.tiles else set()) | {"prefill", "decode"}
        for run in one.runs:
            assert set(run.stages_ms) == set(STAGES)
            assert len(run.tokens_ms) == 15
            assert len(run.tiles_ms) == one.counts.tiles
            assert 0 <= unaccounted(run) < 1
            assert sum(run.prefill_ms.values()) == pytest.approx(run.stages_ms["prefill"])
    tiles = {one.scenario: one.counts.tiles for one in result.measured if one.counts}
    assert (tiles["text"], tiles["multi-4"], tiles["video-8"]) == (0, 4, 8)
    assert min(tiles["followup"], tiles[photo.name]) > 1

    assert _run(["bench", "compare", str(out), str(out)]) == 2
    assert "1 runs are too few to judge" in " ".join(capfd.readouterr().out.split())
    assert _run([*map(str, words), "--output", str(out)]) == 2
    assert capfd.readouterr().err == f"error: {out} exists\nhint: --force replaces it\n"


def test_an_interrupted_bench_keeps_what_it_has(
    toy_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    run_rounds = benchmark.run_rounds

    def interrupted(*arguments: Any) -> None:
        run_rounds(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run_rounds", interrupted)
    out = tmp_path / "result.json"
    words = ["bench", "-m", toy_bundle, "--scenario", "text", "--runs", 1, "--threads", 1, "--output", out]
    assert _run([*map(str, words)]) == 130
    told = capfd.readouterr()
    assert "interrupted" in told.err
    assert "text" in told.out
    result = read_result(out)
    assert result.interrupted
    assert len(result.measured[0].runs) == 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--scenario", "none"], 2, "unknown scenario 'none'\nhint: one of text, photo-384"),
        (["--scenario", "photo-480"], 2, "hint: did you mean photo-480p?"),
        (["--json", "--csv"], 2, "exclude each other"),
        (["compare", "a.json", "b.json"], 1, "cannot read a.json"),
        (["compare", "a.json", "b.json", "--threshold", "much"], 2, "--threshold"),
    ],
)
def test_mistakes(words: list[str], status: int, message: str, capfd: pytest.CaptureFixture[str]):
    assert _run(["bench", *words]) == status
    assert message in capfd.readouterr().err
