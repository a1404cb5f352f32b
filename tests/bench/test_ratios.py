"""Ours beside a peer: what is compared, and what is not the same work. Times are made up."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision.bench import report
from onevision.bench.compare import not_compared, ratios
from onevision.bench.result import Memory, read_result, write_result
from tests.bench.made import made_measured, made_result, noisy_runs

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.bench.result import Measured

OURS = made_measured(noisy_runs(np.random.default_rng(0)))


def peer(slower: float = 2.0, name: str = "transformers-bf16", **counts: int) -> Measured:
    runs = noisy_runs(np.random.default_rng(1), pace=slower)
    assert OURS.counts
    memory = Memory(4 * 10**8, {}, None)
    return replace(OURS, engine=name, runs=runs, counts=replace(OURS.counts, **counts), memory=memory)


def test_a_peer_that_takes_twice_as_long():
    found = {one.stage: one for one in ratios(made_result(OURS, peer()))}
    assert set(found) == {"encode", "prefill", "ttft", "tpot", "total", "peak"}
    for what in ("encode", "prefill", "ttft", "tpot", "total"):
        one = found[what]
        assert one.ratio == pytest.approx(0.5, rel=0.05)
        assert one.ratio == one.value / one.base
        assert one.interval
        assert one.interval[0] <= one.ratio <= one.interval[1] < 0.6
    assert (found["peak"].ratio, found["peak"].interval) == (0.25, None)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"prompt_tokens": 299}, "its prompt has 299 tokens, and ours has 300"),
        ({"completion_tokens": 3}, "its answer has 3 tokens, and ours has 16"),
    ],
)
def test_other_work_is_told_and_not_compared(counts: dict[str, int], reason: str):
    result = made_result(OURS, peer(**counts))
    assert ratios(result) == ()
    assert not_compared(result) == (f"photo transformers-bf16: not compared, {reason}",)
    assert report.summary(result)["against"]["not_compared"]
    assert reason in report.to_markdown(result)


def test_what_only_encodes_is_compared_in_that(tmp_path: Path):
    encoder = peer(name="openvino", completion_tokens=0)
    runs = tuple(
        replace(run, ttft_ms=None, tokens_ms=(), stages_ms={"encode": 400.0}) for run in encoder.runs
    )
    result = made_result(OURS, replace(encoder, runs=runs))
    assert [one.stage for one in ratios(result)] == ["encode"]
    write_result(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result
    assert [row["stage"] for row in report.rows(result) if row["engine"] == "openvino"] == [
        "encode",
        "total",
    ]


def test_every_form_has_the_ratios():
    result = made_result(OURS, peer(), replace(peer(name="llama"), runs=(), skipped="no prefill graph"))
    assert "| photo | transformers-bf16 | TTFT |" in report.to_markdown(result)
    assert "- photo llama: no prefill graph" in report.to_markdown(result)
    lines = list(csv.DictReader(report.to_csv(result).splitlines()))
    (line,) = [one for one in lines if (one["engine"], one["stage"]) == ("transformers-bf16", "ttft")]
    assert float(line["ours_ratio_low"]) <= float(line["ours_ratio"]) <= float(line["ours_ratio_high"])
    assert (line["peak_bytes"], line["model_type"]) == ("400000000", "")
    (mine,) = [one for one in lines if (one["engine"], one["stage"]) == ("onevision", "ttft")]
    assert (mine["ours_ratio"], mine["model_type"]) == ("", "fp32 + q8_0")
    assert len(report.summary(result)["against"]["ratios"]) == 6
    assert [cells[:3] for cells in report.against(result).rows][-1] == (
        "photo",
        "transformers-bf16",
        "peak memory",
    )


def test_without_peers_nothing_is_compared():
    assert report.summary(made_result(OURS))["against"] == {"ratios": [], "not_compared": []}
    assert report.against(made_result(OURS)).rows == ()


def test_a_reason_that_all_share_is_told_once():
    gone = replace(OURS, engine="openvino", runs=(), skipped="it needs openvino")
    other = replace(gone, scenario="scan")
    result = made_result(OURS, replace(OURS, scenario="scan"), gone, other)
    assert report.warnings(result) == ["openvino: it needs openvino"]
    assert report.warnings(made_result(OURS, gone, replace(OURS, scenario="scan"))) == [
        "photo openvino: it needs openvino"
    ]
