"""Files of results, and the tables made of them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision.bench import report
from onevision.bench.result import Summary, read_result, write_result
from onevision.errors import ResultError
from tests.bench.made import made_measured, made_result, noisy_runs

if TYPE_CHECKING:
    from pathlib import Path

RESULT = made_result(
    made_measured(noisy_runs(np.random.default_rng(0))), made_measured((), "video-8", "videos need PyAV")
)


def test_a_file_is_what_was_written(tmp_path: Path):
    path = tmp_path / "result.json"
    write_result(path, RESULT)
    assert read_result(path) == RESULT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("version", [0, 1, 3, "2"])
def test_another_schema_is_refused_by_its_version(tmp_path: Path, version: object):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"schema_version": version}), encoding="utf-8")
    with pytest.raises(ResultError, match=f"schema version {version!r}"):
        read_result(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 2}', "\ufeff"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultError, match=r"result\.json"):
        read_result(path)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ResultError, match="cannot read"):
        read_result(tmp_path / "none.json")


def test_rows_have_llama_benchs_names():
    rows = {row["stage"]: row for row in report.rows(RESULT)}
    prefill, decode = rows["prefill"], rows["decode"]
    assert (prefill["n_prompt"], prefill["n_gen"]) == (300, 0)
    assert (decode["n_prompt"], decode["n_gen"], decode["n_depth"]) == (0, 15, 300)
    assert prefill["avg_ts"] == pytest.approx(300 / (prefill["avg_ns"] / 1e9), rel=0.01)
    assert rows["encode"]["avg_ts"] is None
    lines = list(csv.DictReader(report.to_csv(RESULT).splitlines()))
    assert [line["stage"] for line in lines] == list(rows)


def test_limits_are_those_of_the_arithmetic():
    # encode: 20 GFLOP in about 0.4 s at 100 GFLOP a second; decode: 2.7 GB in about 0.27 s at 10 GB a second.
    limits = report.summary(RESULT)["scenarios"][0]["limits"]
    assert limits["encode"]["flops"] == pytest.approx(0.5, rel=0.03)
    assert limits["decode"]["bandwidth"] == pytest.approx(1.0, rel=0.03)
    first, second = report.limits(RESULT)
    assert first.startswith("encode 10.00 GFLOP per tile, ")
    assert first.endswith("% of this machine's fp32 limit")
    assert second.startswith("decode 180 MB per token")


def test_without_rates_nothing_is_told_of_limits():
    limits = report.summary(replace(RESULT, rates=None))["scenarios"][0]["limits"]
    assert set(limits["encode"].values()) == {None}


def test_markdown_names_what_was_skipped():
    text = report.to_markdown(RESULT)
    assert "- video-8 onevision: videos need PyAV" in text
    assert text.startswith("| scenario | tiles |")


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, "–"), (0.421, "0.42 ms"), (31.46, "31.5 ms"), (999.0, "999 ms"), (12_345, "12.3 s")],
)
def test_durations(ms: float | None, text: str):
    assert report.duration(ms) == text


def test_a_summary():
    assert Summary.of([]) is None
    assert Summary.of([2.0]) == Summary(1, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0)
    one = Summary.of([1.0, 2.0, 3.0, 4.0, 10.0])
    assert one
    assert (one.min, one.median, one.mean) == (1.0, 3.0, 4.0)
