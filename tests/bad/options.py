"""Values of options that no command can take."""

from __future__ import annotations

from tests.bad.made import Bad, folder

EMPTY = tuple(
    Bad(
        f"{command.split()[0]} with an empty {option}",
        f"{command} {option} '' {more}",
        f"{option} is empty",
        2,
    )
    for command, option, more in (
        ("run Hi", "--cache", "-m {bundle}"),
        ("run", "--messages", "-m {bundle}"),
        ("eval", "--questions", "-m {bundle}"),
        ("eval", "-o", "-m {bundle}"),
        ("export --source {checkpoint}", "-o", ""),
        ("export --source {checkpoint}", "--adapter", ""),
        ("verify -m {bundle}", "--reference", ""),
        ("quant apply {bundle} out", "--calibration", ""),
        ("quant apply {bundle} out", "--imatrix", ""),
    )
)
VALUES = tuple(
    Bad(f"{command} {option} {value!r}"[:60], f"{command} '{option}={value}' -m {{bundle}}", says, 2)
    for command, option, value, says in (
        ("run Hi", "--max-tokens", "", "--max-tokens is '', it must be a whole number"),
        ("run Hi", "--max-tokens", "1e3", "must be a whole number"),
        ("run Hi", "--max-tokens", "0x10", "must be a whole number"),
        ("run Hi", "--temperature", "1e400", "--temperature is inf"),
        ("run Hi", "--temperature", "0,5", "must be a number"),
        ("run Hi", "--top-p", "nan", "--top-p is nan"),
        ("run Hi", "--min-p", "inf", "--min-p is inf"),
        ("run Hi", "--repetition-penalty", "nan", "--repetition-penalty is nan"),
        ("run Hi", "--seed", "1.5", "must be a whole number"),
        ("run Hi", "--dedup", "256", "--dedup is 256.0"),
        ("run Hi", "--ttft-target", "1h", "must be a time above 0"),
        ("run Hi", "--ttft-target", "nan", "must be a time above 0"),
        ("run Hi", "--detail", "LOW", "must be one of low, auto, high"),
        ("run Hi", "--device", "cuda:x", "--device is 'cuda:x'"),
        ("run Hi", "--prefill", "", "--prefill is ''"),
        ("run Hi", "--cache", "/dev/null", "cannot make the cache /dev/null"),
        ("eval", "--limit", "0", "--limit is 0"),
        ("eval", "--suite", "big", "unknown suite 'big'"),
        ("eval", "--max-tokens", "0", "--max-tokens is 0"),
        ("plan", "--image-size", "1x1x1", "must be width and height"),
        ("plan", "--image-size", "-1x5", "must be width and height"),
        ("plan", "--dedup", "nan", "--dedup is nan"),
        ("bench", "--runs", "0", "--runs is 0"),
        ("bench", "--seconds", "nan", "--seconds is nan"),
        ("bench", "--scenario", "x", "unknown scenario 'x'"),
        ("bench", "--against", "x", "unknown peer 'x'"),
        ("bench", "--vision", "int8", "for --synthetic"),
    )
)
TARGETS = (
    Bad("bench into a folder that is missing", "bench -o no/x.json -m {bundle}", "cannot write no/x.json", 2),
    Bad("bench into a folder", "bench -o d -m {bundle}", "d exists", 2, folder("d")),
)

ROWS = (*EMPTY, *VALUES, *TARGETS)
