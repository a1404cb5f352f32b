"""The demo's web page: one file with everything in it, pictures included, and nothing that runs.

In: what a demo came to, and the folder with its files. Out: HTML.
"""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onevision.eval.demo import Asked, Demo
    from onevision.eval.demo.inputs import DemoInput
    from onevision.proof.verify import Report, StageResult

PAGE = "index.html"

#: Pixels that a picture is to fill at most, in width and height, by whole multiples of its own.
ROOM = 300
_MIME = {".png": "image/png", ".apng": "image/apng"}
#: Rules of all pages, and of this one.
_CSS = Path(__file__).parents[2] / "page.css", Path(__file__).with_name("page.css")
#: In the page's head: the files that belong to it.
_MARK = re.compile(r'<meta name="generator" content="onevision demo: ([^"]*)">')


def files_of(page: Path) -> set[str]:
    """Names of a demo's files, the page among them; none if it is not a demo's page, or not there."""
    if not page.is_file():
        return set()
    with page.open(encoding="utf-8", errors="replace") as file:
        found = _MARK.search(file.read(1000))
    return {page.name, *found[1].split()} if found else set()


def render(demo: Demo, facts: Mapping[str, str], folder: Path) -> str:
    """The page.

    Args:
        demo: Answers and report.
        facts: What ran and where, by name, for the top of the page.
        folder: Where the inputs' files are.
    """
    files = [file for item, _ in demo.blocks for file in item.files]
    blocks = "\n".join(_block(item, asked, folder) for item, asked in demo.blocks)
    names = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="onevision demo: {" ".join(files)}">
<title>onevision demo</title>
<style>
{"".join(path.read_text(encoding="utf-8") for path in _CSS)}</style>
</head>
<body>
<header>
<h1>onevision demo</h1>
<p class="lead">A scene, small print, a chart, two pictures and a video, from the test split of the suite
that the tiny model learned from. Of {demo.total} questions about them <strong>{demo.right} are answered
right</strong>.</p>
</header>
<section class="ran">
<dl class="facts">
{names}
</dl>
{_verified(demo.report)}
</section>
<main>
{blocks}
</main>
<footer class="soft">The commands run in the folder that holds this page.</footer>
</body>
</html>
"""


def _verified(report: Report) -> str:
    """Relative errors by stage and case."""
    cases = report.cases
    stages = dict.fromkeys(stage.stage for case in cases for stage in case.stages)
    found = [{stage.stage: stage for stage in case.stages} for case in cases]
    head = "".join(f"<th>{escape(case.name)}</th>" for case in cases)
    rows = "\n".join(
        f"<tr><th>{escape(name)}</th>{''.join(_cell(case.get(name)) for case in found)}</tr>"
        for name in stages
    )
    result = f"the bundle {'computes' if report.passed else 'does not compute'} what the reference does"
    return f"""<table>
<caption>Verify: <span class="{_class(bool(report.passed))}">{_mark(bool(report.passed))} {result}</span>
(relative errors against transformers)</caption>
<thead><tr><th></th>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>"""


def _cell(stage: StageResult | None) -> str:
    if stage is None:
        return '<td class="soft">–</td>'
    error = stage.max_error if stage.relative_error is None else stage.relative_error
    value = "" if error is None else " 0" if error == 0 else f" {error:.0e}".replace("e-0", "e-")
    if stage.passed is None:
        return f'<td class="soft">{value}</td>'
    return f'<td class="{_class(stage.passed)}">{_mark(stage.passed)}{value}</td>'


def _block(item: DemoInput, asked: tuple[Asked, ...], folder: Path) -> str:
    images = "\n".join(_image(folder / file, item.caption) for file in item.files)
    usage = asked[0].answer.usage
    questions = "\n".join(map(_question, asked))
    return f"""<article>
<h2>{escape(item.title)}</h2>
<figure>
<div>
{images}
</div>
<figcaption>{usage.tiles} tiles, {usage.image_tokens:,} visual tokens</figcaption>
</figure>
<ol>
{questions}
</ol>
</article>"""


def _image(path: Path, caption: str) -> str:
    """A picture or an animation inside the page, so many times as large that it fills the room."""
    with Image.open(path) as image:
        width, height = image.size
    times = max(1, ROOM // max(width, height))
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<img src="data:{_MIME[path.suffix]};base64,{data}" width="{width * times}" '
        f'height="{height * times}" alt="{escape(caption)}">'
    )


def _question(asked: Asked) -> str:
    text, *options, instruction = asked.sample.prompt.split("\n")
    choice = f'<p class="options">{" ".join(f"<span>{escape(option)}</span>" for option in options)}</p>\n'
    said, times = f"{_mark(asked.right)} {asked.answer.text}", asked.answer.timings
    return f"""<li>
<h3>{escape(text)}</h3>
{choice if options else ""}<p class="soft">{escape(instruction)}</p>
<dl class="answer">
<div><dt>Model</dt><dd class="{_class(asked.right)}">{escape(said)}</dd></div>
<div><dt>Expected</dt><dd>{escape(asked.sample.answers[0])}</dd></div>
<div><dt>First token</dt><dd>{times.ttft:.0f} ms</dd></div>
<div><dt>In all</dt><dd>{times.total:.0f} ms</dd></div>
</dl>
<details><summary>Command</summary><pre><code>{escape(asked.command)}</code></pre></details>
</li>"""


def _mark(right: bool) -> str:
    return "✓" if right else "✗"


def _class(right: bool) -> str:
    return "right" if right else "wrong"
