"""Results as pictures, and as one web page with everything in it: figures, tables, and what was measured.

In: results with their labels. Out: PNG files and an HTML file that loads nothing from anywhere.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from onevision.bench import report
from onevision.bench.plot import DESCRIPTIONS, FIGURES, TITLES, draw, heading, series_of, versions
from onevision.errors import UsageError
from onevision.files import readable, whole_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.bench.plot import Named, Series

PAGE = "index.html"
#: More than a page or a picture has ever had, in bytes.
_MOST = 4 << 20
_CSS = Path(__file__).parents[1] / "page.css", Path(__file__).with_name("page.css")


def write_plots(found: Sequence[Named], folder: Path) -> list[Path]:
    """Draw results. Files of these names in the folder are replaced, others are left alone.

    Args:
        found: What to draw; several are drawn side by side.
        folder: Where the files go; it is made if it is not there.

    Returns:
        The page, and the pictures.

    Raises:
        UsageError: The folder cannot be made, or a result has no runs.
        ExportError: A file cannot be written.
    """
    series = series_of(found)
    text = render(found, series).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    files = [folder / PAGE, *(folder / f"{name}.png" for name in FIGURES)]
    with whole_file(files[0], len(text)) as part:
        part.write_bytes(text)
    for name, path in zip(FIGURES, files[1:], strict=True):
        with whole_file(path, _MOST) as part:
            draw(name, series, part)
    return files


def render(found: Sequence[Named], series: Sequence[Series]) -> str:
    """The page."""
    facts = "\n".join(map(_facts, found))
    figures = "\n".join(_figure(name, series) for name in FIGURES)
    tables = "\n".join(_tables(one, named=len(found) > 1) for one in found)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>onevision bench</title>
<style>
{"".join(path.read_text(encoding="utf-8") for path in _CSS)}</style>
</head>
<body>
<header>
<h1>onevision bench</h1>
</header>
<section class="ran">
{facts}
</section>
<main>
{figures}
{tables}
</main>
</body>
</html>
"""


def _facts(one: Named) -> str:
    """What was measured, and on what."""
    result = one.result
    machine, load = result.machine, result.load
    cores, memory = (machine.get("cores") or {}).get("physical"), machine.get("memory_bytes") or 0
    processes = "a fresh process for each scenario" if result.isolated else "one process"
    warm = load and f"{report.duration(load.cold)} cold, {report.spread(load.warm)} warm"
    facts = {
        "Result": one.label,
        "Measured": heading(result),
        "Machine": ", ".join(
            [*[f"{cores} cores"] * bool(cores), *[f"{readable(memory)} of memory"] * bool(memory)]
        ),
        "Versions": versions(result),
        "Runs": f"{result.runs} of each, {processes}{', interrupted' if result.interrupted else ''}",
        "Bundle": f"{readable(result.model.bytes)}, manifest {result.model.sha256[:16]}",
        "Load": warm,
    }
    listing = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text
    )
    return f'<dl class="facts">\n{listing}\n</dl>'


def _figure(name: str, series: Sequence[Series]) -> str:
    """A figure in both themes: the reader's system says which is shown."""
    with TemporaryDirectory() as folder:
        sources = {}
        for theme in ("light", "dark"):
            path = Path(folder, f"{theme}.svg")
            draw(name, series, path, theme=theme, headed=False)
            sources[theme] = f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f"""<section>
<h2>{TITLES[name]}</h2>
<figure>
<picture>
<source media="(prefers-color-scheme: dark)" srcset="{sources["dark"]}">
<img src="{sources["light"]}" alt="{escape(DESCRIPTIONS[name])}">
</picture>
<figcaption>{escape(DESCRIPTIONS[name])}</figcaption>
</figure>
</section>"""


def _tables(one: Named, *, named: bool) -> str:
    result = one.result
    told = [*report.limits(result)]
    told += [f"{each.scenario} {each.subject}: {each.skipped}" for each in result.measured if each.skipped]
    notes = "\n".join(f"<li>{escape(line)}</li>" for line in told)
    return f"""<section>
<h2>{escape(f"Medians of {one.label}" if named else "Medians")}</h2>
{_table(report.COLUMNS, report.table(result))}
{_table(report.share_columns(result), report.shares(result))}
<ul>
{notes}
</ul>
</section>"""


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in lines
    )
    return f"""<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>"""
