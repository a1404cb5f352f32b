"""Times of a plan: of the bundle's own kind of work, and where they come from. No test is timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import onevision
from onevision.cli.costs import _duration
from onevision.models.shapes import published_config
from onevision.planning import estimate, plan
from onevision.planning.cost import Shape
from onevision.planning.estimate import Precisions, core_rate, estimate_profile
from tests.test_cli import cli, parsed

if TYPE_CHECKING:
    from tests.test_cli import Cli

__all__ = ["cli"]  # a fixture
SHAPE = Shape.of_config(published_config("0.5b"))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two idle cores of Zen 4, 228 GFLOP/s in fp32, on which nothing was measured yet."""
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(estimate, "core_rate", lambda: 114e9)
    monkeypatch.setattr(estimate, "default_threads", lambda: 2)
    monkeypatch.setattr(estimate, "cpu_flags", lambda: ["avx2", "avx512_vnni"])
    monkeypatch.setattr(plan, "default_threads", lambda: 2)
    monkeypatch.setattr(plan, "load_average", lambda: 0.3)


#: Measured on such a machine with random weights: tiles, tokens, backend, seconds to the first token.
MEASURED = [
    (5, 2955, "onnx", 12.3),
    (16, 7300, "onnx", 42.9),
    (5, 2955, "llama", 20.8),
    (16, 7300, "llama", 84.0),
]


@pytest.mark.parametrize(("tiles", "tokens", "backend", "seconds"), MEASURED)
def test_it_is_near_what_was_measured(tiles: int, tokens: int, backend: Any, seconds: float) -> None:
    profile = estimate_profile(SHAPE, Precisions(), 2)
    found = profile.seconds(backend=backend, tokens=tokens, tiles=tiles)
    assert found is not None
    assert sum(found.values()) == pytest.approx(seconds, rel=0.3)


def test_precisions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = estimate_profile(SHAPE, Precisions(), 2)
    slow = estimate_profile(SHAPE, Precisions("fp32", "f32", "fp32"), 2)
    assert slow.tile / fast.tile == pytest.approx(3.0)
    for backend in ("onnx", "llama"):
        assert slow.prefill[backend].seconds(3000) > 1.3 * fast.prefill[backend].seconds(3000)
    assert set(estimate_profile(SHAPE, Precisions(prefill=None), 2).prefill) == {"llama"}
    assert estimate_profile(SHAPE, Precisions(), 1).tile == pytest.approx(2 * fast.tile)
    monkeypatch.setattr(estimate, "cpu_flags", lambda: ["avx2"])
    assert estimate_profile(SHAPE, Precisions(), 2).tile == pytest.approx(2 * fast.tile)
    assert estimate_profile(SHAPE, Precisions("fp16"), 2).tile == pytest.approx(slow.tile)


def test_the_curve_is_that_of_the_operations() -> None:
    same = replace(estimate_profile(SHAPE, Precisions(), 2).prefill["llama"])
    for tokens in (100, 3000):
        rate = SHAPE.prefill_flops(tokens) / same.seconds(tokens)
        assert 0.22 * 228e9 < rate < 1.3 * 228e9


def test_a_core_is_measured() -> None:
    assert core_rate() > 1e8


# Plans.


def test_a_small_bundle_is_measured_and_a_size_is_estimated(toy_bundle: Path, cli: Cli, photo: Path) -> None:
    asked = parsed(cli("plan", photo, "-m", toy_bundle, "--threads", 1, "--json")[1])
    assert asked["speed"] == "measured"
    assert asked["budget"]["predicted_ttft_ms"] > sum(asked["timings_ms"].values())
    size = parsed(cli("plan", photo, "--size", "0.5b", "--json")[1])
    assert size["speed"] == "estimated"
    assert size["timings_ms"]["encode"] == pytest.approx(
        1e3 * 5 * SHAPE.encode_flops(1) / (2.4 * 228e9), rel=1e-3
    )
    _, out, _ = cli("plan", photo, "--size", "7b")
    assert "times        estimated; onevision bench --quick measures them" in out


def test_a_large_bundle_is_estimated_by_its_precisions(
    toy_bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onevision.bench.calibrate._SMALL_BYTES", 0)
    found = onevision.plan([photo], bundle=toy_bundle, device="cpu")
    assert found.speed == "estimated"
    shape = Shape.of(onevision.bundle.open_bundle(toy_bundle).manifest)
    expected = estimate_profile(shape, Precisions("fp32", "f32", None), None)
    assert found.forecast.cost.seconds == expected.seconds(
        backend="llama", tokens=found.forecast.cost.prompt_tokens, tiles=found.forecast.cost.tiles
    )


def test_a_gpu_is_not_estimated(toy_bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onevision.bench.calibrate._SMALL_BYTES", 0)
    monkeypatch.setattr(plan, "offloads", lambda _: True)
    found = onevision.plan([photo], bundle=toy_bundle)
    assert (found.speed, found.forecast.ttft, found.forecast.cost.seconds) == (None, None, None)


def test_a_busy_machine_is_told(cli: Cli, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("plan", photo, "--size", "0.5b")
    assert cli(*words)[2] == ""
    monkeypatch.setattr(plan, "load_average", lambda: 6.0)
    said = "the machine is busy (load 6.0 on 2 cores): up to 4.0 x longer meanwhile"
    assert cli(*words)[2] == f"warning: {said}\n"
    assert parsed(cli(*words, "--json")[1])["warnings"] == [said]
    monkeypatch.setattr(plan, "load_average", lambda: None)
    assert cli(*words)[2] == ""


def test_a_text_has_no_line_of_the_encoder(cli: Cli) -> None:
    status, out, _ = cli("plan", "--size", "0.5b")
    assert status == 0
    assert "encode" not in out
    assert "prefill" in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "< 0.1 s"), (0.123, "0.12 s"), (0.999, "1.0 s"), (1.26, "1.3 s"), (5.0, "5.0 s"),
        (9.97, "10 s"), (41.7, "42 s"), (123.0, "120 s"), (1234.0, "1,200 s"),
    ],
)  # fmt: skip
def test_two_digits_and_one_unit(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
