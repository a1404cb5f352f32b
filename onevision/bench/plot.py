"""Results as pictures: where the time goes, latency against tiles, decode against the length of the context.

In: results with their labels. Out: figures, in a light and a dark theme, with or without a heading.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

from onevision.bench.report import duration, typical
from onevision.bench.scenarios import LONG_SUFFIX
from onevision.bench.statistics import samples
from onevision.errors import UsageError
from onevision.runtime.answer import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from onevision.bench.result import Measured, Result

OTHER = "other"
#: Paul Tol's muted scheme, which colour-blind people can tell apart; the lighter ones for what takes long.
STAGE_COLOURS = {
    "tokenise": "#332288", "read": "#999933", "preprocess": "#cc6677", "encode": "#88ccee", "pack": "#aa4499",
    "prefill": "#ddcc77", "first_token": "#882255", "decode": "#44aa99", "detokenise": "#117733",
    OTHER: "#b5b5b5",
}  # fmt: skip
#: Paul Tol's bright scheme, one of each result.
SERIES_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
#: A stage that never is as large a share belongs to the others.
_LEAST_SHARE = 0.01
_SHARE_TO_NAME = 0.07

_WIDTH, _HEIGHT, _ROW = 10.0, 5.4, 0.26  # inches
_MARGIN, _LINE, _SMALL_LINE = 0.1, 0.19, 0.14
_DOTS_PER_INCH = 150
_MOST_LETTERS = 32
#: Ink, soft ink, lines, background of the HTML's cards.
THEMES = {
    "light": ("#1f1e1b", "#67635b", "#e2ddd3", "#ffffff"),
    "dark": ("#e9e7e2", "#a09c94", "#34373d", "#1d1f23"),
}


#: Where it is on the axes, and the scenario.
Point = tuple[float, float, str]
Rectangle = tuple[float, float, float, float]  # left, bottom, width, height; shares of the figure


@dataclass(frozen=True)
class Named:
    """A result, and what to call it where there are several."""

    label: str
    result: Result


@dataclass(frozen=True)
class Series:
    """What one engine has done in one result. ``label`` is empty where there is only one."""

    label: str
    measured: tuple[Measured, ...]
    result: Result


def missing_package() -> str | None:
    """What has to be installed to draw, if something has."""
    return None if find_spec("matplotlib") else "matplotlib"


def named(paths: Sequence[Path], results: Sequence[Result]) -> list[Named]:
    """Results called by their files: by name, or by path where two names are the same."""
    stems = [path.stem for path in paths]
    labels = [path.stem if stems.count(path.stem) == 1 else str(path.with_suffix("")) for path in paths]
    # Of a long path, the end tells it from others.
    cut = [label if len(label) <= _MOST_LETTERS else f"…{label[1 - _MOST_LETTERS :]}" for label in labels]
    return [Named(label, result) for label, result in zip(cut, results, strict=True)]


def series_of(found: Sequence[Named]) -> list[Series]:
    """What there is to draw, engine by engine.

    Raises:
        UsageError: A result without a single run.
    """
    made = []
    for one in found:
        with_runs = [each for each in one.result.measured if each.runs and each.counts]
        if not with_runs:
            raise UsageError(f"{one.label} has no runs to draw", hint="measure again with: onevision bench")
        subjects = list(dict.fromkeys(each.subject for each in with_runs))
        for subject in subjects:
            parts = [one.label] * (len(found) > 1) + [subject] * (len(subjects) > 1)
            measured = tuple(each for each in with_runs if each.subject == subject)
            made.append(Series(" ".join(parts), measured, one.result))
    return made


def heading(result: Result) -> str:
    """What was measured, on what."""
    model, machine = result.model, result.machine
    return (
        f"{model.name}, {model.vision} + {model.backbone}; {result.device}, {result.threads} threads, "
        f"{machine.get('cpu') or 'unknown processor'}"
    )


def versions(result: Result) -> str:
    """What it was measured with."""
    packages = result.machine.get("packages") or {}
    told = [f"{name} {version}" for name, version in packages.items() if version]
    date = result.started.partition("T")[0]
    system = result.machine.get("system") or ""
    return ", ".join([f"onevision {result.onevision}", *told, *[system] * bool(system), date])


@contextmanager
def _theme(name: str) -> Iterator[None]:
    """Colours of a theme; names of files are text, whatever characters they have."""
    from matplotlib import rc_context

    ink, soft, line, card = THEMES[name]
    settings: Any = {
        "text.color": ink, "axes.labelcolor": ink, "axes.titlecolor": ink, "xtick.color": soft,
        "ytick.color": soft, "ytick.labelcolor": ink, "xtick.labelcolor": ink, "axes.edgecolor": soft,
        "grid.color": line, "axes.facecolor": card, "figure.facecolor": card, "savefig.facecolor": card,
        "axes.axisbelow": True, "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False,
        "font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "legend.frameon": False,
        "text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "onevision",
    }  # fmt: skip
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it
        yield


def draw(
    name: str, series: Sequence[Series], path: Path, *, theme: str = "light", headed: bool = True
) -> None:
    """Write a figure.

    Args:
        name: One of :data:`FIGURES`.
        series: What to draw.
        path: Where to; its suffix, png or svg, decides the format.
        theme: One of :data:`THEMES`.
        headed: With title, model, machine and versions on it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with _theme(theme):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout=(engine := ConstrainedLayoutEngine()))
        FigureCanvasAgg(figure)
        finish = FIGURES[name](figure, series)
        room = _lay_out(figure, TITLES[name], series if headed else (), THEMES[theme][1])
        engine.set(rect=room)
        finish()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=_DOTS_PER_INCH, format=path.suffix[1:], metadata=metadata)


def _lay_out(figure: Figure, title: str, series: Sequence[Series], soft: str) -> Rectangle:
    """Heading, legend and footer in lines of their own. Returns what is left for the axes."""
    results = list({id(one.result): one.result for one in series}.values())
    head = [*dict.fromkeys(heading(result) for result in results)]
    foot = "\n".join(dict.fromkeys(versions(result) for result in results))
    height = figure.get_figheight()
    (legend,) = figure.legends
    above = _MARGIN + (_LINE * (len(head) + 1.4) if head else 0.0)
    legend_height = legend.get_window_extent().height / figure.dpi
    below = _SMALL_LINE * (foot.count("\n") + 1) + _MARGIN if foot else 0.0
    if head:
        figure.text(_MARGIN / _WIDTH, 1 - _MARGIN / height, title, va="top", fontsize=12, fontweight="bold")
        top = 1 - (_MARGIN + 1.4 * _LINE) / height
        figure.text(_MARGIN / _WIDTH, top, "\n".join(head), va="top", fontsize=9, linespacing=1.3)
        figure.text(_MARGIN / _WIDTH, _MARGIN / height, foot, va="bottom", fontsize=7, color=soft)
    legend.set_bbox_to_anchor((0.0, 1 - above / height), figure.transFigure)
    legend.set_in_layout(False)
    used = above + legend_height
    return 0.0, below / height, 1.0, 1 - (used + below) / height


def draw_stages(figure: Figure, series: Sequence[Series]) -> Callable[[], None]:
    """A bar of each scenario's median run, cut into its stages: in seconds, and as shares of the whole."""
    rows = _rows(series)
    cut = [_stages(measured) for _, measured in rows]
    stages = [
        *(
            stage
            for stage in STAGES
            if any(parts.get(stage, 0.0) >= _LEAST_SHARE * sum(parts.values()) for parts in cut)
        ),
        OTHER,
    ]
    figure.set_figheight(1.9 + _ROW * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    longest = max(sum(parts.values()) for parts in cut)
    unit, name = (1e3, "seconds") if longest >= 1e3 else (1.0, "milliseconds")
    for row, parts in enumerate(cut):
        total, start = sum(parts.values()), 0.0
        kept = {stage: parts.get(stage, 0.0) for stage in stages[:-1]}
        for stage, ms in (kept | {OTHER: total - sum(kept.values())}).items():
            for axes, scale in ((left, unit), (right, total / 100)):
                axes.barh(
                    row, ms / scale, left=start / scale, height=0.76, color=STAGE_COLOURS[stage],
                    edgecolor=axes.get_facecolor(), linewidth=0.6,
                )  # fmt: skip
            if ms >= _SHARE_TO_NAME * total:
                middle = 100 * (start + ms / 2) / total
                right.text(
                    middle, row, f"{ms / total:.0%}", ha="center", va="center_baseline", fontsize=7.5,
                    color=_ink_on(STAGE_COLOURS[stage]),
                )  # fmt: skip
            start += ms
        left.annotate(
            duration(total), (total / unit, row), (4, 0), textcoords="offset points",
            va="center_baseline", fontsize=8,
        )  # fmt: skip
    left.set_yticks(range(len(rows)), [label for label, _ in rows])
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlim(0, 1.16 * longest / unit)
    right.set_xlim(0, 100)
    left.set_xlabel(name)
    right.set_xlabel("per cent of the whole")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    patches = [_patch(STAGE_COLOURS[stage], stage) for stage in stages]
    figure.legend(handles=patches, loc="upper left", ncols=len(stages), columnspacing=1.2)
    return lambda: None


def draw_latency(figure: Figure, series: Sequence[Series]) -> Callable[[], None]:
    """Time to the first token, and the encoder's, against tiles: medians, and the range of all runs."""
    axes = figure.subplots()
    points: list[Point] = []
    for number, one in enumerate(series):
        colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
        for key, name, marker in (("ttft", "time to first token", "o"), ("encode", "encode", "^")):
            shown = [
                (each.counts.tiles, [ms / 1e3 for ms in values], each.scenario)
                for each in one.measured
                if each.counts and (values := samples(each).get(key))
            ]
            if not shown:
                continue
            x = [tiles for tiles, _, _ in shown]
            y = [median(values) for _, values, _ in shown]
            low = [at - min(values) for at, (_, values, _) in zip(y, shown, strict=True)]
            high = [max(values) - at for at, (_, values, _) in zip(y, shown, strict=True)]
            axes.errorbar(
                x, y, (low, high), fmt=marker, color=colour, markersize=7, elinewidth=1, alpha=0.9,
                markerfacecolor=colour if key == "ttft" else "none",
                label=" ".join(part for part in (one.label, name, _per_tile(one, key)) if part),
            )  # fmt: skip
            if key == "ttft":
                points += [(at, value, name) for at, value, (_, _, name) in zip(x, y, shown, strict=True)]
    axes.set_xlabel("tiles (views, frames) that the encoder sees")
    axes.set_ylabel("seconds: median, least and most")
    return _from_zero(figure, axes, points)


def draw_decode(figure: Figure, series: Sequence[Series]) -> Callable[[], None]:
    """Time per token against the tokens before it: each position, each scenario, the bandwidth's limit."""
    axes = figure.subplots()
    points: list[Point] = []
    for number, one in enumerate(series):
        colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
        marks: list[Point] = []
        for each in one.measured:
            counts, tpot = each.counts, samples(each).get("tpot")
            if counts is None or not tpot:
                continue
            steps = [median(ms) for ms in zip(*(run.tokens for run in each.runs), strict=False)]
            at = [counts.prompt_tokens + step for step in range(len(steps))]
            axes.plot(at, steps, ".", color=colour, markersize=2.5, alpha=0.35, rasterized=True)
            marks.append((counts.prompt_tokens + len(steps) / 2, median(tpot), each.scenario))
        label = f"{one.label} time per token: of an answer, and of each".strip()
        x, y = [x for x, _, _ in marks], [y for _, y, _ in marks]
        axes.plot(x, y, "o", color=colour, markersize=7, label=label)
        points += marks
        if bound := _bandwidth_limit(one):
            label = f"{one.label} limit by memory bandwidth".strip()
            axes.plot(*zip(*bound, strict=True), "--", color=colour, linewidth=1.2, label=label, zorder=1)
    axes.set_xlabel("tokens before it: prompt, picture and answer")
    axes.set_ylabel("milliseconds a token, medians")
    return _from_zero(figure, axes, points)


#: By the name of their file.
FIGURES: dict[str, Callable[[Figure, Sequence[Series]], Callable[[], None]]] = {
    "stages": draw_stages,
    "latency": draw_latency,
    "decode": draw_decode,
}
DESCRIPTIONS = {
    "stages": "The run of the median total, as a time and in per cent. Other: stages that are nowhere 1 %, "
    "and what is in none.",
    "latency": "Medians over the runs, and the range of them all. The encoder's time is part of the other.",
    "decode": "Medians over the runs: of whole answers, and of the token at each position. The limit is the "
    "weights and the past, divided by the memory bandwidth that was measured.",
}
TITLES = {
    "stages": "Where the time goes",
    "latency": "Latency against tiles",
    "decode": "Decode against the length of the context",
}


def _rows(series: Sequence[Series]) -> list[tuple[str, Measured]]:
    """Scenarios in their order, and in each the series."""
    names = dict.fromkeys(each.scenario for one in series for each in one.measured)
    return [
        (f"{_shortened(name)}  {one.label}".strip(), each)
        for name in names
        for one in series
        for each in one.measured
        if each.scenario == name
    ]


def _stages(measured: Measured) -> dict[str, float]:
    """Milliseconds by stage of the median run; what is in none is in :data:`OTHER`."""
    run = typical(measured)
    return {**run.stages, OTHER: max(0.0, run.total - sum(run.stages.values()))}


def _per_tile(one: Series, key: str) -> str:
    tiles = [ms for each in one.measured for run in each.runs for ms in run.tiles]
    return f"({duration(median(tiles))} a tile)" if key == "encode" and tiles else ""


def _bandwidth_limit(one: Series) -> list[tuple[float, float]]:
    """Milliseconds that reading weights and past takes at least, by length of the context."""
    read = (one.result.rates or {}).get("read")
    if not read:
        return []
    return sorted(
        (each.counts.prompt_tokens + work.units / 2, work.bytes / work.units / read * 1e3)
        for each in one.measured
        if each.counts and (work := each.work.get("decode"))
    )


def _from_zero(figure: Figure, axes: Axes, points: Sequence[Point]) -> Callable[[], None]:
    """Axes from 0, with room for names on the right, and a legend; what is returned writes the names."""
    most = max((x for x, _, _ in points), default=1.0) or 1.0
    axes.set_xlim(-0.03 * most, 1.15 * most)
    axes.set_ylim(bottom=0)
    figure.legend(loc="upper left", ncols=2)
    return lambda: _name_points(figure, axes, points)


def _name_points(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write names beside points, each where it is in nobody's way; a long answer's is its short one's."""
    known = {name for _, _, name in points}
    wanted: dict[str, tuple[float, float]] = {}
    for x, y, name in points:
        if name.removesuffix(LONG_SUFFIX) == name or name.removesuffix(LONG_SUFFIX) not in known:
            wanted.setdefault(name, (x, y))
    figure.draw_without_rendering()
    at = axes.transData.transform([(x, y) for x, y, _ in points])
    radius = 5.0 * figure.dpi / 72
    taken: list[Any] = [_box(x, y, radius) for x, y in at]
    for name, point in wanted.items():
        for dx, dy, side in _PLACES:
            text = axes.annotate(
                _shortened(name), point, (dx, dy), textcoords="offset points",
                ha=side, va="center", fontsize=8,
            )  # fmt: skip
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            if (dx, dy, side) != _PLACES[-1]:
                text.remove()
        taken.append(box)


#: Points to the side and up at which a name is tried.
_PLACES = [
    (dx, dy, side)
    for dy in (0, 9, -9, 18, -18, 27, -27, 36, -36)
    for dx, side in ((9, "left"), (-9, "right"))
]


def _box(x: float, y: float, radius: float) -> Any:  # noqa: ANN401
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _ink_on(colour: str) -> str:
    """Black or white, whichever can be read on it."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#1f1e1b" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "#ffffff"


def _patch(colour: str, label: str) -> Any:  # noqa: ANN401
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"
