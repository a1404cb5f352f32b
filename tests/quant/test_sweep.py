"""``onevision quant sweep``: every candidate is measured once, whatever happens meanwhile."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from onevision.bundle import open_bundle
from onevision.quant import sweep as module
from onevision.quant.candidates import Candidate, GateConfig
from onevision.quant.rows import read_rows
from onevision.quant.sweep import PLOT, REPORT, ROWS, TABLE, candidates_of, sweep_id
from tests.test_cli import parsed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.test_cli import Cli

FEW = ("--limit", 2, "--threads", 1, "--no-imatrix")
FOUR = ("--vision", "fp32", "--vision", "int8", "--backbone", "f16", "--backbone", "q4_0")
NAMES = ["fp32 + f16", "fp32 + q4_0", "int8 + f16", "int8 + q4_0"]


def test_candidates() -> None:
    assert [each.name for each in candidates_of(["int8"], ["f16", "q8_0", "q4_0", "q4_0"], GateConfig())] == [
        "int8 + f16",
        "int8 + q8_0",
        "int8 + q4_0 (imatrix)",
        "int8 + q4_0",
    ]
    assert candidates_of(["fp32"], ["q4_0"], GateConfig(imatrix=False)) == [Candidate("fp32", "q4_0")]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Make the sweep stop, as by Ctrl-C, after a number of candidates; the names of all that were begun."""
    measured = module._measured

    def arrange(number: int) -> list[str]:
        begun: list[str] = []

        def count(trials: Any, candidate: Candidate, *rest: Any) -> Any:
            begun.append(candidate.name)
            if len(begun) > number:
                raise KeyboardInterrupt
            return measured(trials, candidate, *rest)

        monkeypatch.setattr(module, "_measured", count)
        return begun

    return arrange


def test_a_sweep_that_is_interrupted_goes_on(
    cli: Cli, toy_bundle: Path, tmp_path: Path, stop_after: Callable[[int], list[str]]
) -> None:
    words = ("quant", "sweep", toy_bundle, "out", *FOUR, *FEW)
    begun = stop_after(1)
    status, out, err = cli(*words)
    assert (status, out) == (130, "")
    assert "1 of 4 rows are kept in out" in err
    assert begun == NAMES[:2]
    folder = tmp_path / "out"
    assert [path.name for path in folder.iterdir()] == [ROWS]

    (folder / ".trial.left").mkdir()  # as of one that was killed
    begun = stop_after(3)
    status, out, err = cli(*words, "--json")
    assert (status, begun) == (0, NAMES[1:])
    assert "1 of 4 rows are there already" in err
    rows = parsed(out)["rows"]
    assert [f"{row['vision']} + {row['backbone']}" for row in rows] == NAMES
    assert sorted(path.name for path in folder.iterdir()) == sorted([ROWS, TABLE, REPORT, PLOT])

    assert all(row["tile_ms"] > 0 and row["token_ms"] > 0 for row in rows)
    assert [row["cosine"] is None for row in rows] == [True, True, False, False]
    exact, coarse = rows[0], rows[3]
    assert exact["passed"]
    assert exact["mean_kl"] < coarse["mean_kl"]
    assert exact["bytes"] > coarse["bytes"]
    assert coarse["reasons"]
    assert read_rows(folder / ROWS)[0].mean_kl == exact["mean_kl"]
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        assert [float(line["mean_kl"]) for line in csv.DictReader(file)] == [row["mean_kl"] for row in rows]
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    assert (report["rows"], report["precisions"]) == (rows, ["fp32", "f32"])
    with Image.open(folder / PLOT) as plotted:
        assert plotted.size == (1800, 1200)

    begun = stop_after(0)  # nothing is left to do
    status, out, _ = cli(*words)
    assert (status, begun) == (0, [])
    assert [line.removeprefix("*").strip().split("  ")[0] for line in out.splitlines()[1:5]] == NAMES

    status, _, err = cli("quant", "sweep", toy_bundle, "out", *FOUR, *FEW, "--limit", 3)
    assert status == 2
    assert "from another sweep" in err


def test_what_a_sweep_depends_on(toy_bundle: Path, tmp_path: Path) -> None:
    from onevision.eval.questions import tiny_suite

    bundle = open_bundle(toy_bundle)
    (tmp_path / "a.png").write_bytes(b"some")
    configs = [
        GateConfig(tiny_suite(limit=3)),
        GateConfig(tiny_suite(limit=4)),
        GateConfig(tuple(tiny_suite(limit=3))),
        GateConfig(tiny_suite(limit=3), calibration=tmp_path),
        GateConfig(),
    ]
    runs = [sweep_id(bundle, each) for each in configs]
    assert len(set(runs)) == 5
    assert runs == [sweep_id(bundle, each) for each in configs]
    (tmp_path / "b.png").write_bytes(b"other")
    assert sweep_id(bundle, configs[3]) != runs[3]


@pytest.mark.parametrize(
    ("words", "status", "error"),
    [
        (("--vision", "int4"), 2, "unknown precision 'int4'"),
        (("--backbone", "auto"), 2, "unknown precision 'auto'"),
        (("--backbone", "f16", "--calibration", "."), 1, "the calibration folder . is empty"),
    ],
)
def test_words_that_are_wrong(
    words: tuple[str, ...], status: int, error: str, cli: Cli, toy_bundle: Path, tmp_path: Path
) -> None:
    code, out, err = cli("quant", "sweep", toy_bundle, "out", *words, *FEW)
    assert (code, out) == (status, "")
    assert f"error: {error}" in err
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(cli: Cli, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onevision import extras

    monkeypatch.setitem(extras.EXTRAS, "bench", ("no_such_module",))
    status, _, err = cli("quant", "sweep", toy_bundle, "out")
    assert status == 2
    assert "hint: pip install 'onevision[bench]'" in err
