"""Links, examples and generated pages of the documentation hold."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import typer

import onevision
from onevision.cli import app
from tests.docs.markdown import PAGES, ROOT, anchors, blocks, links, name_of

if TYPE_CHECKING:
    from pathlib import Path

each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@each_page
def test_a_link_leads_to_a_file_and_a_heading(page: Path):
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_the_commands_page_says_what_help_says():
    script = runpy.run_path(str(ROOT / "scripts" / "commands.py"))
    written = script["PAGE"].read_text(encoding="utf-8")
    assert written == script["page"](), "run: python scripts/commands.py"


@each_page
def test_an_example_command_has_only_arguments_that_exist(page: Path):
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("onevision "):
                check_arguments(shlex.split(line, comments=True))


def check_arguments(words: list[str]) -> None:
    """Parse a command line down to its last subcommand, without running anything."""
    for operator in ("<", ">", "|", "&&"):
        words = words[: words.index(operator)] if operator in words else words
    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="onevision")
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"{shlex.join(words)}: there is no command {name}"
        command = command.commands[name]
    command.make_context("onevision", rest, parent=context)  # raises what the command line would say


def test_a_wrong_example_is_found():
    for wrong in (
        "onevision rnu",
        "onevision run --imge a.png",
        "onevision doctor a",
        "onevision bench plit",
    ):
        with pytest.raises((AssertionError, typer.BadParameter.__mro__[2])):
            check_arguments(wrong.split())
    check_arguments(shlex.split("onevision run - -i a.png --json -m bundle < question.txt"))


@each_page
def test_a_file_of_the_repository_that_is_named_exists(page: Path):
    named = re.findall(
        r"(?<![\w/.])(?:benchmarks|docs|recipes|scripts|tests)/[\w/.-]*\w", page.read_text(encoding="utf-8")
    )
    missing = {name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()}
    assert not missing


@each_page
def test_an_example_in_python_is_python(page: Path):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_the_names_of_python_examples_exist():
    for page in PAGES:
        for block in blocks(page, "python"):
            for name in re.findall(r"\bonevision\.(\w+)\(", block):
                assert hasattr(onevision, name), f"{name_of(page)}: onevision.{name}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built as CI builds it: a warning, such as a dead link, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//', html), page
        assert not re.search(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//', html), (
            page
        )


def test_every_public_name_is_described(site: Path):
    html = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    names = [name for name in onevision.__all__ if name != "__version__"]
    for name in (*names, "OneVision.generate", "OneVision.stream", "OneVision.chat", "OneVision.close"):
        assert re.search(rf'id="onevision[\w.]*\.{re.escape(name)}"', html), name
    assert onevision.export.__doc__.splitlines()[0].partition(",")[0] in html, "the function, not the package"
