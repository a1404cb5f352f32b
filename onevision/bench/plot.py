"""Charts of results: time by stage, latency by tiles, decoding by context; PNG files and one web page.

In: results with their labels. Out: ``index.html``, which loads nothing, and a PNG file per chart.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

from onevision.bench.compare import compare
from onevision.bench.report import changes, duration, heading, limits, spread, tables
from onevision.bench.report import warnings as warnings_of
from onevision.bench.scenarios import LONG_SUFFIX
from onevision.bench.statistics import samples, typical
from onevision.errors import UsageError
from onevision.export.disk import readable, whole_file
from onevision.html import render
from onevision.runtime.answer import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from onevision.bench.result import Measured, Result

PAGE = "index.html"
OTHER = "other"
#: Paul Tol's muted scheme, distinct for color-blind people; the lighter colors for the longer stages.
STAGE_COLORS = dict(
    zip(
        (*STAGES, OTHER),
        ("#332288", "#999933", "#cc6677", "#88ccee", "#aa4499", "#ddcc77", "#882255", "#44aa99", "#117733", "#b5b5b5"),
        strict=True,
    )
)  # fmt: skip
#: Paul Tol's bright scheme, one per engine and result.
SERIES_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_INK, _PAPER = "#1f1e1b", "#ffffff"
#: Stages that never have a larger share are drawn as OTHER; larger shares are printed in the bar.
_MIN_SHARE, _PRINTED_SHARE = 0.01, 0.07
_WIDTH, _HEIGHT, _ROW = 10.0, 5.4, 0.28  # inches
_MAX_LETTERS = 32
_MAX_BYTES = 4 << 20  # of a page or PNG file, for the check of the disk


@dataclass(frozen=True)
class LabeledResult:
    """A result and its label."""

    label: str
    result: Result


@dataclass(frozen=True)
class Series:
    """Measurements of one engine in one result. ``label`` is empty if there is only one."""

    label: str
    measured: tuple[Measured, ...]
    result: Result


def missing_package() -> str | None:
    """The package to install before charts can be drawn."""
    return None if find_spec("matplotlib") else "matplotlib"


def label_results(paths: Sequence[Path], results: Sequence[Result]) -> list[LabeledResult]:
    """Results labeled by file name, or by path if two names are the same."""
    stems = [path.stem for path in paths]
    labels = [path.stem if stems.count(path.stem) == 1 else str(path.with_suffix("")) for path in paths]
    # The end of a long path tells it from others.
    cut = [label if len(label) <= _MAX_LETTERS else f"…{label[1 - _MAX_LETTERS :]}" for label in labels]
    return [LabeledResult(label, result) for label, result in zip(cut, results, strict=True)]


def series_of(labeled: Sequence[LabeledResult]) -> list[Series]:
    """Engines of all results.

    Raises:
        UsageError: A result has no runs.
    """
    found = []
    for one in labeled:
        with_runs = [each for each in one.result.measured if each.runs and each.counts]
        if not with_runs:
            raise UsageError(f"{one.label} has no runs to draw", hint="measure again with: onevision bench")
        engines = list(dict.fromkeys(each.engine for each in with_runs))
        for engine in engines:
            parts = [one.label] * (len(labeled) > 1) + [engine] * (len(engines) > 1)
            measured = tuple(each for each in with_runs if each.engine == engine)
            found.append(Series(" ".join(parts), measured, one.result))
    return found


def write_plots(labeled: Sequence[LabeledResult], folder: Path) -> list[Path]:
    """Draw results side by side. Files of these names are replaced, others are left alone.

    Args:
        labeled: Results.
        folder: Made if it does not exist.

    Returns:
        The page and the PNG files.

    Raises:
        UsageError: The folder cannot be made, or a result has no runs.
        ExportError: A file cannot be written.
    """
    series = series_of(labeled)
    with _style():
        drawn = {name: _draw(name, series) for name in CHARTS}
        svgs = {name: _to_svg(figure) for name, figure in drawn.items()}
        pngs = {name: _to_png(figure, series) for name, figure in drawn.items()}
    contents = {PAGE: render_page(labeled, svgs).encode()} | {f"{name}.png": data for name, data in pngs.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    for name, data in contents.items():
        with whole_file(folder / name, len(data)) as part:
            part.write_bytes(data)
    return [folder / name for name in contents]


def render_page(labeled: Sequence[LabeledResult], svgs: dict[str, str]) -> str:
    """The page, from one SVG image per chart."""
    several = len(labeled) > 1
    results = [
        {
            "title": f"Medians of {one.label}" if several else "Medians",
            "tables": tables(one.result),
            "notes": [*limits(one.result), *warnings_of(one.result)],
        }
        for one in labeled
    ]
    if len(labeled) == 2:
        comparison = compare(*(one.result for one in labeled))
        results.insert(0, {"title": "Changes", "tables": [changes(comparison)], "notes": [comparison.note]})
    charts = [{"title": CHARTS[name].title, "about": CHARTS[name].about, "svg": svg} for name, svg in svgs.items()]
    return render("bench.html", facts=[_facts(one) for one in labeled], charts=charts, results=results)


def _facts(one: LabeledResult) -> dict[str, str]:
    """Model, machine and method of a result."""
    result, load = one.result, one.result.load
    cores = (result.machine.get("cores") or {}).get("physical")
    memory = result.machine.get("memory_bytes")
    hardware = [f"{cores} cores" if cores else "", f"{readable(memory)} of memory" if memory else ""]
    processes = "a fresh process per scenario" if result.isolated else "one process"
    facts = {
        "Result": one.label,
        "Measured": heading(result),
        "Machine": ", ".join(filter(None, hardware)),
        "Versions": _versions(result),
        "Runs": f"{result.runs} of each, {processes}{', interrupted' if result.interrupted else ''}",
        "Bundle": f"{readable(result.model.bytes)}, manifest {result.model.sha256[:16]}",
        "Load": f"{duration(load.cold_ms)} cold, {spread(load.warm_ms)} warm" if load else "",
    }
    return {name: text for name, text in facts.items() if text}


def _versions(result: Result) -> str:
    packages = result.machine.get("packages") or {}
    known = [f"{name} {version}" for name, version in packages.items() if version]
    system, date = result.machine.get("system") or "", result.started.partition("T")[0]
    return ", ".join(filter(None, [f"onevision {result.onevision}", *known, system, date]))


@contextmanager
def _style() -> Iterator[None]:
    """Style of all charts. File names are text, whatever characters they have."""
    from matplotlib import rc_context

    settings: Any = {
        "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
        "axes.edgecolor": _INK, "axes.axisbelow": True, "axes.grid": True, "grid.alpha": 0.4,
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5, "legend.frameon": False,
        "text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "onevision",
    }  # fmt: skip
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # shown as a box
        yield


def _draw(name: str, series: Sequence[Series]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    CHARTS[name].draw(figure, series)
    return figure


def _to_svg(figure: Figure) -> str:
    """SVG to stand inside HTML: transparent, and in the text color of the page, light or dark."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue().partition("<svg")[2].join(("<svg", "")).replace(_INK, "currentColor")


def _to_png(figure: Figure, series: Sequence[Series]) -> bytes:
    """PNG to stand alone: with model, machine and versions."""
    results = [one.result for one in series]
    figure.suptitle("\n".join(dict.fromkeys(map(heading, results))), x=0.01, ha="left", fontsize=9)
    figure.supxlabel("\n".join(dict.fromkeys(map(_versions, results))), x=0.01, ha="left", fontsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor=_PAPER)
    return file.getvalue()


def draw_stages(figure: Figure, series: Sequence[Series]) -> None:
    """A bar per scenario and series, the median run cut into stages: in time, and in percent."""
    names = dict.fromkeys(each.scenario for one in series for each in one.measured)
    rows = [
        (f"{_short(name)}  {one.label}".strip(), each)
        for name in names
        for one in series
        for each in one.measured
        if each.scenario == name
    ]
    cut = [_cut(measured) for _, measured in rows]
    shown = [
        stage
        for stage in STAGES
        if any(parts.get(stage, 0.0) >= _MIN_SHARE * sum(parts.values()) for parts in cut)
    ]
    figure.set_figheight(1.6 + _ROW * len(rows))
    times, percents = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    totals = [sum(parts.values()) for parts in cut]
    unit, scale = _unit(totals)
    starts = [0.0] * len(rows)
    for stage in (*shown, OTHER):
        ms = [
            parts[stage] if stage != OTHER else total - sum(parts[name] for name in shown)
            for parts, total in zip(cut, totals, strict=True)
        ]
        color, at = STAGE_COLORS[stage], range(len(rows))
        style: Any = {"height": 0.76, "color": color, "linewidth": 0}
        times.barh(at, [one / scale for one in ms], left=[one / scale for one in starts], label=stage, **style)
        shares = [100 * one / total for one, total in zip(ms, totals, strict=True)]
        lefts = [100 * one / total for one, total in zip(starts, totals, strict=True)]
        bars = percents.barh(at, shares, left=lefts, **style)
        labels = [f"{share:.0f}%" if share >= 100 * _PRINTED_SHARE else "" for share in shares]
        percents.bar_label(bars, labels, label_type="center", fontsize=7.5, color=_ink_on(color))
        starts = [start + one for start, one in zip(starts, ms, strict=True)]
    for row, total in enumerate(totals):
        times.text(total / scale, row, f" {duration(total)}", va="center", fontsize=8)
    times.set(yticks=range(len(rows)), yticklabels=[label for label, _ in rows], ylim=(len(rows) - 0.4, -0.6))
    times.set(xlim=(0, 1.18 * max(totals) / scale), xlabel=unit)
    percents.set(xlim=(0, 100), xlabel="percent of the whole")
    figure.legend(*times.get_legend_handles_labels(), loc="outside upper left", ncols=len(shown) + 1)


def draw_latency(figure: Figure, series: Sequence[Series]) -> None:
    """Time to the first token and of the encoder against tiles: medians, and the range of all runs."""
    axes = figure.subplots()
    names: dict[str, float] = {}
    unit, scale = _unit([run.ttft_ms or 0 for one in series for each in one.measured for run in each.runs])
    for one, color in zip(series, SERIES_COLORS * len(series), strict=False):
        for key, name, marker in (("ttft", "time to first token", "o"), ("encode", "encode", "^")):
            found = {each.scenario: (each, samples(each).get(key)) for each in one.measured}
            shown = [(_tiles(each), values) for each, values in found.values() if values]
            if not shown:
                continue
            x, y = [tiles for tiles, _ in shown], [median(values) / scale for _, values in shown]
            low = [at - min(values) / scale for at, (_, values) in zip(y, shown, strict=True)]
            high = [max(values) / scale - at for at, (_, values) in zip(y, shown, strict=True)]
            axes.errorbar(
                x, y, (low, high), fmt=marker, color=color, markersize=7, elinewidth=1, alpha=0.9,
                markerfacecolor=color if key == "ttft" else "none",
                label=" ".join(filter(None, (one.label, name, _per_tile(one, key)))),
            )  # fmt: skip
        names = {each.scenario: _tiles(each) for each in one.measured} | names
    _finish(figure, axes, names, "tiles (or frames) that the encoder sees", f"{unit}: median, min and max")


def draw_decode(figure: Figure, series: Sequence[Series]) -> None:
    """Time per token against the tokens before it, and the memory bandwidth's limit."""
    axes = figure.subplots()
    names: dict[str, float] = {}
    for one, color in zip(series, SERIES_COLORS * len(series), strict=False):
        x, y = [], []
        for each in one.measured:
            tpot = samples(each).get("tpot")
            if each.counts is None or not tpot:
                continue
            tokens = [median(ms) for ms in zip(*(run.tokens_ms for run in each.runs), strict=False)]
            past = [each.counts.prompt_tokens + number for number in range(len(tokens))]
            axes.plot(past, tokens, ".", color=color, markersize=2.5, alpha=0.35, rasterized=True)
            x.append(each.counts.prompt_tokens + len(tokens) / 2)
            y.append(median(tpot))
            names.setdefault(each.scenario, x[-1])
        axes.plot(x, y, "o", color=color, markersize=7, label=f"{one.label} per token: answers and tokens".strip())
        if bound := _bandwidth_limit(one):
            label = f"{one.label} limit of the memory bandwidth".strip()
            axes.plot(*zip(*bound, strict=True), "--", color=color, linewidth=1.2, label=label, zorder=1)
    _finish(figure, axes, names, "tokens before it: prompt, images and answer", "ms per token, medians")


@dataclass(frozen=True)
class Chart:
    """A chart by name of its file: title, description, and what draws it."""

    title: str
    about: str
    draw: Callable[[Figure, Sequence[Series]], None]


CHARTS = {
    "stages": Chart(
        "Time by stage",
        "The run with the median total, in time and in percent. Other: time outside all stages, and stages "
        "below 1% in every scenario.",
        draw_stages,
    ),
    "latency": Chart(
        "Latency by tiles",
        "Medians over the runs, with the range of all runs. The time to the first token includes the encoder's.",
        draw_latency,
    ),
    "decode": Chart(
        "Decoding by context length",
        "Medians over the runs: of whole answers (large) and of the token at each position (small). The limit is "
        "the bytes of weights and past tokens divided by the measured memory bandwidth.",
        draw_decode,
    ),
}


def _cut(measured: Measured) -> dict[str, float]:
    """Milliseconds by stage of the median run; time outside all stages is OTHER."""
    run = typical(measured)
    return {**run.stages_ms, OTHER: max(0.0, run.total_ms - sum(run.stages_ms.values()))}


def _tiles(measured: Measured) -> int:
    return measured.counts.tiles if measured.counts else 0


def _per_tile(one: Series, key: str) -> str:
    tiles = [ms for each in one.measured for run in each.runs for ms in run.tiles_ms]
    return f"({duration(median(tiles))} per tile)" if key == "encode" and tiles else ""


def _bandwidth_limit(one: Series) -> list[tuple[float, float]]:
    """Least milliseconds to read weights and past tokens, by context length."""
    read = one.result.rates and one.result.rates.read
    return sorted(
        (each.counts.prompt_tokens + work.units / 2, work.bytes / work.units / read * 1e3)
        for each in one.measured
        if read and each.counts and (work := each.work.get("decode"))
    )


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
            near = next((place for place in places if at - place < 0.025 * far), at)
            places.setdefault(near, []).append(_short(name))
    axes.set(xlabel=x, ylabel=y, xlim=(-0.03 * far, 1.03 * far))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(places), [", ".join(names) for names in places.values()], rotation=25, ha="left", fontsize=8)
    top.spines["top"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2)


def _ink_on(color: str) -> str:
    """Black or white, whichever is readable on the color."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#ffffff"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else f"{text[: _MAX_LETTERS - 1]}…"
