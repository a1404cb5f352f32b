"""A result as JSON statistics, as CSV rows in llama-bench's field names, and as tables with notes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from onevision.bench.compare import PEAK, BenchComparison, StageRatio, not_compared, ratios
from onevision.bench.peers import LLAMA
from onevision.bench.result import (
    Load,
    Measured,
    Result,
    Summary,
    Work,
    details,
    drifted,
    median,
    samples,
    typical,
    unaccounted,
)
from onevision.bench.roofline import utilization
from onevision.bench.target import OURS
from onevision.runtime.clock import STAGES

#: llama-bench's names of statistics.
_LLAMA_BENCH = {"avg": "mean", "stddev": "sd"} | {name: name for name in ("min", "median", "p90", "p99")}
_LABELS = {"ttft": "TTFT", "tpot": "per token", PEAK: "peak memory"}


def summary(result: Result) -> dict[str, Any]:
    """Statistics for the JSON of a result: by scenario and engine, then by stage."""
    return {
        "scenarios": [
            {
                "scenario": measured.scenario,
                "engine": measured.engine,
                "ms": _summaries(samples(measured)),
                "detail_ms": _summaries(details(measured)),
                "tokens_per_second": _tokens_per_second(measured),
                "unaccounted": max(map(unaccounted, measured.runs), default=None),
                "output_drifted": drifted(measured),
                "limits": {
                    stage: asdict(utilization(work, median(measured, stage) or 0.0, result.rates))
                    for stage, work in measured.work.items()
                    if measured.runs
                },
            }
            for measured in result.measured
        ],
        "against": {
            "ratios": [asdict(one) for one in ratios(result)],
            "not_compared": list(not_compared(result)),
        },
        "rows": rows(result),
        "warnings": warnings(result),
    }


def _summaries(groups: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {name: asdict(one) for name, values in groups.items() if (one := Summary.of(values))}


def _tokens_per_second(measured: Measured) -> float | None:
    tpot = median(measured, "tpot")
    return 1e3 / tpot if tpot else None


def rows(result: Result) -> list[dict[str, Any]]:
    """One row per stage and scenario, in llama-bench's field names where it has them.

    ``n_prompt`` and ``n_gen`` are the tokens that the stage reads or makes, ``n_depth`` those before it;
    rates are tokens per second. ``ours_ratio``, in a peer's row, is ours divided by the peer's.
    """
    model, machine = result.model, result.machine
    against = {(one.scenario, one.engine, one.stage): one for one in ratios(result)}
    found = []
    for measured in result.measured:
        ours, memory = measured.engine in {OURS, LLAMA}, measured.memory
        for row in _stage_rows(measured):
            peer = against.get((measured.scenario, measured.engine, row["stage"]))
            low, high = (peer and peer.interval) or (None, None)
            found.append(
                {
                    "model_filename": model.name,
                    "model_type": f"{model.vision} + {model.backbone}" if ours else None,
                    "model_size": model.bytes if ours else None,
                    "cpu_info": machine.get("cpu"),
                    "gpu_info": (machine.get("gpu") or {}).get("name"),
                    "backends": result.device.upper(),
                    "n_threads": result.threads,
                    "type_k": model.cache if ours else None,
                    "type_v": model.cache if ours else None,
                    "test_time": result.started,
                    "scenario": measured.scenario,
                    "engine": measured.engine,
                    **row,
                    "peak_bytes": memory and memory.peak,
                    "gpu_peak_bytes": memory and memory.gpu_peak,
                    "ours_ratio": peer and peer.ratio,
                    "ours_ratio_low": low,
                    "ours_ratio_high": high,
                }
            )
    return found


def _stage_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    if measured.counts is None:
        return
    prompt, answer = measured.counts.prompt_tokens, measured.counts.completion_tokens
    for stage, values in samples(measured).items():
        tokens = {"prefill": prompt, "decode": answer - 1}.get(stage)
        rates = Summary.of([tokens / value * 1e3 for value in values if value]) if tokens else None
        one = asdict(cast("Summary", Summary.of(values)))
        yield {
            "stage": stage,
            "n_prompt": prompt if stage in {"prefill", "ttft", "total"} else 0,
            "n_gen": {"decode": answer - 1, "first_token": 1, "total": answer}.get(stage, 0),
            "n_depth": prompt if stage in {"decode", "tpot"} else 0,
            "n_tiles": measured.counts.tiles,
            "n_runs": one["n"],
            **{f"{name}_ns": round(one[key] * 1e6) for name, key in _LLAMA_BENCH.items()},
            "avg_ts": rates and round(rates.mean, 3),
            "stddev_ts": rates and round(rates.sd, 3),
        }


def to_csv(result: Result) -> str:
    """:func:`rows` as CSV."""
    found, text = rows(result), io.StringIO()
    if found:
        writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    return text.getvalue()


@dataclass(frozen=True)
class BenchTable:
    """Cells for terminals, Markdown and HTML: the first column is text, the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """A Markdown table."""
        marks = ["---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.columns, marks, *self.rows))


def tables(result: Result) -> list[BenchTable]:
    """Medians, shares of the time, and ours against peers; those without rows are left out."""
    return [table for table in (medians(result), shares(result), against(result)) if table.rows]


def medians(result: Result) -> BenchTable:
    """Tiles, tokens, median times and peak memory of each scenario and engine."""
    stages = ("encode", "prefill", "ttft", "tpot")
    names = (_LABELS.get(stage, stage) for stage in stages)
    lines = []
    for measured in result.measured:
        counts = measured.counts
        if not measured.runs or counts is None:
            continue
        lines.append(
            (
                _name(result, measured),
                f"{counts.tiles}",
                f"{counts.prompt_tokens:,}+{counts.completion_tokens}",
                *(duration(median(measured, stage)) for stage in stages),
                spread(samples(measured)["total"]),
                megabytes(measured.memory.peak) if measured.memory else "–",
            )
        )
    columns = ("scenario", "tiles", "tokens", *names, "total", "peak")
    return BenchTable(columns, tuple(lines))


def shares(result: Result) -> BenchTable:
    """Percent of the median run by stage, of stages that have 1 % in any scenario; ``other`` is the rest."""
    runs = {_name(result, one): typical(one) for one in result.measured if one.runs}
    share = {
        (name, stage): run.stages_ms.get(stage, 0.0) / (run.total_ms or 1.0)
        for name, run in runs.items()
        for stage in STAGES
    }
    stages = tuple(stage for stage in STAGES if any(share[name, stage] >= 0.01 for name in runs))
    lines = []
    for name in runs:
        parts = [share[name, stage] for stage in stages]
        lines.append((name, *map(percent, (*parts, max(0.0, 1 - sum(parts))))))
    return BenchTable(("scenario", *stages, "other"), tuple(lines))


def against(result: Result) -> BenchTable:
    """Ours against each peer."""
    columns = ("scenario", "peer", "quantity", "ours", "theirs", "ours / theirs", "interval")
    lines = []
    for one in ratios(result):
        show = megabytes if one.stage == PEAK else duration
        name, cells = _LABELS.get(one.stage, one.stage), (show(one.value), show(one.base))
        lines.append((one.scenario, one.engine, name, *cells, f"{one.ratio:.2f}", _interval(one)))
    return BenchTable(columns, tuple(lines))


def changes(comparison: BenchComparison) -> BenchTable:
    """Stages before and after, with verdicts."""
    columns = ("scenario", "stage", "verdict", "before", "after", "ratio", "interval")
    lines = []
    for one in comparison.changes:
        name = one.scenario if one.engine == OURS else f"{one.scenario} {one.engine}"
        cells = (duration(one.base), duration(one.value), f"{one.ratio:.2f}", _interval(one))
        lines.append((name, one.stage, one.verdict, *cells))
    return BenchTable(columns, tuple(lines))


def limits(result: Result) -> list[str]:
    """How close stages get to the machine's limits, for the last scenario with most stages, a line each."""
    with_work = [measured for measured in result.measured if measured.runs and measured.work]
    if not with_work:
        return []
    fullest = max(with_work, key=lambda measured: len(measured.work))
    return [f"{stage} {_limit(fullest, stage, work, result)}" for stage, work in fullest.work.items()]


def _limit(measured: Measured, stage: str, work: Work, result: Result) -> str:
    used = utilization(work, median(measured, stage) or 0.0, result.rates)
    if stage == "decode":
        amount, share = f"{work.bytes / work.units / 1e6:,.0f} MB", used.bandwidth
        limit = "memory bandwidth"
    else:
        flops = work.flops / work.units
        amount = f"{flops / 1e9:,.2f} GFLOP" if flops < 1e11 else f"{flops / 1e12:,.2f} TFLOP"
        limit, share = f"this machine's {work.precision} limit", used.flops
    if share is None:
        return f"{amount} per {work.per}"
    if share > 1 and stage == "decode":
        return f"{amount} per {work.per}, faster than memory: it fits in the CPU's caches"
    return f"{amount} per {work.per}, {share:.0%} of {limit}"


def warnings(result: Result) -> list[str]:
    """Fallbacks, and what was skipped, not compared or drifted; a reason common to all scenarios once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in result.measured:
        if one.skipped:
            reasons.setdefault((one.engine, one.skipped), []).append(one.scenario)
    scenarios, found = len({one.scenario for one in result.measured}), []
    for (engine, reason), skipped in reasons.items():
        common = len(skipped) == scenarios > 1
        found += [f"{engine}: {reason}"] if common else [f"{name} {engine}: {reason}" for name in skipped]
    unsteady = [f"{one.scenario} {one.engine}" for one in result.measured if drifted(one)]
    drifts = (f"{name}: its runs gave different tokens" for name in unsteady)
    return [*result.machine.get("warnings", ()), *found, *not_compared(result), *drifts]


def to_markdown(result: Result) -> str:
    """Tables and notes as Markdown."""
    notes = "\n".join(f"- {line}" for line in (*limits(result), *warnings(result)))
    return "\n\n".join([*(table.markdown() for table in tables(result)), *[notes] * bool(notes)]) + "\n"


def heading(result: Result) -> str:
    """Model, precisions, device and processor."""
    model, cpu = result.model, result.machine.get("cpu") or "unknown processor"
    return (
        f"{model.name}, {model.vision} + {model.backbone}; {result.device}, {result.threads} threads, {cpu}"
    )


def loaded(load: Load) -> str:
    """Times to load the bundle."""
    cold = f"{duration(load.cold_ms)} cold, " if load.cold_ms else ""
    return f"{cold}{spread(load.warm_ms)} warm"


def _name(result: Result, measured: Measured) -> str:
    """The scenario, and the engine if there are several."""
    several = len({one.engine for one in result.measured}) > 1
    return f"{measured.scenario} {measured.engine}" if several else measured.scenario


def duration(ms: float | None) -> str:
    """A time with three digits: ``0.42 ms``, ``31.5 ms``, ``12.3 s``; a dash for None."""
    if ms is None:
        return "–"
    value, unit = (ms / 1e3, "s") if ms >= 1e3 else (ms, "ms")
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def spread(values: Sequence[float]) -> str:
    """A median with its standard deviation in percent of the mean."""
    one = Summary.of(values)
    if one is None:
        return "–"
    return f"{duration(one.median)} ± {one.sd / one.mean:.0%}" if one.n > 1 else duration(one.median)


def megabytes(count: float) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:,.0f} MB"


def percent(share: float) -> str:
    """A share in percent, with a decimal if it is small."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _interval(one: StageRatio) -> str:
    return " to ".join(f"{end:.2f}" for end in one.interval) if one.interval else "–"
