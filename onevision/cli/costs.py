"""Output of ``onevision plan``: inputs, costs, and the costs of other budgets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onevision.cli.console import print_facts, print_table, stdout
from onevision.files import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.planning.budget import Forecast
    from onevision.planning.cost import MediaCost
    from onevision.planning.plan import PromptPlan
    from onevision.runtime.prefill.policy import PrefillBackend

_SPEEDS = {
    "measured": "measured with this bundle",
    "estimated": "estimated; onevision bench --quick measures them",
}
_BACKENDS: dict[PrefillBackend, str] = {"onnx": "the prefill graph", "llama": "llama.cpp"}


def print_plan(plan: PromptPlan) -> None:
    """Print a plan."""
    forecast, cost = plan.forecast, plan.forecast.cost
    if cost.inputs:
        _print_inputs(cost.inputs)
    about = "" if plan.backend else "about "
    share = cost.prompt_tokens / cost.context_length
    facts = {
        "model": plan.model,
        "prompt": f"{about}{cost.prompt_tokens:,} tokens, {share:.0%} of {cost.context_length:,}",
    }
    if plan.backend:
        facts["backend"] = _BACKENDS[plan.backend]
    if cost.reused_frames:
        facts["reused"] = f"{cost.reused_frames} frames, similar to others"
    facts["KV cache"] = readable(cost.kv_bytes)
    # One unit for both, in which the smaller is not 0.
    least = min(filter(None, cost.flops.values()))
    unit, name = (1e12, "TFLOP") if least >= 1e11 else (1e9, "GFLOP")
    for stage, count in cost.flops.items():
        if count:  # without an image nothing is encoded
            seconds = f", {_duration(cost.seconds[stage])} here" if cost.seconds else ""
            facts[stage] = f"{count / unit:,.1f} {name}{seconds}"
    if forecast.ttft is not None:
        facts["first token"] = _duration(forecast.ttft)
    if plan.speed:
        facts["times"] = _SPEEDS[plan.speed]
    print_facts(facts)
    if cost.prompt_tokens >= cost.context_length:
        stdout().print("the context cannot hold this prompt", style="red")
    if len(plan.budgets) > 1:
        _print_budgets(plan.budgets, forecast)


def _print_inputs(inputs: Sequence[MediaCost]) -> None:
    rows = []
    for item in inputs:
        name, size = Path(item.path).name, f"{item.width}×{item.height}"
        rows.append((name, size, _grid(item), str(item.tiles), f"{item.image_tokens:,}"))
    print_table(("input", "size", "grid", "tiles", "tokens"), rows)


def _print_budgets(rows: Sequence[Forecast], chosen: Forecast) -> None:
    """Print a row for each budget, with the time to the first token, or of encode and prefill alone."""
    lines = []
    for row in rows:
        cost = row.cost
        (item,) = cost.inputs
        mark = "chosen" if cost.inputs == chosen.cost.inputs else ""
        time = "" if row.ttft is None else _duration(row.ttft)
        lines.append((_flag(row), _grid(item), str(cost.tiles), f"{cost.image_tokens:,}", time, mark))
    print()
    print_table(("budget", "grid", "tiles", "tokens", "time", ""), lines, notes=True)


def _flag(row: Forecast) -> str:
    """Option of a budget on the command line."""
    budget = row.options
    if budget.max_tiles is not None:
        return f"--max-tiles {budget.max_tiles}"
    if budget.frames is not None:
        return f"--frames {budget.frames}"
    return "default" if budget.detail == "auto" else f"--detail {budget.detail}"


def _grid(item: MediaCost) -> str:
    if item.grid:
        return f"{item.grid[1]}×{item.grid[0]}"
    return f"{item.frames} frames" if item.frames else "–"


def _duration(seconds: float) -> str:
    """Seconds with two significant digits."""
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.{1 if seconds >= 0.995 else 2}f} s"
    return f"{float(f'{seconds:.2g}'):,.0f} s"
