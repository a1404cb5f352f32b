"""``--isolate``: what the processes say is one result, however they end."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from onevision.bench import process
from onevision.bench.benchmark import Benchmark, BenchSettings
from onevision.bench.result import read_result
from onevision.bench.scenarios import choose
from onevision.bundle import VISION, open_bundle
from onevision.cli import _run
from onevision.errors import BundleError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from onevision.bench.peers import TargetSetup
    from onevision.bench.scenarios import Scenario
    from onevision.bench.target import Target


def settings(*names: str) -> BenchSettings:
    scenarios = choose(names, (), quick=False)
    return BenchSettings(scenarios, runs=1, seconds=None, threads=1, isolate=True, roofline=0, loads=1)


def test_one_result_of_all_processes(toy_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "result.json"
    chosen = ("--scenario", "text", "--scenario", "multi-4")
    words = ["bench", "--isolate", "-m", toy_bundle, *chosen, "--runs", 1, "--threads", 1, "--output", out]
    assert _run([*map(str, words)]) == 0
    assert "scenario" in capfd.readouterr().out
    result = read_result(out)
    assert result.isolated
    assert not result.interrupted
    assert result.rates
    assert result.load
    assert [(one.scenario, len(one.runs), one.skipped) for one in result.measured] == [
        ("text", 1, None),
        ("multi-4", 1, None),
    ]
    assert all(one.memory and one.memory.peak > 0 for one in result.measured)


def test_a_process_that_is_killed_costs_its_own_scenario(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "_serve", _killed_at_multi)
    benchmark = Benchmark(open_bundle(toy_bundle), settings("multi-4", "text"))
    benchmark.run()
    killed, other = benchmark.result.measured
    assert killed.scenario == "multi-4"
    assert "its process ended with" in str(killed.skipped)
    assert (other.scenario, len(other.runs), other.skipped) == ("text", 1, None)
    assert not benchmark.result.interrupted


def test_an_interrupt_keeps_what_is_known(toy_bundle: Path):
    def show(step: str) -> None:
        if step.startswith("multi-4"):
            raise KeyboardInterrupt

    benchmark = Benchmark(open_bundle(toy_bundle), settings("text", "multi-4"), show)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run()
    text, cut = benchmark.result.measured
    assert (len(text.runs), text.skipped) == (1, None)
    assert cut.runs == ()
    assert benchmark.result.interrupted


def test_an_error_of_the_process_is_ours(toy_bundle: Path, tmp_path: Path):
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    (copy / VISION).write_bytes(bytes((copy / VISION).stat().st_size))
    benchmark = Benchmark(open_bundle(copy), settings("text"))
    with pytest.raises(BundleError, match="damaged"):
        benchmark.run()
    assert benchmark.result.interrupted


def test_it_cannot_stand_beside_others(toy_bundle: Path, capfd: pytest.CaptureFixture[str]):
    assert _run(["bench", "-m", str(toy_bundle), "--isolate", "--against", "llama"]) == 2
    assert "exclude each other" in capfd.readouterr().err


def _killed_at_multi(connection: Connection, name: str, setup: TargetSetup) -> None:
    """In the process of the target: end when the scenario is asked."""

    def answer(target: Target, method: str, arguments: tuple[Scenario, object]) -> object:
        if arguments[0].name == "multi-4":
            os.kill(os.getpid(), signal.SIGTERM)
        return _answer(target, method, arguments)

    process._answer = answer
    _serve(connection, name, setup)


_answer, _serve = process._answer, process._serve
