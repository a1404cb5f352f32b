"""``bench plot``: what is drawn, of which runs, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from onevision.bench.compare import compare
from onevision.bench.plot import (
    CHARTS,
    OTHER,
    STAGE_COLORS,
    Series,
    _figure,
    by_engine,
    draw_latency,
    label_results,
)
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


class Cells(HTMLParser):
    """Cells of the tables of a page, row by row."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[tuple[str, ...]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object):
        self.inside = tag in {"th", "td"}
        if tag == "tr":
            self.rows.append(())

    def handle_endtag(self, tag: str):
        self.inside = False

    def handle_data(self, data: str):
        if self.inside:
            self.rows[-1] = (*self.rows[-1], data)


def plotted(folder: Path, before: Result, after: Result) -> str:
    """The page of two results."""
    write_result(folder / "before.json", before)
    write_result(folder / "after.json", after)
    files = [str(folder / "before.json"), str(folder / "after.json")]
    assert _run(["bench", "plot", *files, "--output", str(folder / "plots")]) == 0
    return (folder / "plots" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("count", "slower", "pace", "verdict", "status"),
    [
        (5, 2.0, 1.0, "slower", 1),
        (5, 1.0, 1.0, "no difference", 0),
        (5, 0.5, 1.0, "faster", 0),
        (2, 5.2, 1.0, "inconclusive", 2),
        (5, 2.0, 2.0, "inconclusive", 2),
    ],
)
def test_the_page_and_compare_agree(
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
    count: int, slower: float, pace: float, verdict: str, status: int,
):  # fmt: skip
    pair = [
        made_result(made_measured(noisy_runs(np.random.default_rng(seed), count=count, **factors)))
        for seed, factors in enumerate(({}, {"decode": slower, "pace": pace}))
    ]
    page = plotted(tmp_path, pair[0], pair[1])
    capfd.readouterr()
    files = [str(tmp_path / "before.json"), str(tmp_path / "after.json")]
    assert _run(["bench", "compare", *files, "--json"]) == status
    told = json.loads(capfd.readouterr().out)["changes"]
    header, *rows = Cells(page).rows
    rows = rows[: [row[1] for row in rows].index("tiles")]
    assert header == ("scenario", "stage", "verdict", "before", "after", "ratio", "interval")
    assert [(row[1], row[2], row[5]) for row in rows] == [
        (one["stage"], one["verdict"], f"{one['ratio']:.2f}") for one in told
    ]
    assert ("decode", verdict) in {row[1:3] for row in rows}
    assert compare(*pair).note in page
    assert page.count(f"{count} of each scenario") == 2


def test_runs_are_counted_and_not_what_was_asked_for(tmp_path: Path):
    short = replace(measured("video", 8), runs=noisy_runs(RANDOM, count=2))
    before = made_result(measured("photo", 2), measured("video", 8))
    after = replace(made_result(measured("photo", 2), short), interrupted=True)
    page = plotted(tmp_path, before, after)
    assert "5 of each scenario, one process<" in page
    assert "2 to 5 of each scenario, one process, interrupted<" in page


def test_results_with_nothing_in_common_are_drawn_and_that_is_said(tmp_path: Path):
    page = plotted(tmp_path, made_result(measured("photo", 2)), made_result(measured("video", 8)))
    assert "the two results have no scenario in common" in page
    assert page.count("<svg") == len(CHARTS)


def test_the_axis_of_tiles_has_whole_numbers_and_small_times_are_ms():
    small = made_result(*(measured(f"{tiles}", tiles) for tiles in (1, 2)))
    with _figure() as figure:
        draw_latency(figure, by_engine([Series("", small, small.measured)]))
        axes = figure.axes[0]
        assert {float(at) % 1 for at in axes.get_xticks()} == {0.0}
        assert axes.get_ylabel().startswith("ms")


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
