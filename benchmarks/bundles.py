"""The bundles that the figures at full size are measured with: a published shape with random weights.

    python benchmarks/bundles.py FOLDER [--size 0.5b]

Makes FOLDER/checkpoint, FOLDER/floats (fp32, f16, int8 prefill graph), FOLDER/default (as `export` writes it)
and FOLDER/fast (int8, q4_0, the same graph), and prints the seconds and the peak memory of each command as
JSON (Linux and macOS).
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import typer


def main(folder: Path, size: str = "0.5b") -> None:
    """Make them, and print what it took."""
    checkpoint, floats, fast = folder / "checkpoint", folder / "floats", folder / "fast"
    # --force: random weights do not pass the quality gate.
    gate = ("--limit", 4, "--force")
    commands = (
        ("synth", "--size", size, checkpoint),
        ("export", "--source", checkpoint, "--vision", "fp32", "--backbone", "f16", "-o", floats),
        ("export", "--source", checkpoint, "-o", folder / "default"),
        ("quant", "apply", floats, fast, "--vision", "int8", "--backbone", "q4_0", *gate),
    )
    folder.mkdir(parents=True, exist_ok=True)
    unit = 1 if sys.platform == "darwin" else 1024
    for words in commands:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "onevision", *map(str, words)], check=True)
        # The largest child so far: each command needs more than the one before.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
        took = {"command": words[0], "seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak}
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    typer.run(main)
