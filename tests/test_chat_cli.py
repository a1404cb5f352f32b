"""``onevision chat`` with its input from a file: commands, questions and mistakes in one conversation."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from onevision.cli import _run
from onevision.cli.chat import _converse
from onevision.runtime.engine import OneVision

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


def test_ctrl_c_stops_an_answer_and_not_the_conversation(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    lines = iter(["Hi.", "Tell me.", KeyboardInterrupt(), "And now?", EOFError()])

    def read() -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    with OneVision.load(toy_bundle, threads=1) as model:
        talk = model.chat(max_tokens=4)
        append, left = model.pipeline.backbone.append, [2]

        def interrupted(token: int) -> None:
            append(token)
            left[0] -= len(talk.turns) == 1
            if left[0] == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(model.pipeline.backbone, "append", interrupted)
        _converse(talk, read, typed=True)
        assert [turn.prompt for turn in talk.turns] == ["Hi.", "And now?"]
        assert capfd.readouterr().err.count("stopped") == 2
        fresh = model.chat(max_tokens=4)
        monkeypatch.setattr(model.pipeline.backbone, "append", append)
        assert [fresh.ask(turn.prompt).text for turn in talk.turns] == [turn.answer for turn in talk.turns]


def test_ctrl_c_ends_what_comes_from_a_file(toy_bundle: Path):
    def read() -> str:
        raise KeyboardInterrupt

    with OneVision.load(toy_bundle, threads=1) as model, pytest.raises(KeyboardInterrupt):
        _converse(model.chat(), read, typed=False)
