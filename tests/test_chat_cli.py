"""``onevision chat`` with its input from a file: commands, questions and mistakes in one conversation."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from onevision.cli import _run
from onevision.cli.chat import _converse, _dropped
from onevision.runtime.engine import OneVision


def converse(
    bundle: Path,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int = 0,
) -> tuple[str, str]:
    """Output and errors of a conversation."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert _run(["chat", "-m", str(bundle), "-n", "4", "--threads", "1"]) == status
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
        ("/dance", "unknown command /dance\nhint: one of /image"),
        ("/imgae a.png", "unknown command /imgae\nhint: did you mean /image?"),
        ("/image", "/image takes a file"),
        ("/image nowhere.png", "nowhere.png"),
        ("/image no where.png", "no where.png does not exist"),
        ("/image {clip}", "is an MP4 video, not an image\nhint: pass it with /video\n"),
        ("/video {photo}", "is a JPEG image, not a video\nhint: pass it with /image\n"),
        ("/load nowhere.json", "nowhere.json"),
        ("/load {photo} {clip}", "/load takes one file, not 2"),
        ("/save /nowhere/at/all.json", "/nowhere/at"),
        ("0123456789 " * 4000, "error: the prompt needs"),
    ],
)
def test_a_mistake_is_told_and_the_conversation_goes_on(
    line: str,
    error: str,
    toy_bundle: Path,
    photo: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    """A pipe is read to its end, and the status is 1."""
    line = line.format(photo=photo, clip=clip)
    out, err = converse(toy_bundle, [line, "Hi."], monkeypatch, capfd, status=1)
    assert error in err
    assert out.strip()


@pytest.mark.parametrize(
    "line",
    [
        "/image {0}/my photo's.jpg",
        "/image '{0}/a b.jpg'",
        '/image "{0}/my photo\'s.jpg"',
        "/image {0}/my\\ photo\\'s.jpg",
        "/image {0}/a\\ b.jpg ",
        "/image '{0}/a b.jpg' {0}/my\\ photo\\'s.jpg",
        "/image file://{0}/a%20b.jpg",
    ],
)
def test_files_that_are_dropped_on_a_terminal(
    line: str,
    toy_bundle: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    for name in ("a b.jpg", "my photo's.jpg"):
        shutil.copy(photo, tmp_path / name)
    lines = [line.format(tmp_path), "What is it?", f"/save {tmp_path}/saved.json"]
    converse(toy_bundle, lines, monkeypatch, capfd)
    shown = json.loads((tmp_path / "saved.json").read_text())[0]["content"][:-1]
    assert len(shown) == line.count(".jpg")
    assert all(Path(part["image"]).parent == tmp_path for part in shown)


def test_paths_of_windows_keep_their_separators(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sep", "\\")
    assert _dropped(r'"C:\my photos\new.jpg"') == [r"C:\my photos\new.jpg"]
    assert _dropped(r"C:\photos\new.jpg") == [r"C:\photos\new.jpg"]


def test_a_question_that_names_a_file_gets_a_note(
    toy_bundle: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    shutil.copy(photo, tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    _, err = converse(toy_bundle, ["What is in a.jpg? And in b.jpg?"], monkeypatch, capfd)
    assert err == "note: a.jpg is shown with: /image a.jpg\n"


def test_a_saved_conversation_is_asked_by_run(
    toy_bundle: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    saved = tmp_path / "saved.json"
    lines = [f"/image {photo}", "What is it?", f"/save {saved}", "And now?"]
    out, _ = converse(toy_bundle, lines, monkeypatch, capfd)
    words = ["-n", "4", "--threads", "1", "-m", str(toy_bundle)]
    assert _run(["run", "And now?", "--messages", str(saved), *words]) == 0
    assert out.endswith("\n" + capfd.readouterr().out)
    assert _run(["run", "--messages", str(saved), *words]) == 1
    assert "the last message must be the user's" in capfd.readouterr().err


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
