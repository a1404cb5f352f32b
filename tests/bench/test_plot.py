"""``bench plot``: what is drawn, of which runs, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from onevision.bench.plot import CHARTS, OTHER, STAGE_COLORS, by_engine, label_results
from onevision.bench.result import Run, typical, write_result
from onevision.cli import _run
from onevision.errors import UsageError
from onevision.runtime.clock import STAGES
from tests.bench.made import made_measured, made_result, noisy_runs

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.bench.result import Measured, Result

RANDOM = np.random.default_rng(3)


def measured(scenario: str, tiles: int, **slower: float) -> Measured:
    one = made_measured(noisy_runs(RANDOM, **slower))
    assert one.counts
    return replace(one, scenario=scenario, counts=replace(one.counts, tiles=tiles))


def result(**slower: float) -> Result:
    return made_result(
        measured("photo-384", 2, **slower),
        measured("photo-384-long", 2),
        measured("<img src=x>", 16, encode=8),
    )


def test_pictures_and_a_page(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    write_result(files[0], result())
    write_result(files[1], result(prefill=2.0))
    out = tmp_path / "plots"
    assert _run(["bench", "plot", *map(str, files), "--output", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["files"] == [
        str(out / name) for name in ("index.html", *(f"{name}.png" for name in CHARTS))
    ]
    for name in CHARTS:
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width >= 1000
            assert np.asarray(picture.convert("L")).std() > 5, "something is on it"
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href|srcset)="(?!data:|#)', page), "nothing is loaded from anywhere"
    assert page.count("<svg") == page.count("</svg>") == len(CHARTS)
    assert "currentColor" in page, "in the colors of the reader's theme"
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page
    assert all(label in page for label in ("before", "after", "a processor", "toy"))
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["index.html", *(f"{name}.png" for name in CHARTS)]
    )


def test_it_goes_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path / "one.json", result())
    assert _run(["bench", "plot", "one.json"]) == 0
    assert "one-plots" in capfd.readouterr().out
    assert (tmp_path / "one-plots" / "index.html").is_file()


def test_every_stage_has_a_colour_of_its_own():
    assert set(STAGE_COLORS) == {*STAGES, OTHER}
    assert len(set(STAGE_COLORS.values())) == len(STAGE_COLORS)


@pytest.mark.parametrize(("totals", "expected"), [((5.0,), 5), ((9.0, 1.0, 4.0), 4), ((3.0, 2.0), 2)])
def test_the_median_run(totals: tuple[float, ...], expected: float):
    runs = tuple(Run({}, {}, (), (), None, total, None, None, "") for total in totals)
    assert typical(replace(made_measured(()), runs=runs)).total_ms == expected


def test_names_of_results(tmp_path: Path):
    paths = [tmp_path / "a" / "same.json", tmp_path / "b" / "same.json", tmp_path / "other.json"]
    labels = [one.label for one in label_results(paths, [result()] * 3)]
    assert labels[2] == "other"
    assert len(set(labels)) == 3
    assert len({one.label for one in by_engine(label_results(paths, [result()] * 3))}) == 3


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 0}', "[]"])
def test_a_file_that_is_no_result(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "bad.json").write_text(text)
    assert _run(["bench", "plot", str(tmp_path / "bad.json"), "-o", str(tmp_path / "plots")]) != 0
    assert capfd.readouterr().err.startswith("error: ")
    assert not (tmp_path / "plots").exists()


def test_a_result_without_runs(tmp_path: Path):
    with pytest.raises(UsageError, match="no runs"):
        label_results([tmp_path / "a.json"], [made_result(made_measured(()))])


def test_a_folder_that_cannot_be_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write_result(tmp_path / "one.json", result())
    (tmp_path / "taken").write_text("")
    assert _run(["bench", "plot", str(tmp_path / "one.json"), "-o", str(tmp_path / "taken" / "plots")]) == 2
    assert "cannot make the folder" in capfd.readouterr().err
