"""The demo's web page: one file with everything in it, images included.

In: the answers, and the folder with the inputs' files. Out: HTML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from onevision import html
from onevision.eval.demo.inputs import DemoInput
from onevision.eval.suite import Sample
from onevision.proof.verify import Report, StageResult
from onevision.runtime.answer import Answer

PAGE = "index.html"

#: Pixels that an image fills at most, in width and height, by whole multiples of its own.
ROOM = 300
_MIME = {".png": "image/png", ".apng": "image/apng"}
#: In the page's head: the files that belong to it.
_MARK = re.compile(r'<meta name="generator" content="onevision demo: ([^"]*)">')


@dataclass(frozen=True)
class Asked:
    """One question and its answer."""

    sample: Sample
    command: str  # that asks it again
    answer: Answer
    right: bool


@dataclass(frozen=True)
class Demo:
    """What a demo came to."""

    report: Report
    blocks: tuple[tuple[DemoInput, tuple[Asked, ...]], ...]

    @property
    def right(self) -> int:
        """Count of right answers."""
        return sum(asked.right for _, block in self.blocks for asked in block)

    @property
    def total(self) -> int:
        """Count of answers."""
        return sum(len(block) for _, block in self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision demo --json`` prints, but for the places of page and bundle."""
        answers = [
            {
                "id": asked.sample.id,
                "files": list(item.files),
                "prompt": asked.sample.prompt,
                "expected": list(asked.sample.answers),
                "right": asked.right,
                **asked.answer.to_dict(),
            }
            for item, block in self.blocks
            for asked in block
        ]
        return {
            "verify": self.report.to_dict(),
            "right": self.right,
            "total": self.total,
            "answers": answers,
        }


def files_of(page: Path) -> set[str]:
    """Names of a demo's files, the page among them; none if it is not a demo's page, or does not exist."""
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
        folder: Folder with the inputs' files.
    """
    cases = demo.report.cases
    results = [{stage.stage: stage for stage in case.stages} for case in cases]
    names = dict.fromkeys(stage.stage for case in cases for stage in case.stages)
    verdict = {
        True: "the bundle computes what the reference does",
        False: "the bundle does not compute what the reference does",
        None: "the bundle is unproven: it has no reference vectors",
    }[demo.report.passed]
    return html.render(
        "demo.html",
        demo=demo,
        facts=facts,
        files=[file for item, _ in demo.blocks for file in item.files],
        images={item: [_image(folder / file) for file in item.files] for item, _ in demo.blocks},
        stages={name: [stages.get(name) for stages in results] for name in names},
        error=_error,
        verdict=verdict,
    )


def _image(path: Path) -> dict[str, object]:
    """An image or animation as data, enlarged by a whole number until it fills the room."""
    with Image.open(path) as image:
        width, height = image.size
    times = max(1, ROOM // max(width, height))
    source = html.data_uri(path.read_bytes(), _MIME[path.suffix])
    return {"source": source, "width": width * times, "height": height * times}


def _error(stage: StageResult) -> str:
    """Relative or largest error of a stage, with one digit."""
    error = stage.max_error if stage.relative_error is None else stage.relative_error
    return "" if error is None else " 0" if error == 0 else f" {error:.0e}".replace("e-0", "e-")
