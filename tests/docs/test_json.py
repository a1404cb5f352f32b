"""The JSON that ``docs/reference/json.md`` shows has the keys of the JSON that the commands print."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from onevision.cli import _run
from tests.docs.markdown import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```sh\nonevision ([^\n]+)\n```\n+```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ANY = "…"  # any value; as a key, more keys like the one before


def check_keys(shown: Any, printed: Any, where: str) -> None:
    if shown == ANY:
        return
    if isinstance(shown, dict) and isinstance(printed, dict):
        if ANY in shown:
            like = next(value for key, value in shown.items() if key != ANY)
            assert printed, where
            for key, value in printed.items():
                check_keys(like, value, f"{where}.{key}")
        else:
            assert sorted(shown) == sorted(printed), where
            for key, value in shown.items():
                check_keys(value, printed[key], f"{where}.{key}")
    elif isinstance(shown, list) and isinstance(printed, list):
        if shown and printed:
            check_keys(shown[0], printed[0], f"{where}[0]")
    elif shown is not None and printed is not None:
        assert isinstance(shown, type(printed)) or {type(shown), type(printed)} == {int, float}, where


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, photo: Path, toy_checkpoint: Path, toy_bundle: Path
) -> Path:
    """What the examples name: photo.jpg, checkpoint, bundle."""
    place = tmp_path_factory.mktemp("examples")
    shutil.copy(photo, place / "photo.jpg")
    shutil.copytree(toy_checkpoint, place / "checkpoint")
    shutil.copytree(toy_bundle, place / "bundle")
    return place


def test_every_command_with_json_is_shown():
    assert len({shown.split()[0] for shown, _ in EXAMPLES}) >= 8


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_the_output_has_the_keys_that_are_shown(
    command: str,
    shown: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ONEVISION_MODEL", raising=False)
    expected = json.loads(shown)
    status = expected.get("error", {}).get("status", 0)
    assert _run(shlex.split(command)) == status, capsys.readouterr().err
    check_keys(expected, json.loads(capsys.readouterr().out), command)
