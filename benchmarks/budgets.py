"""What a budget costs in accuracy: questions of the tiny suite, asked with fewer tiles or shared frames.

    python benchmarks/budgets.py [--model BUNDLE] [--per-family 100]

Prints two Markdown tables: single images by budget, videos by ``--dedup``.
"""

import json
import subprocess
import sys
from typing import Any

import typer

from onevision.bench.report import BenchTable
from onevision.eval.suite.stream import FAMILIES, build_sample

IMAGE_BUDGETS = (
    *((), ("--max-tiles", "10"), ("--max-tiles", "7"), ("--max-tiles", "5"), ("--max-tiles", "3")),
    *(("--max-tiles", "2"), ("--detail", "low"), ("--detail", "high")),
)
VIDEO_BUDGETS = ((), ("--dedup", "0"), ("--dedup", "1"), ("--dedup", "3"))


def ask(kind: str, budget: tuple[str, ...], model: str, per_family: int) -> dict[str, Any]:
    """The object that ``onevision eval --json`` prints, for all families of a kind of input."""
    families = [name for name in FAMILIES if build_sample(name, "test", 0, 0).kind == kind]
    words = [word for name in families for word in ("--family", name)]
    words += ["--limit", str(per_family * len(families)), *budget, *(["-m", model] if model else [])]
    command = [sys.executable, "-m", "onevision", "eval", *words, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main(model: str = "", per_family: int = 100) -> None:
    """Ask, and print."""
    rows = []
    for budget in IMAGE_BUDGETS:
        found = ask("image", budget, model, per_family)
        small = found["families"]["small_print"]["accuracy"]
        cells = (f"{found['accuracy']:.1%}", f"{found['tiles']:.1f}", f"{found['image_tokens']:.0f}")
        rows.append((" ".join(budget) or "as trained", *cells, f"{small:.0%}"))
    columns = ("budget", "accuracy", "tiles", "visual tokens", "small print alone")
    print(BenchTable(columns, tuple(rows)).markdown() + "\n", flush=True)
    videos = []
    for budget in VIDEO_BUDGETS:
        found = ask("video", budget, model, per_family)
        videos.append(
            (" ".join(budget) or "as they are", f"{found['accuracy']:.1%}", f"{found['tiles']:.1f}")
        )
    print(BenchTable(("budget", "accuracy", "frames encoded"), tuple(videos)).markdown())


if __name__ == "__main__":
    typer.run(main)
