"""What ``onevision plan`` prints: inputs, costs, and what other budgets would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onevision.cli.console import print_facts, stdout
from onevision.files import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.planning.budget import Forecast
    from onevision.planning.cost import PlannedInput
    from onevision.runtime.prefill.policy import Reader

_READERS: dict[Reader, str] = {"onnx": "the prefill graph", "llama": "llama.cpp"}


def print_costs(
    model: str, found: Forecast, table: Sequence[Forecast], reader: Reader | None, *, exact: bool
) -> None:
    """Print a plan.

    Args:
        model: Its name.
        found: The budget and what it costs.
        table: Other budgets.
        reader: What reads the prompt, where that is known.
        exact: The tokens were counted.
    """
    costs = found.costs
    if costs.inputs:
        _print_inputs(costs.inputs)
    about = "" if exact else "about "
    share = costs.prompt_tokens / costs.context_length
    facts = {
        "model": model,
        "prompt": f"{about}{costs.prompt_tokens:,} tokens, {share:.0%} of {costs.context_length:,}",
    }
    if reader:
        facts["read by"] = _READERS[reader]
    if costs.reused_frames:
        facts["reused"] = f"{costs.reused_frames} frames, like others"
    facts["KV cache"] = readable(costs.kv_bytes)
    for stage, count in costs.flops.items():
        seconds = f", {_duration(costs.seconds[stage], found)} here" if costs.seconds else ""
        facts[stage] = f"{_operations(count)}{seconds}"
    if found.ttft is not None:
        facts["first token"] = f"after {_duration(found.ttft, found)}"
    print_facts(facts)
    if costs.prompt_tokens >= costs.context_length:
        stdout().print("the context cannot hold this prompt", style="red")
    if len(table) > 1:
        _print_budgets(table, found)


def _print_inputs(inputs: Sequence[PlannedInput]) -> None:
    from rich.table import Column, Table

    numbers = [Column(name, justify="right", no_wrap=True) for name in ("size", "grid", "tiles", "tokens")]
    table = Table(Column("input", overflow="fold"), *numbers, box=None, pad_edge=False)
    for item in inputs:
        name, size = Path(item.path).name, f"{item.width}×{item.height}"
        table.add_row(name, size, _grid(item), str(item.tiles), f"{item.image_tokens:,}")
    stdout().print(table)


def _print_budgets(rows: Sequence[Forecast], chosen: Forecast) -> None:
    """A row of each; the time is that to the first token, or of encode and prefill where that is all."""
    from rich.table import Column, Table

    numbers = [Column(name, justify="right", no_wrap=True) for name in ("grid", "tiles", "tokens", "time")]
    table = Table(Column("budget", no_wrap=True), *numbers, "", box=None, pad_edge=False)
    for row in rows:
        costs = row.costs
        (item,) = costs.inputs
        seconds = sum(costs.seconds.values()) if row.ttft is None and costs.seconds else row.ttft
        mark = "chosen" if costs.inputs == chosen.costs.inputs else ""
        time = "" if seconds is None else _duration(seconds, row)
        table.add_row(_flag(row), _grid(item), str(costs.tiles), f"{costs.image_tokens:,}", time, mark)
    console = stdout()
    console.print()
    console.print(table)


def _flag(row: Forecast) -> str:
    """What asks for a budget on the command line."""
    budget = row.budget
    if budget.max_tiles is not None:
        return f"--max-tiles {budget.max_tiles}"
    if budget.frames is not None:
        return f"--frames {budget.frames}"
    return "default" if budget.detail == "auto" else f"--detail {budget.detail}"


def _grid(item: PlannedInput) -> str:
    if item.grid:
        return f"{item.grid[1]}×{item.grid[0]}"
    return f"{item.frames} frames" if item.frames else "–"


def _operations(count: int) -> str:
    return f"{count / 1e9:,.1f} GFLOP" if count < 1e12 else f"{count / 1e12:,.1f} TFLOP"


def _duration(seconds: float, found: Forecast) -> str:
    """Rough, or predicted from what was measured."""
    how = "roughly" if found.ttft is None else "about"
    if seconds < 0.1:
        return "under 0.1 s"
    return f"{how} {seconds:,.1f} s" if seconds < 120 else f"{how} {seconds / 60:,.0f} min"
