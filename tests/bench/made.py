"""Results that nobody measured, for the tests of what is done with them."""

from __future__ import annotations

import numpy as np

from onevision.bench.result import (
    SCHEMA_VERSION,
    Counts,
    Load,
    Measured,
    Memory,
    ModelFacts,
    Rates,
    Result,
    Run,
    Work,
)
from onevision.runtime.clock import STAGES

#: Milliseconds of a run's stages.
TYPICAL = {
    "tokenize": 0.3, "read": 5.0, "preprocess": 20.0, "encode": 400.0, "pack": 4.0, "prefill": 300.0,
    "first_token": 0.5, "decode": 270.0, "detokenize": 0.1,
}  # fmt: skip
STEPS = 15


def made_run(stages: dict[str, float], gauge: float | None = 50.0) -> Run:
    before_decode = [stages[name] for name in STAGES[: STAGES.index("decode")]]
    return Run(
        stages_ms=stages,
        prefill_ms={"picture": stages["prefill"] * 0.75, "text": stages["prefill"] * 0.25},
        tiles_ms=(stages["encode"] / 2,) * 2,
        tokens_ms=(stages["decode"] / STEPS,) * STEPS,
        ttft_ms=sum(before_decode),
        total_ms=sum(stages.values()),
        gauge_ms=gauge,
        joules=None,
        output="0" * 16,
    )


def noisy_runs(
    generator: np.random.Generator, *, count: int = 5, noise: float = 0.01, pace: float = 1.0, **slower: float
) -> tuple[Run, ...]:
    """Runs on a machine that takes ``pace`` times as long; ``slower`` plants factors in stages."""
    return tuple(
        made_run(
            {
                name: ms * pace * slower.get(name, 1.0) * float(np.exp(generator.normal(0, noise)))
                for name, ms in TYPICAL.items()
            },
            50.0 * pace * float(np.exp(generator.normal(0, noise))),
        )
        for _ in range(count)
    )


def made_result(*measured: Measured) -> Result:
    engines = {"onnxruntime": {"fp32": 1e11, "fp16": None, "bf16": None, "int8": 2e11}}
    return Result(
        schema_version=SCHEMA_VERSION,
        onevision="0.1.0",
        started="2026-01-01T00:00:00+00:00",
        model=ModelFacts("toy", 1000, "fp32", "q8_0", "f16", "0" * 64),
        device="cpu",
        threads=1,
        runs=5,
        isolated=False,
        interrupted=False,
        machine={"cpu": "a processor"},
        rates=Rates("cpu", 1, 1e10, engines),
        load=Load(None, (1.0, 2.0)),
        measured=measured,
    )


def made_measured(runs: tuple[Run, ...], scenario: str = "photo", skipped: str | None = None) -> Measured:
    work = {
        "encode": Work(2 * 10**10, 10**9, "fp32", "tile", 2),
        "decode": Work(10**9, 27 * 10**8, "int8", "token", STEPS),
    }
    counts = Counts(300, 280, STEPS + 1, 2) if runs else None
    return Measured(
        "photo" if runs else scenario, "onevision", counts, runs, Memory(10**8, {}, None), work, skipped
    )
