"""A result in tables: stages of each scenario, rows in llama-bench's field names, how far from the limits."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from onevision.bench.peers import LLAMA
from onevision.bench.ratios import PEAK, ratios, unequal
from onevision.bench.ratios import to_dict as ratios_to_dict
from onevision.bench.statistics import Summary, samples
from onevision.bench.subject import OURS
from onevision.bench.work import utilisation
from onevision.runtime.answer import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onevision.bench.ratios import Ratio
    from onevision.bench.result import Measured, Result, Run, Work

#: Nanoseconds of a millisecond: llama-bench counts in them.
_NS = 1e6


def details(measured: Measured) -> dict[str, list[float]]:
    """Milliseconds of parts of stages, of all runs: tiles, tokens, and the two parts of prefill by run."""
    runs = measured.runs
    found = {
        "tile": [tile for run in runs for tile in run.tiles],
        "token": [token for run in runs for token in run.tokens],
        "prefill picture": [run.prefill["picture"] for run in runs if "picture" in run.prefill],
        "prefill text": [run.prefill["text"] for run in runs if "text" in run.prefill],
    }
    return {name: values for name, values in found.items() if values}


def unaccounted(run: Run) -> float:
    """Share of a run that is in no stage, 0 to 1."""
    return 1 - sum(run.stages.values()) / run.total if run.total else 0.0


def typical(measured: Measured) -> Run:
    """The run of the median total, the faster of two: its stages add up, which medians of stages do not."""
    runs = sorted(measured.runs, key=lambda run: run.total)
    return runs[(len(runs) - 1) // 2]


def drifted(measured: Measured) -> bool:
    """Whether runs gave different tokens, though nothing that decides them has changed."""
    return len(Counter(run.output for run in measured.runs)) > 1


def summary(result: Result) -> dict[str, Any]:
    """Statistics of a result, for its JSON: by scenario and engine, then by stage."""
    return {
        "scenarios": [
            {
                "scenario": measured.scenario,
                "subject": measured.subject,
                "ms": {name: asdict(one) for name, one in _summaries(samples(measured))},
                "detail_ms": {name: asdict(one) for name, one in _summaries(details(measured))},
                "tokens_per_second": _rate(measured),
                "unaccounted": max(map(unaccounted, measured.runs), default=None),
                "output_drifted": drifted(measured),
                "limits": {
                    stage: asdict(utilisation(work, _median(measured, stage), result.rates))
                    for stage, work in measured.work.items()
                    if measured.runs
                },
            }
            for measured in result.measured
        ],
        "against": ratios_to_dict(result),
        "rows": rows(result),
    }


def rows(result: Result) -> list[dict[str, Any]]:
    """A row of each stage of each scenario, in llama-bench's field names where it has them.

    ``n_prompt`` and ``n_gen`` are the tokens that the stage reads or makes, ``n_depth`` those before; the
    rates, in tokens a second, are of the stages that have tokens. ``ours_ratio``, in a peer's row, is ours
    divided by it.
    """
    model, machine = result.model, result.machine
    common = {
        "model_filename": model.name,
        "model_type": None,
        "model_size": None,
        "cpu_info": machine.get("cpu"),
        "gpu_info": (machine.get("gpu") or {}).get("name"),
        "backends": result.device.upper(),
        "n_threads": result.threads,
        "type_k": None,
        "type_v": None,
        "test_time": result.started,
    }
    bundle = {
        "model_type": f"{model.vision} + {model.backbone}",
        "model_size": model.bytes,
        "type_k": model.cache,
        "type_v": model.cache,
    }
    against = {(one.scenario, one.peer, one.what): one for one in ratios(result)}
    return [
        {
            **common,
            **(bundle if measured.subject in {OURS, LLAMA} else {}),
            "scenario": measured.scenario,
            "subject": measured.subject,
            **row,
            "peak_bytes": measured.memory and measured.memory.peak,
            "gpu_peak_bytes": measured.memory and measured.memory.gpu_peak,
            **_ratio_columns(against.get((measured.scenario, measured.subject, row["stage"]))),
        }
        for measured in result.measured
        for row in _stage_rows(measured)
    ]


def _ratio_columns(one: Ratio | None) -> dict[str, float | None]:
    low, high = (one.interval if one else None) or (None, None)
    return {"ours_ratio": one.ratio if one else None, "ours_ratio_low": low, "ours_ratio_high": high}


def _stage_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    counts = measured.counts
    if counts is None:
        return
    for stage, values in samples(measured).items():
        one = Summary.of(values)
        if one is None:
            continue
        prompt = counts.prompt_tokens if stage in {"prefill", "ttft", "total"} else 0
        steps = {"decode": counts.completion_tokens - 1, "first_token": 1, "total": counts.completion_tokens}
        tokens = {"prefill": counts.prompt_tokens, "decode": counts.completion_tokens - 1}.get(stage)
        rates = Summary.of([tokens / value * 1e3 for value in values if value]) if tokens else None
        yield {
            "stage": stage,
            "n_prompt": prompt,
            "n_gen": steps.get(stage, 0),
            "n_depth": counts.prompt_tokens if stage in {"decode", "tpot"} else 0,
            "n_tiles": counts.tiles,
            "n_runs": one.n,
            "avg_ns": round(one.mean * _NS),
            "stddev_ns": round(one.sd * _NS),
            "min_ns": round(one.min * _NS),
            "median_ns": round(one.median * _NS),
            "p90_ns": round(one.p90 * _NS),
            "p99_ns": round(one.p99 * _NS),
            "avg_ts": rates and round(rates.mean, 3),
            "stddev_ts": rates and round(rates.sd, 3),
        }


def to_csv(result: Result) -> str:
    """:func:`rows` as CSV."""
    found = rows(result)
    text = io.StringIO()
    if found:
        writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    return text.getvalue()


COLUMNS = (
    "scenario",
    "tiles",
    "tokens",
    "encode",
    "prefill",
    "TTFT",
    "per token",
    "tokens/s",
    "total",
    "peak",
)


def table(result: Result) -> list[tuple[str, ...]]:
    """Cells of the main table, medians, in the order of :data:`COLUMNS`."""
    lines = []
    for measured in result.measured:
        counts, times = measured.counts, samples(measured)
        if not measured.runs or counts is None:
            continue
        rate = _rate(measured)
        peak = f"{measured.memory.peak / 1e6:,.0f} MB" if measured.memory else "–"
        lines.append(
            (
                _name(result, measured),
                f"{counts.tiles}",
                f"{counts.prompt_tokens:,}+{counts.completion_tokens}",
                *(duration(_median_of(times.get(stage))) for stage in ("encode", "prefill", "ttft", "tpot")),
                f"{rate:.1f}" if rate else "–",
                spread(times["total"]),
                peak,
            )
        )
    return lines


def shares(result: Result) -> list[tuple[str, ...]]:
    """Cells of where the time of the median run goes: per cent by stage, those of :func:`share_columns`.

    What is in no stage is that of the worst run.
    """
    stages = share_columns(result)[1:-1]
    lines = []
    for measured in result.measured:
        if measured.runs:
            run = typical(measured)
            parts = [run.stages.get(stage, 0.0) / (run.total or 1.0) for stage in stages]
            rest = max(0.0, *map(unaccounted, measured.runs))
            lines.append((_name(result, measured), *map(percent, (*parts, rest))))
    return lines


AGAINST = ("scenario", "against", "of", "ours", "theirs", "ours / theirs", "interval")


def against(result: Result) -> list[tuple[str, ...]]:
    """Cells of ours beside each peer, in the order of :data:`AGAINST`."""
    return [
        (
            one.scenario,
            one.peer,
            _LABELS.get(one.what, one.what),
            *(_amount(one.what, amount) for amount in (one.ours, one.theirs)),
            f"{one.ratio:.2f}",
            f"{one.interval[0]:.2f} to {one.interval[1]:.2f}" if one.interval else "–",
        )
        for one in ratios(result)
    ]


_LABELS = {"ttft": "TTFT", "tpot": "per token", PEAK: "peak memory"}


def _amount(what: str, amount: float) -> str:
    return f"{amount / 1e6:,.0f} MB" if what == PEAK else duration(amount)


def skipped(result: Result) -> list[str]:
    """What was not measured or not compared, and why; a reason that all scenarios share is told once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in result.measured:
        if one.skipped:
            reasons.setdefault((one.subject, one.skipped), []).append(one.scenario)
    scenarios = {one.scenario for one in result.measured}
    told = [
        f"{subject}: {reason}" if len(scenarios) == len(of) > 1 else f"{scenario} {subject}: {reason}"
        for (subject, reason), of in reasons.items()
        for scenario in (of[:1] if len(scenarios) == len(of) else of)
    ]
    return [*told, *unequal(result)]


def _name(result: Result, measured: Measured) -> str:
    """A scenario, and the engine where there are several."""
    several = len({one.subject for one in result.measured}) > 1
    return f"{measured.scenario} {measured.subject}" if several else measured.scenario


def share_columns(result: Result) -> tuple[str, ...]:
    """Names of the stages that any scenario has entered, in order, between ``scenario`` and ``none``."""
    entered = {stage for measured in result.measured for stage in samples(measured)}
    return ("scenario", *(stage for stage in STAGES if stage in entered), "none")


def limits(result: Result) -> list[str]:
    """How far the stages of the last scenario with all of them are from the limits, a sentence each."""
    with_runs = [measured for measured in result.measured if measured.runs and measured.work]
    if not with_runs:
        return []
    fullest = max(with_runs, key=lambda measured: len(measured.work))
    return [
        f"{stage} {_limit(stage, work, _median(fullest, stage), result)}"
        for stage, work in fullest.work.items()
    ]


def _limit(stage: str, work: Work, ms: float, result: Result) -> str:
    used = utilisation(work, ms, result.rates)
    by_bytes = stage == "decode"
    if by_bytes:
        amount, share = f"{work.bytes / work.units / 1e6:,.0f} MB", used.bandwidth
        limit = "memory bandwidth"
    else:
        amount, share = _flops(work.flops / work.units), used.flops
        limit = f"this machine's {work.precision} limit"
    told = f", {share:.0%} of {limit}" if share is not None else ""
    return f"{amount} a {work.per}{told}"


def _flops(count: float) -> str:
    return f"{count / 1e9:,.2f} GFLOP" if count < 1e11 else f"{count / 1e12:,.2f} TFLOP"


def to_markdown(result: Result) -> str:
    """The main table and the shares, as Markdown."""
    parts = [
        _markdown(COLUMNS, table(result)),
        _markdown(share_columns(result), shares(result)),
        _markdown(AGAINST, against(result)) if against(result) else "",
        "\n".join(f"- {line}" for line in (*limits(result), *skipped(result))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, marks, *lines))


def duration(ms: float | None) -> str:
    """A time with three digits: ``0.42 ms``, ``31.5 ms``, ``12.3 s``; a dash for None."""
    if ms is None:
        return "–"
    value, unit = (ms / 1e3, "s") if ms >= 1e3 else (ms, "ms")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def spread(values: Sequence[float]) -> str:
    """A median with its standard deviation in per cent of the mean."""
    one = Summary.of(values)
    if one is None:
        return "–"
    return f"{duration(one.median)} ± {one.sd / one.mean:.0%}" if one.n > 1 else duration(one.median)


def percent(share: float) -> str:
    """A share as per cent, with a digit where it is small."""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _summaries(groups: dict[str, list[float]]) -> Iterator[tuple[str, Summary]]:
    for name, values in groups.items():
        if one := Summary.of(values):
            yield name, one


def _median_of(values: Sequence[float] | None) -> float | None:
    one = Summary.of(values or ())
    return one.median if one else None


def _median(measured: Measured, stage: str) -> float:
    return _median_of(samples(measured).get(stage)) or 0.0


def _rate(measured: Measured) -> float | None:
    """Tokens a second after the first."""
    tpot = _median_of(samples(measured).get("tpot"))
    return 1e3 / tpot if tpot else None
