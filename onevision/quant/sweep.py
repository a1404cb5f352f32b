"""A sweep: many precisions of one bundle, each measured, and the Pareto front of size, speed and quality.

In: a bundle in floats, and candidates. Out: a row of ``sweep.jsonl`` for each, written when it is measured;
at the end tables and a plot of all. An interrupted sweep resumes after its last row.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from onevision._version import __version__
from onevision.bundle import Bundle
from onevision.eval.questions import TinySuite
from onevision.files import scratch_folder, sha256_of, whole_file
from onevision.precisions import BackbonePrecision, EncoderPrecision
from onevision.progress import LogProgress, Progress
from onevision.quant.calibration import files_in
from onevision.quant.candidates import Candidate, GateConfig, Quantizer, check_source, precisions_of
from onevision.quant.rows import SweepRow, append_row, open_rows, plot, row_of, write_csv
from onevision.runtime import anyres
from onevision.runtime.engine import OneVision

ROWS, TABLE, REPORT, PLOT = "sweep.jsonl", "sweep.csv", "sweep.json", "sweep.png"
_SCRATCH = "trial"
#: Default candidates.
VISIONS: tuple[EncoderPrecision, ...] = ("fp32", "int8")
BACKBONES: tuple[BackbonePrecision, ...] = ("f16", "q8_0", "q4_k_m", "iq4_nl", "q4_0")

# Speed: the fastest of several runs counts, as other load on the machine can only add to it.
_TIMED_TILES = 5
_CONTEXT, _TIMED_TOKENS = 256, 32


def candidates_of(
    visions: Sequence[EncoderPrecision], backbones: Sequence[BackbonePrecision], config: GateConfig
) -> list[Candidate]:
    """All pairs, with and without an importance matrix where it makes a difference."""
    return [
        Candidate(vision, backbone, weighted)
        for vision in dict.fromkeys(visions)
        for backbone in dict.fromkeys(backbones)
        for weighted in config.imatrix_choices(backbone)
    ]


def sweep(
    source: Bundle,
    folder: Path,
    config: GateConfig,
    *,
    visions: Sequence[EncoderPrecision] = VISIONS,
    backbones: Sequence[BackbonePrecision] = BACKBONES,
    force: bool = False,
    progress: Progress | None = None,
) -> list[SweepRow]:
    """Measure all pairs of precisions that have no row yet, and write tables and plot of all rows.

    Args:
        source: A bundle in floats.
        folder: Folder for rows, tables and plot, made if missing.
        config: What to measure with.
        visions: Precisions of the vision encoder.
        backbones: Precisions of the language model.
        force: Start over if the folder has rows of another sweep.
        progress: Progress reporter; None for the log.

    Returns:
        The rows in the order of the candidates.

    Raises:
        UsageError: A precision finer than the source's, rows of another sweep.
        QuantError: The source is quantized already, or cannot be.
        OneVisionError: Something cannot be made or measured. Finished rows stay, as after Ctrl-C.
    """
    progress = progress or LogProgress()
    candidates = candidates_of(visions, backbones, config)
    for candidate in candidates:
        check_source(source, candidate.vision, candidate.backbone)
    config.check()
    run, path = sweep_id(source, config), folder / ROWS
    done = {row.candidate: row for row in open_rows(path, run, force=force)}
    for left in folder.glob(f".{_SCRATCH}.*"):  # by a sweep that was killed
        shutil.rmtree(left, ignore_errors=True)
    missing = [candidate for candidate in candidates if candidate not in done]
    if len(missing) < len(candidates):
        progress.note(f"{len(candidates) - len(missing)} of {len(candidates)} rows are there already")
    try:
        with scratch_folder(folder / _SCRATCH) as scratch:
            quantizer = Quantizer(source, scratch, config, progress)
            for number, candidate in enumerate(missing, 1):
                progress.note(f"{number} of {len(missing)}: {candidate.name}")
                done[candidate] = _measured(quantizer, candidate, scratch, run)
                append_row(path, done[candidate])
    finally:
        if missing and missing[-1] not in done:
            progress.note(
                f"{len(done)} of {len(candidates)} rows are kept in {folder}; run the same command to resume"
            )
    rows = [done[candidate] for candidate in candidates]
    _write(rows, source, folder, config)
    return rows


def _measured(quantizer: Quantizer, candidate: Candidate, scratch: Path, run: str) -> SweepRow:
    with TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as place:
        bundle = quantizer.make(candidate, Path(place))
        quality = quantizer.measure(bundle)
        with quantizer.load(bundle) as model:
            figures = {
                "bytes": bundle.bytes,
                "bits_per_weight": bundle.manifest.backbone.bits_per_weight,
                "tile_ms": _tile_ms(model),
                "token_ms": _token_ms(model),
            }
    return row_of(candidate, quality, figures, run)


def _write(rows: Sequence[SweepRow], source: Bundle, folder: Path, config: GateConfig) -> None:
    """Write tables and plot."""
    facts = {"bundle": source.manifest.name, "precisions": precisions_of(source), "run": rows[0].run}
    report = json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
    with whole_file(folder / REPORT, len(report)) as part:
        part.write_text(report + "\n", encoding="utf-8")
    with whole_file(folder / TABLE, len(report)) as part:
        write_csv(rows, part)
    with whole_file(folder / PLOT, 0) as part:
        plot(rows, part, max_kl=config.thresholds.mean_kl)


def sweep_id(source: Bundle, config: GateConfig) -> str:
    """Hash, 12 hexadecimal digits, of all that the figures depend on but the candidate and the machine."""
    questions = config.questions_for(source)
    asked = questions if isinstance(questions, TinySuite) else [(each.id, each.prompt) for each in questions]
    folder, imatrix = config.calibration, config.imatrix
    images = None if folder is None else [(path.name, path.stat().st_size) for path in files_in(folder)]
    weights = sha256_of(imatrix) if isinstance(imatrix, Path) else None
    facts = (__version__, source.manifest.to_json(), asked, images, weights, config.thresholds)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _tile_ms(model: OneVision) -> float:
    """Fastest time of a tile through the vision encoder, after one to warm up."""
    vision, encoder = model.bundle.manifest.vision, model.pipeline.vision_encoder()
    side = vision.image_size
    noise = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    pixels = anyres.normalize(noise, vision.mean, vision.std)
    encoder.encode(pixels)
    return _fastest(lambda: encoder.encode(pixels), _TIMED_TILES)


def _token_ms(model: OneVision) -> float:
    """Fastest time of a decoded token after a context of 256, without sampling."""
    backbone = model.pipeline.backbone
    context = min(_CONTEXT, backbone.context_length - _TIMED_TOKENS)
    (token, *_) = backbone.tokenizer.encode("a")
    backbone.start(context + _TIMED_TOKENS)
    backbone.prefill([[token] * context])
    return _fastest(lambda: backbone.append(token), _TIMED_TOKENS)


def _fastest(work: Callable[[], object], runs: int) -> float:
    """Minimum time of several runs in milliseconds."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3
