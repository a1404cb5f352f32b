"""Charts of results: time by stage, latency by tiles, decoding by context; PNG files and one web page.

In: results with their labels. Out: ``index.html``, which loads nothing, and a PNG file per chart.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np

from onevision.bench.compare import compare
from onevision.bench.report import changes, duration, heading, limits, loaded, percent, tables, warnings
from onevision.bench.result import Measured, Result, samples, typical
from onevision.bench.scenarios import LONG_SUFFIX
from onevision.errors import UsageError
from onevision.files import os_errors, readable, whole_file
from onevision.html import render
from onevision.runtime.clock import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "index.html"
OTHER = "other"
#: Paul Tol's muted scheme, distinct for color-blind people; the lighter colors for the longer stages.
_MUTED = "332288 999933 cc6677 88ccee aa4499 ddcc77 882255 44aa99 117733 b5b5b5"
STAGE_COLORS = {stage: f"#{color}" for stage, color in zip((*STAGES, OTHER), _MUTED.split(), strict=True)}
#: Paul Tol's bright scheme, one per engine and result.
SERIES_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_INK, _PAPER = "#1f1e1b", "#ffffff"
#: Stages whose share is never larger are drawn as OTHER; larger shares are printed in the bar.
_MIN_SHARE, _PRINTED_SHARE = 0.01, 0.07
_WIDTH, _HEIGHT, _ROW = 10.0, 5.4, 0.28  # inches
_MAX_LETTERS = 32

#: Title and description of each chart, by the name of its file.
CHARTS = {
    "stages": (
        "Time by stage",
        "The run with the median total. Other: time outside all stages, and stages below 1% everywhere.",
    ),
    "latency": (
        "Latency by tiles",
        "Median, minimum and maximum of all runs. The time to the first token includes the encoder's.",
    ),
    "decode": (
        "Decoding by context length",
        "Medians of whole answers (large) and of the token at each position (small). The limit is the bytes "
        "of weights and of past tokens, divided by the measured memory bandwidth.",
    ),
}


@dataclass(frozen=True)
class Series:
    """A labeled result, whole or of one engine; ``label`` is empty if there is nothing to tell apart."""

    label: str
    result: Result
    measured: tuple[Measured, ...]


def label_results(paths: Sequence[Path], results: Sequence[Result]) -> list[Series]:
    """Results labeled by file name, or by path if two names are the same.

    Raises:
        UsageError: A result has no runs.
    """
    stems, found = [path.stem for path in paths], []
    for path, result in zip(paths, results, strict=True):
        label = path.stem if stems.count(path.stem) == 1 else str(path.with_suffix(""))
        # The end of a long path tells it from others.
        label = label if len(label) <= _MAX_LETTERS else f"…{label[1 - _MAX_LETTERS :]}"
        measured = tuple(one for one in result.measured if one.runs and one.counts)
        if not measured:
            raise UsageError(f"{label} has no runs to draw", hint="measure again with: onevision bench")
        found.append(Series(label, result, measured))
    return found


def by_engine(labeled: Sequence[Series]) -> list[Series]:
    """The same, engine by engine."""
    found = []
    for one in labeled:
        engines = list(dict.fromkeys(each.engine for each in one.measured))
        for engine in engines:
            parts = [one.label] * (len(labeled) > 1) + [engine] * (len(engines) > 1)
            measured = tuple(each for each in one.measured if each.engine == engine)
            found.append(Series(" ".join(parts), one.result, measured))
    return found


def write_plots(labeled: Sequence[Series], folder: Path) -> list[Path]:
    """Draw results side by side. Files of these names are replaced, others are left alone.

    Returns:
        The page and the PNG files.

    Raises:
        UsageError: The folder cannot be made.
        ExportError: A file cannot be written.
    """
    series, svgs, pngs = by_engine(labeled), {}, {}
    for name, draw in (("stages", draw_stages), ("latency", draw_latency), ("decode", draw_decode)):
        with _figure() as figure:
            draw(figure, series)
            svgs[name] = _to_svg(figure)
            pngs[f"{name}.png"] = _to_png(figure, [one.result for one in labeled])
    with os_errors(f"make the folder {folder}", UsageError):
        folder.mkdir(parents=True, exist_ok=True)
    files = {folder / name: data for name, data in {PAGE: _page(labeled, svgs).encode(), **pngs}.items()}
    for path, data in files.items():
        with whole_file(path, len(data)) as part:
            part.write_bytes(data)
    return list(files)


def _page(labeled: Sequence[Series], svgs: dict[str, str]) -> str:
    sections = [
        {
            "title": f"Medians of {one.label}" if len(labeled) > 1 else "Medians",
            "tables": tables(one.result),
            "notes": [*limits(one.result), *warnings(one.result)],
        }
        for one in labeled
    ]
    between = [_changes(labeled[0], labeled[1])] if len(labeled) == 2 else []
    charts = [(*CHARTS[name], svg) for name, svg in svgs.items()]
    facts = list(map(_facts, labeled))
    return render("bench.html", facts=facts, changes=between, charts=charts, sections=sections)


def _changes(before: Series, after: Series) -> dict[str, Any]:
    """The section of two results: what ``bench compare`` prints, also where it refuses."""
    try:
        comparison = compare(before.result, after.result)
    except UsageError as error:
        return {"title": "Changes", "tables": [], "notes": [str(error)]}
    title = f"Changes from {before.label} to {after.label}"
    return {"title": title, "tables": [changes(comparison)], "notes": [comparison.note]}


def _facts(one: Series) -> dict[str, str]:
    """Model, machine and method of a result."""
    result, load = one.result, one.result.load
    cores = (result.machine.get("cores") or {}).get("physical")
    memory = (result.machine.get("memory_bytes") or {}).get("total")
    hardware = [f"{cores} cores" if cores else "", f"{readable(memory)} of memory" if memory else ""]
    counts = sorted({len(each.runs) for each in one.measured})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    processes = "a fresh process per scenario" if result.isolated else "one process"
    facts = {
        "Result": one.label,
        "Measured": heading(result),
        "Machine": ", ".join(filter(None, hardware)),
        "Versions": _versions(result),
        "Runs": f"{runs} of each scenario, {processes}{', interrupted' if result.interrupted else ''}",
        "Bundle": f"{readable(result.model.bytes)}, manifest {result.model.sha256[:16]}",
        "Load": loaded(load) if load else "",
    }
    return {name: text for name, text in facts.items() if text}


def _versions(result: Result) -> str:
    machine, date = result.machine, result.started.partition("T")[0]
    packages = {name: (machine.get(name) or {}).get("version") for name in ("onnxruntime", "llama_cpp")}
    packages = {"onevision": result.onevision} | packages | (machine.get("packages") or {})
    known = [f"{name} {version}" for name, version in packages.items() if version]
    return ", ".join([*known, f"Python {machine.get('python') or ''}".strip(), date])


@contextmanager
def _figure() -> Iterator[Figure]:
    """A figure in our style. File names are text, whatever characters they have."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colors = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    style: Any = dict.fromkeys(colors, _INK) | {
        "axes.axisbelow": True, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
        "axes.spines.right": False, "font.size": 9.5, "legend.frameon": False, "text.parse_math": False,
        "svg.fonttype": "path", "svg.hashsalt": "onevision",
    }  # fmt: skip
    with rc_context(style), catch_warnings():
        filterwarnings("ignore", message="Glyph .* missing from")  # shown as a box
        yield Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")


def _to_svg(figure: Figure) -> str:
    """SVG to stand inside HTML: transparent, and in the text color of the page, light or dark."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue().partition("\n<svg")[2].join(("<svg", "")).replace(_INK, "currentColor")


def _to_png(figure: Figure, results: Sequence[Result]) -> bytes:
    """PNG to stand alone: with model, machine and versions."""
    lines = dict.fromkeys(line for one in results for line in (heading(one), _versions(one)))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor=_PAPER)
    return file.getvalue()


def draw_stages(figure: Figure, series: Sequence[Series]) -> None:
    """A bar per scenario and series, the median run cut into stages: in time, and in percent."""
    names = list(dict.fromkeys(each.scenario for one in series for each in one.measured))
    cells = [(names.index(each.scenario), one.label, each) for one in series for each in one.measured]
    cells.sort(key=lambda cell: cell[0])
    rows = [(f"{_short(names[at])}  {label}", _cut(each)) for at, label, each in cells]
    figure.set_figheight(1.7 + _ROW * len(rows))
    times, percents = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    totals = [sum(parts.values()) for _, parts in rows]
    unit, scale = _unit(totals)
    starts = [0.0] * len(rows)
    stages = [stage for stage in STAGE_COLORS if stage == OTHER or any(stage in parts for _, parts in rows)]
    for stage in stages:
        color, widths = STAGE_COLORS[stage], [parts.get(stage, 0.0) for _, parts in rows]
        for axes, units in ((times, [scale] * len(rows)), (percents, [total / 100 for total in totals])):
            at = [[one / unit for one, unit in zip(side, units, strict=True)] for side in (widths, starts)]
            bars = axes.barh(range(len(rows)), at[0], 0.76, at[1], color=color, label=stage)
        shares = [width / total for width, total in zip(widths, totals, strict=True)]
        labels = [percent(share) if share >= _PRINTED_SHARE else "" for share in shares]
        percents.bar_label(bars, labels, label_type="center", fontsize=7.5, color=_ink_on(color))
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, total in enumerate(totals):
        times.text(total / scale, row, f" {duration(total)}", va="center", fontsize=8)
    times.set(yticks=range(len(rows)), yticklabels=[label.strip() for label, _ in rows], xlabel=unit)
    times.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.18 * max(totals) / scale))
    percents.set(xlim=(0, 100), xlabel="percent of the whole")
    figure.legend(*times.get_legend_handles_labels(), loc="outside upper left", ncols=len(stages))


def draw_latency(figure: Figure, series: Sequence[Series]) -> None:
    """Time to the first token and of the encoder against tiles: medians, and the range of all runs."""
    axes, names = figure.subplots(), dict[str, float]()
    unit, scale = _unit([run.ttft_ms or 0.0 for one in series for each in one.measured for run in each.runs])
    for number, one in enumerate(series):
        color = SERIES_COLORS[number % len(SERIES_COLORS)]
        names |= {each.scenario: each.counts.tiles for each in one.measured if each.counts}
        tiles = [ms / names[each.scenario] for each in one.measured for ms in samples(each).get("encode", ())]
        rate = f"encode ({duration(median(tiles))} per tile)" if tiles else ""
        kinds = (("ttft", "time to first token", "o", color), ("encode", rate, "^", "none"))
        for key, name, marker, fill in kinds:
            found = [(names[each.scenario], samples(each).get(key)) for each in one.measured]
            x = [tiles for tiles, ms in found if ms]
            y, low, high = (np.array([of(ms) for _, ms in found if ms]) / scale for of in (median, min, max))
            if x:
                axes.errorbar(
                    x, y, (y - low, high - y), fmt=marker, color=color, markerfacecolor=fill, elinewidth=1,
                    label=f"{one.label} {name}".strip(),
                )  # fmt: skip
    _finish(figure, axes, names, "tiles (or frames) that the encoder sees", f"{unit}: median, min and max")


def draw_decode(figure: Figure, series: Sequence[Series]) -> None:
    """Time per token against the tokens before it, and the memory bandwidth's limit."""
    axes, names = figure.subplots(), dict[str, float]()
    for number, one in enumerate(series):
        color, answers, limit = SERIES_COLORS[number % len(SERIES_COLORS)], [], []
        read = one.result.rates and one.result.rates.read
        for each in one.measured:
            tpot, prompt = samples(each).get("tpot"), each.counts.prompt_tokens if each.counts else 0
            if not tpot:
                continue
            tokens = [median(ms) for ms in zip(*(run.tokens_ms for run in each.runs), strict=False)]
            past = range(prompt, prompt + len(tokens))
            axes.plot(past, tokens, ".", color=color, markersize=2.5, alpha=0.35, rasterized=True)
            middle = names[each.scenario] = prompt + len(tokens) / 2
            answers.append((middle, median(tpot)))
            if read and (work := each.work.get("decode")):
                limit.append((middle, work.bytes / work.units / read * 1e3))
        for points, style, label in ((answers, "o", "per token"), (sorted(limit), "--", "memory's limit")):
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, color=color, label=f"{one.label} {label}".strip()
                )
    _finish(figure, axes, names, "tokens before it: prompt, images and answer", "ms per token, medians")


def _cut(measured: Measured) -> dict[str, float]:
    """Milliseconds by stage of the median run; small stages and time outside all stages are OTHER."""
    run = typical(measured)
    shown = {stage: ms for stage, ms in run.stages_ms.items() if ms >= _MIN_SHARE * run.total_ms}
    return shown | {OTHER: max(0.0, run.total_ms - sum(shown.values()))}


def _unit(times: Sequence[float]) -> tuple[str, float]:
    """Unit for an axis of milliseconds up to the largest, and the milliseconds in it."""
    return ("seconds", 1e3) if max(times, default=0) >= 1e3 else ("ms", 1.0)


def _finish(figure: Figure, axes: Axes, names: dict[str, float], x: str, y: str) -> None:
    """Axes from 0, a legend, and the scenarios at the top; a long answer's name is its short one's."""
    from matplotlib.ticker import MaxNLocator

    far = max(names.values(), default=0) or 1
    places: dict[float, list[str]] = {}
    for name, at in sorted(names.items(), key=lambda item: item[1]):
        if name.removesuffix(LONG_SUFFIX) == name or name.removesuffix(LONG_SUFFIX) not in names:
            near = next((place for place in places if at - place < 0.045 * far), at)
            places.setdefault(near, []).append(_short(name))
    axes.set(xlabel=x, ylabel=y, xlim=(-0.03 * far, None))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    top, labels = axes.secondary_xaxis("top"), [", ".join(names) for names in places.values()]
    top.set_xticks(list(places), labels, rotation=25, ha="left", fontsize=8)
    top.spines["top"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2)


def _ink_on(color: str) -> str:
    """Black or white, whichever is readable on the color."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#ffffff"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else f"{text[: _MAX_LETTERS - 1]}…"
