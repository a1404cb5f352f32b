"""Sweeps: rows on disk, the front, and the plot. What runs engines is in ``test_sweep.py``."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onevision.errors import InputError, UsageError
from onevision.quant.candidates import Candidate
from onevision.quant.gates import AnswerQuality, FeatureQuality, GateResult, TokenQuality
from onevision.quant.rows import (
    SweepRow,
    append_row,
    front,
    open_rows,
    plot,
    read_rows,
    row_of,
    write_csv,
)
from onevision.quant.sweep import ROWS

RUN = "0123456789ab"
FIGURES = {"bytes": 1_000_000, "bits_per_weight": 4.5, "tile_ms": 2.5, "token_ms": 1.25}


def row(vision: str = "int8", backbone: str = "q4_0", **changes: object) -> SweepRow:
    made = SweepRow(vision, backbone, **FIGURES, cosine=0.9995, mean_kl=0.01, p99_kl=0.1, top1=0.98, run=RUN)
    return replace(made, **changes)


def test_a_row_has_the_gates_figures():
    quality = GateResult(
        "fp32 + f32",
        FeatureQuality(8, 0.998, 0.05, constant=False),
        TokenQuality(4, 20, 0.03, 0.3, 0.9),
        AnswerQuality(10, 0.5, 0.6, 0.8, {}),
        ("cosine", "divergence"),
    )
    found = row_of(Candidate("int8", "q4_0", imatrix=True), quality, FIGURES, RUN)
    assert found == row(
        imatrix=True,
        cosine=0.998,
        mean_kl=0.03,
        p99_kl=0.3,
        top1=0.9,
        accuracy=0.5,
        questions=10,
        reasons=quality.reasons,
    )
    assert found.name == "int8 + q4_0 (imatrix)"
    broken = row_of(found.candidate, GateResult("", None, None, None, ("nan",)), FIGURES, RUN)
    assert (broken.cosine, broken.mean_kl, broken.accuracy, broken.passed) == (None, None, None, False)


def test_rows_are_kept_and_a_line_that_was_cut_off_is_not(tmp_path):
    first, second = row(), row(backbone="q8_0", passed=True, reasons=("a", "b"))
    path = tmp_path / "new" / "folder" / ROWS
    assert open_rows(path, RUN) == []
    append_row(path, first)
    append_row(path, second)
    whole = path.read_bytes()
    for end in range(len(whole) - 60, len(whole) + 1, 7):
        path.write_bytes(whole[:end])
        assert open_rows(path, RUN) == [first, second][: whole[:end].count(b"\n")]
        path.write_bytes(whole)
    assert open_rows(path, RUN) == [first, second]
    append_row(path, row("fp16"))
    assert read_rows(path) == [first, second, row("fp16")]


def test_rows_of_another_sweep_are_not_mixed_in(tmp_path):
    append_row(tmp_path / ROWS, row())
    with pytest.raises(UsageError, match="from another sweep"):
        open_rows(tmp_path / ROWS, "other")
    assert read_rows(tmp_path / ROWS) == [row()]
    assert open_rows(tmp_path / ROWS, "other", force=True) == []
    assert read_rows(tmp_path / ROWS) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "not valid JSON"),
        ("[]\n", "not a JSON object"),
        ('{"vision": "int8"}\n', "not a row of a sweep"),
        ('{"id": "colour-1", "text": "red"}\n', "not a row of a sweep"),
        (json.dumps(asdict(row()) | {"mean_kl": "low"}) + "\n", "not a row of a sweep: mean_kl"),
        (json.dumps(asdict(row()) | {"vision": "int4"}) + "\n", "not a row of a sweep: vision"),
    ],
)
def test_a_damaged_file_is_refused_and_kept(tmp_path, text, message):
    (tmp_path / ROWS).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        open_rows(tmp_path / ROWS, RUN)
    assert (tmp_path / ROWS).read_text(encoding="utf-8") == text


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot make the folder"):
        open_rows(tmp_path / "file" / "sweep" / ROWS, RUN)


def test_the_table_has_every_figure(tmp_path):
    write_csv([row(reasons=("one", "two, three"))], tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["backbone"] == "q4_0"
    assert float(line["mean_kl"]) == 0.01
    assert line["accuracy"] == ""
    assert line["reasons"] == "one; two, three"


def test_the_front_by_hand():
    #         beaten by the second; best in one; best in the other; the same twice
    assert front([(3, 3), (2, 2), (1, 4), (4, 1), (4, 1)]) == [False, True, True, True, True]
    assert front([]) == []


COSTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(COSTS)
def test_a_front_is_never_empty_and_whoever_is_not_on_it_is_beaten_by_one_that_is(costs):
    ahead = front(costs)
    best = [cost for cost, is_ahead in zip(costs, ahead, strict=True) if is_ahead]
    assert best
    for cost, is_ahead in zip(costs, ahead, strict=True):
        beaten = any(
            all(a <= b for a, b in zip(other, cost, strict=True)) and other != cost for other in best
        )
        assert beaten is not is_ahead


def test_the_plot(tmp_path):
    rows = [
        row("fp32", "f32", mean_kl=0.0, passed=True, bytes=28_000_000),
        row("fp32", "q8_0", mean_kl=1e-4, passed=True, bytes=16_000_000),
        row("int8", "q4_0", mean_kl=0.3, bytes=6_000_000),
        row("int8", "q2_k", mean_kl=None),
    ]
    plot(rows, tmp_path / "sweep.png", max_kl=0.02)
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.size == (1800, 600)
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100
