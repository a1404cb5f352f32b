"""Write ``docs/reference/commands.md`` from the command line itself.

    python scripts/commands.py

A test compares the page with what this would write.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from onevision.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer import Context

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"

HEAD = """# Commands

Every command of `onevision`, as its `--help` says it. This page is written by `scripts/commands.py`.

Answers and `--json` go to stdout, everything else to stderr.
Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""


def page() -> str:
    """The whole page, in Markdown."""
    command = typer.main.get_command(app)
    root = command.context_class(command, info_name="onevision")
    return "\n".join([HEAD, *map(_section, _walk(root))])


def _walk(context: Context) -> Iterator[Context]:
    """Contexts of the commands below ``context``, depth first, in the order of ``--help``."""
    group = context.command
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command.hidden:
            continue
        below = command.context_class(command, info_name=name, parent=context)
        yield below
        if hasattr(command, "list_commands"):
            yield from _walk(below)


def _section(context: Context) -> str:
    """A heading, the description, the usage, the examples, and a table each of arguments and options."""
    command = context.command
    description, _, examples = (command.help or "").partition("Examples:")
    # typer 0.29 marks what may be repeated, and names types behind arguments; 0.28 does neither.
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)]).removesuffix("...")
    blocks = [
        f"## {context.command_path}",
        " ".join(description.replace("\b", "").split()),
        f"```text\n{usage}\n```",
    ]
    if examples.strip():
        lines = "\n".join(line.strip() for line in examples.strip().splitlines())
        blocks.append(f"```sh\n{lines}\n```")
    for kind, head in (("argument", "Argument"), ("option", "Option")):
        parameters = [one for one in command.get_params(context) if one.param_type_name == kind]
        records = [one.get_help_record(context) for one in parameters if "help" not in one.name]
        rows = [
            f"| `{_cell(re.sub(r' <.+>$', '', names))}` | {_escaped(_cell(text))} |"
            for names, text in filter(None, records)
        ]
        if rows:
            blocks.append("\n".join([f"| {head} | Meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text in which brackets are brackets: neither links nor tags."""
    return text.replace("[", "\\[").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
