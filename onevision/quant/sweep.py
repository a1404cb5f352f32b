"""A sweep: many precisions of one bundle, each measured, and the Pareto front of size, speed and quality.

In: a bundle in floats, and candidates. Out: a row of ``sweep.jsonl`` for each, written when it is measured;
at the end tables and a plot of all. An interrupted sweep resumes after its last row.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision._version import __version__
from onevision.errors import ExportError, InputError, UsageError
from onevision.eval.jsonl import read_objects, to_line
from onevision.eval.questions import TinySuite
from onevision.files import scratch_folder, whole_file
from onevision.progress import LogProgress
from onevision.quant.calibration import files_in
from onevision.quant.candidates import Candidate, Quantizer, check_source, precisions_of
from onevision.runtime import anyres
from onevision.typed import build

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onevision.bundle import Bundle
    from onevision.precisions import BackbonePrecision, EncoderPrecision
    from onevision.progress import Progress
    from onevision.quant.candidates import GateConfig
    from onevision.quant.gates import GateResult
    from onevision.runtime.engine import OneVision

ROWS, TABLE, REPORT, PLOT = "sweep.jsonl", "sweep.csv", "sweep.json", "sweep.png"
_SCRATCH = "trial"
#: Default candidates.
VISIONS: tuple[EncoderPrecision, ...] = ("fp32", "int8")
BACKBONES: tuple[BackbonePrecision, ...] = ("f16", "q8_0", "q4_k_m", "iq4_nl", "q4_0")

#: Costs beside the divergence: field of a row, label of its axis.
AXES = {"bytes": "size, MB", "tile_ms": "time per tile, ms", "token_ms": "time per token, ms"}
_DOTS_PER_INCH = 120
_MIN_KL = 1e-7  # place of the float bundle itself on a logarithmic axis

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


@dataclass(frozen=True)
class SweepRow(Candidate):
    """A candidate and its figures. None: not measured, or not finite."""

    bytes: int = 0  # of the bundle
    bits_per_weight: float = 0.0  # of the backbone
    tile_ms: float = 0.0
    token_ms: float = 0.0
    cosine: float | None = None  # image features of the worst tile
    mean_kl: float | None = None
    p99_kl: float | None = None
    top1: float | None = None
    accuracy: float | None = None
    passed: bool = False
    reasons: tuple[str, ...] = ()
    run: str = ""  # see :func:`sweep_id`

    @property
    def candidate(self) -> Candidate:
        """The precisions alone."""
        return Candidate(self.vision, self.backbone, self.imatrix)


def row_of(candidate: Candidate, quality: GateResult, figures: dict[str, Any], run: str) -> SweepRow:
    """A row of the gate's figures and of others: bytes, bits per weight, milliseconds."""
    features, tokens, answers = quality.features, quality.tokens, quality.answers
    return SweepRow(
        **asdict(candidate),
        **figures,
        cosine=features.cosine if features else None,
        mean_kl=tokens.mean_kl if tokens else None,
        p99_kl=tokens.p99_kl if tokens else None,
        top1=tokens.top1 if tokens else None,
        accuracy=answers.accuracy if answers else None,
        passed=quality.passed,
        reasons=quality.reasons,
        run=run,
    )


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
    _write(rows, source, folder, run)
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


def _write(rows: Sequence[SweepRow], source: Bundle, folder: Path, run: str) -> None:
    """Write tables and plot."""
    facts = {"bundle": source.manifest.name, "precisions": precisions_of(source), "run": run}
    report = json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
    with whole_file(folder / REPORT, len(report)) as part:
        part.write_text(report + "\n", encoding="utf-8")
    with whole_file(folder / TABLE, len(report)) as part:
        write_csv(rows, part)
    with whole_file(folder / PLOT, 0) as part:
        plot(rows, part)


def write_csv(rows: Sequence[SweepRow], path: Path) -> None:
    """Write a table with a header; reasons are joined by semicolons."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(SweepRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) | {"reasons": "; ".join(row.reasons)} for row in rows)


def sweep_id(source: Bundle, config: GateConfig) -> str:
    """Hash, 12 hexadecimal digits, of all that the figures depend on but the candidate and the machine."""
    questions = config.questions_for(source)
    asked = questions if isinstance(questions, TinySuite) else [(each.id, each.prompt) for each in questions]
    folder, imatrix = config.calibration, config.imatrix
    images = None if folder is None else [(path.name, path.stat().st_size) for path in files_in(folder)]
    weights = hashlib.sha256(imatrix.read_bytes()).hexdigest() if isinstance(imatrix, Path) else None
    facts = (__version__, source.manifest.to_json(), asked, images, weights, config.thresholds)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def open_rows(path: Path, run: str, *, force: bool = False) -> list[SweepRow]:
    """The rows so far; the file is made if missing, and rid of a line that was cut off.

    Args:
        path: The file; its folder is made if missing.
        run: See :func:`sweep_id`.
        force: Drop rows of another sweep.

    Raises:
        UsageError: Rows of another sweep, or the folder cannot be made.
        InputError: The file is damaged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {path.parent}: {error.strerror or error}") from error
    rows = read_rows(path) if path.exists() else []
    kept = [row for row in rows if row.run == run]
    if len(kept) < len(rows) and not force:
        raise UsageError(
            f"{path} is from another sweep: another bundle, other questions or another calibration",
            hint="choose another folder, or --force to start over",
        )
    with whole_file(path, 0) as part:
        part.write_bytes(b"".join(to_line(asdict(row)) for row in kept))
    return kept


def append_row(path: Path, row: SweepRow) -> None:
    """Add a row to the file.

    Raises:
        ExportError: The operating system refuses.
    """
    try:
        with path.open("ab") as file:
            file.write(to_line(asdict(row)))
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error


def read_rows(path: Path) -> list[SweepRow]:
    """The rows of a file; a last line that was cut off is left out.

    Raises:
        InputError: The file cannot be read, or is no sweep.
    """
    lines = read_objects(path, unfinished=True)
    return [_row(data, f"{path}, line {number}") for number, data in lines.items()]


def _row(data: dict[str, Any], where: str) -> SweepRow:
    try:
        return build(SweepRow, data)
    except ValueError as error:
        hint = "remove the file, or choose another folder"
        raise InputError(f"{where} is no row of a sweep: {error}", hint=hint) from error


def _tile_ms(model: OneVision) -> float:
    """Fastest time of a tile through the vision encoder, after one to warm up."""
    vision, encoder = model.bundle.manifest.vision, model.vision_encoder()
    side = vision.image_size
    noise = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    pixels = anyres.normalize(noise, vision.mean, vision.std)
    encoder.encode(pixels)
    return _fastest(lambda: encoder.encode(pixels), _TIMED_TILES)


def _token_ms(model: OneVision) -> float:
    """Fastest time of a decoded token after a context of 256, without sampling."""
    backbone = model.backbone
    context = min(_CONTEXT, backbone.context_length - _TIMED_TOKENS)
    (token, *_) = backbone.vocabulary.encode("a")
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


def front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is on the Pareto front: no other is as good in every cost and better in one."""
    points = [tuple(cost) for cost in costs]
    return [
        not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in points)
        for own in points
    ]


def front_of(rows: Sequence[SweepRow]) -> list[bool]:
    """Whether each row is on the Pareto front of divergence and all of :data:`AXES` together."""
    return front(
        [
            (inf if row.mean_kl is None else row.mean_kl, *(getattr(row, axis) for axis in AXES))
            for row in rows
        ]
    )


def plot(rows: Sequence[SweepRow], path: Path) -> None:
    """Draw divergence, and accuracy if it was measured, against each of :data:`AXES` as PNG.

    The front is joined and labeled; candidates that failed the gate are crosses. Rows whose logits are not
    finite are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.mean_kl is not None]
    losses = {"mean KL divergence from the float bundle": [max(row.mean_kl or 0, _MIN_KL) for row in shown]}
    if shown and all(row.accuracy is not None for row in shown):
        losses["wrong answers, %"] = [100 * (1 - (row.accuracy or 0)) for row in shown]
    figure = Figure(figsize=(5 * len(AXES), 5 * len(losses)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(losses), len(AXES), sharey="row", squeeze=False)
    for line, (loss, values) in zip(grid, losses.items(), strict=True):
        line[0].set_ylabel(loss)
        for axes, (field, label) in zip(line, AXES.items(), strict=True):
            _draw(axes, shown, field, values)
            axes.set_xlabel(label)
    grid[0, 0].set_yscale("log")  # shared by the row
    figure.suptitle("Lower left is better. Circles pass the quality gate, crosses fail.")
    figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")


def _draw(axes: Any, rows: Sequence[SweepRow], field: str, losses: Sequence[float]) -> None:  # noqa: ANN401
    """Draw the points of one panel, and the front among them."""
    unit = 1e6 if field == "bytes" else 1.0
    points = [(getattr(row, field) / unit, loss) for row, loss in zip(rows, losses, strict=True)]
    ahead = front(points)
    best = sorted(point for point, is_ahead in zip(points, ahead, strict=True) if is_ahead)
    axes.plot(*zip(*best, strict=True), color="0.75", linewidth=1.5, zorder=1)
    for row, point, is_ahead in zip(rows, points, ahead, strict=True):
        color, marker = ("tab:green", "o") if row.passed else ("tab:red", "x")
        axes.scatter(*point, color=color, marker=marker, zorder=2)
        if is_ahead:
            axes.annotate(row.name, point, xytext=(5, 5), textcoords="offset points", fontsize=7)
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
