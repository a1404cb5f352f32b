"""``onevision chat`` with its input from a file: commands, questions and mistakes in one conversation."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from onevision.cli import _run

if TYPE_CHECKING:
    from pathlib import Path


def converse(
    bundle: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """Output and errors of a conversation."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert _run(["chat", "-m", str(bundle), "-n", "4", "--threads", "1"]) == 0
    out, err = capfd.readouterr()
    return out, err


def test_a_conversation(
    toy_bundle: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    saved = tmp_path / "with a space.json"
    lines = [f'/image "{photo}"', "What is it?", "And now?", "/stats", f"/save {saved}", "/reset", "Hi."]
    out, err = converse(toy_bundle, lines, monkeypatch, capfd)
    assert len(out.splitlines()) >= 3
    assert "known before" in err
    assert "forgotten" in err
    assert len(json.loads(saved.read_text())) >= 4

    again, err = converse(toy_bundle, [f"/load {saved}", "Hi.", "/quit", "never asked"], monkeypatch, capfd)
    assert again
    assert "error" not in err


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/dance", "unknown command /dance"),
        ("/image", "/image takes a file"),
        ("/image nowhere.png", "nowhere.png"),
        ("/load nowhere.json", "nowhere.json"),
    ],
)
def test_a_mistake_is_told_and_the_conversation_goes_on(
    line: str,
    error: str,
    toy_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    out, err = converse(toy_bundle, [line, "Hi."], monkeypatch, capfd)
    assert error in err
    assert out.strip()
