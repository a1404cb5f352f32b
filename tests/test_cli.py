"""The command line where all is well: what it prints, where, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len

from onevision import OneVision, __version__
from onevision.cli import _run, app
from onevision.cli.console import AnswerWriter
from onevision.export.hub import resolve
from onevision.models import SHIPPED
from onevision.proof.golden import load_golden, save_golden
from tests.conftest import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    #: Arguments to status, stdout, stderr.
    Cli = Callable[..., tuple[int, str, str]]

COMMANDS = [
    *(str(command.name) for command in app.registered_commands),
    *(
        f"{group.name} {command.name}"
        for group in app.registered_groups
        if group.typer_instance
        for command in group.typer_instance.registered_commands
    ),
]
TOKENS = 8


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """The command line in an empty folder and an environment that says nothing."""
    for name in ("ONEVISION_MODEL", "ONEVISION_DEBUG", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = _run([str(word) for word in words])
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(toy_bundle) as loaded:
        yield loaded


def parsed(out: str) -> Any:
    """The one JSON object that is all of stdout."""
    assert out.count("\n") == 1
    return json.loads(out)


# Help.


def test_commands() -> None:
    assert COMMANDS == [
        "export", "synth", "run", "chat", "demo", "eval", "plan", "verify", "inspect", "doctor",
        "list", "rm", "bench compare", "bench plot", "quant apply", "quant imatrix", "quant sweep",
        "cache list", "cache clear",
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_help(command: str, width: int, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, err = cli(*command.split(), "--help")
    assert (status, err) == (0, "")
    assert f"Usage: onevision {command}" in out
    assert f"Examples:\n    onevision {command}" in out
    assert "--json" in out or command == "chat"
    shown = out.replace(out.partition("Examples:")[2].partition("\n\n")[0], "")  # a command stays on its line
    assert max(map(len, shown.splitlines())) <= min(width, 80)
    assert max(map(len, out.splitlines())) <= 80
    assert cli(*command.split(), "-h") == (0, out, "")


def test_help_of_all(cli: Cli) -> None:
    status, out, err = cli("--help")
    assert (status, err) == (0, "")
    assert all(re.search(rf"^  {command.split()[0]} .+\.$", out, re.MULTILINE) for command in COMMANDS)
    assert cli() == (0, out, "")


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"onevision {__version__}\n", "")


def test_console_script_and_module() -> None:
    script = shutil.which("onevision", path=str(Path(sys.executable).parent))
    assert script
    for command in ([script], [sys.executable, "-m", "onevision"]):
        assert subprocess.check_output([*command, "--version"], text=True) == f"onevision {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("onevision exp", "export"),
        ("onevision export --size 0", "0.5b"),
        ("onevision run --ttft", "--ttft-target"),
    ],
)
def test_completion_of_a_shell(typed: str, completed: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_ONEVISION_COMPLETE": "complete_bash"}
    script = Path(sys.executable).parent / "onevision"
    assert subprocess.check_output([script], text=True, env=os.environ | words).split() == [completed]


def test_start_needs_no_tables() -> None:
    """What test_imports.py does not look at, and what takes its time as well."""
    code = "import sys, onevision.cli; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"rich.table", "rich.progress", "psutil"} & set(loaded)


# run


@pytest.mark.parametrize(
    ("pictures", "has_video"),
    [(0, False), (1, False), (2, False), (0, True)],
    ids=["text", "one", "two", "video"],
)
def test_answer(pictures: int, has_video: bool, cli: Cli, model: OneVision, photo: Path, clip: Path) -> None:
    images, video = [photo] * pictures, clip if has_video else None
    expected = model.generate("What is it?", images=images, video=video, max_tokens=TOKENS)
    options = [word for image in images for word in ("-i", image)] + (["-v", clip] if has_video else [])
    words = ("run", "What is it?", *options, "-n", TOKENS, "-m", model.bundle.folder)
    assert cli(*words) == (0, expected.text + "\n", "")

    status, out, err = cli(*words, "--json")
    answer = parsed(out)
    assert (status, err) == (0, "")
    assert list(answer) == [
        "bundle", "text", "token_ids", "finish_reason", "usage", "device", "warnings", "budget", "timings_ms",
        "onevision",
    ]  # fmt: skip
    assert (answer["bundle"], answer["onevision"]) == (str(model.bundle.folder), __version__)
    assert answer["device"] == {
        "vision": "cpu" if pictures or has_video else None, "prefill": "llama", "backbone": "cpu"
    }  # fmt: skip
    assert (answer["text"], tuple(answer["token_ids"])) == (expected.text, expected.token_ids)
    assert answer["usage"] == vars(expected.usage)
    stages = ["tokenize", "read", "preprocess", "encode", "pack", "prefill", "first_token"]
    assert list(answer["timings_ms"]) == ["load", *stages, "ttft", "decode", "detokenize", "total"]


def test_prompt_from_stdin(cli: Cli, model: OneVision, monkeypatch: pytest.MonkeyPatch) -> None:
    data = "\ufeffWas heißt 图?\r\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="cp1252"))
    expected = model.generate("Was heißt 图?", max_tokens=TOKENS)
    assert cli("run", "-", "-n", TOKENS, "-m", model.bundle.folder) == (0, expected.text + "\n", "")


def test_image_from_stdin(cli: Cli, model: OneVision, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    expected = model.generate("What is it?", images=photo, max_tokens=TOKENS)
    words = ("run", "What is it?", "-i", "-", "-n", TOKENS, "-m", model.bundle.folder)
    assert cli(*words) == (0, expected.text + "\n", "")


def test_pages_are_images(cli: Cli, model: OneVision, photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as image:
        pages = [image.copy(), image.resize((90, 120)), image.resize((60, 60))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    run = ("run", "What is it?", "-i", "a.tif", "-m", model.bundle.folder, "-n", TOKENS, "--json")
    for page, chosen in ((None, pages[:1]), ("2", pages[1:2]), ("all", pages), ("1,3", pages[::2])):
        answer = parsed(cli(*run, *(("--page", page) if page else ()))[1])
        expected = model.generate("What is it?", images=chosen, max_tokens=TOKENS)
        assert answer["usage"] == vars(expected.usage)
        assert answer["token_ids"] == list(expected.token_ids)
        warning = "a.tif has 3 pages, of which the first is used: see --page"
        assert answer["warnings"] == ([] if page else [warning])


def test_a_plan_names_pages_that_are_left_out(cli: Cli, tmp_path: Path) -> None:
    page = Image.new("RGB", (80, 60))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    warning = "a.tif has 2 pages, of which the first is used: see --page"
    assert warning in parsed(cli("plan", "a.tif", "--json")[1])["warnings"]
    assert f"warning: {warning}\n" in cli("plan", "a.tif")[2]
    both = parsed(cli("plan", "a.tif", "--page", "all", "--json")[1])
    assert warning not in both["warnings"]
    assert len(both["inputs"]) == 2


def test_two_videos(cli: Cli, model: OneVision, clip: Path) -> None:
    expected = model.generate("What is it?", videos=[clip, clip], frames=3, max_tokens=TOKENS)
    one = model.generate("What is it?", video=clip, frames=3, max_tokens=TOKENS)
    assert expected.usage.image_tokens == 2 * one.usage.image_tokens
    options = ("-v", clip, "-v", clip, "--frames", 3, "-n", TOKENS, "-m", model.bundle.folder)
    assert cli("run", "What is it?", *options) == (0, expected.text + "\n", "")


def test_messages(cli: Cli, model: OneVision, photo: Path, tmp_path: Path) -> None:
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image", "image": str(photo)}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": "A house"},
        {"role": "user", "content": "Where?"},
    ]
    (tmp_path / "m.json").write_text(json.dumps(conversation), encoding="utf-8")
    expected = model.generate(messages=conversation, max_tokens=TOKENS)
    words = ("run", "--messages", "m.json", "-n", TOKENS, "-m", model.bundle.folder)
    assert cli(*words) == (0, expected.text + "\n", "")


def test_options_reach_the_model(cli: Cli, model: OneVision, photo: Path) -> None:
    sampling = {
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "seed": 7,
    }
    others = {"template": "hf", "system": "Be brief.", "max_tokens": TOKENS, "exif": False}
    expected = model.generate("Hi", images=[photo], **sampling, **others)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sampling.items()]
    options += ["--template=hf", "--system=Be brief.", f"--max-tokens={TOKENS}", "--no-exif"]
    words = ("run", "Hi", "-i", photo, *options, "-m", model.bundle.folder)
    assert cli(*words) == (0, expected.text + "\n", "")
    stop = expected.text[2:4]
    _, out, _ = cli(*words, "--stop", stop)
    assert out == expected.text[: expected.text.index(stop)] + "\n"


def test_bundle_from_the_environment(cli: Cli, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEVISION_MODEL", str(toy_bundle))
    assert cli("run", "Hi", "-n", 1)[0] == 0
    assert parsed(cli("inspect", "--json")[1])["bundle"] == str(toy_bundle)
    assert "about" not in cli("plan")[1]
    assert "about" in cli("plan", "--size", "7b")[1]


def test_warnings_about_an_image(cli: Cli, toy_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jpg").write_bytes(photo.read_bytes()[:-2])
    words = ("run", "Hi", "-i", "c.jpg", "-n", 1, "-m", toy_bundle)
    warning = "c.jpg is cut off: only its end marker is missing"
    assert cli(*words)[2] == f"warning: {warning}\n"
    assert parsed(cli(*words, "--json")[1])["warnings"] == [warning]


def test_warnings(cli: Cli, toy_bundle: Path, clip: Path, tmp_path: Path) -> None:
    """A damaged video is used as far as it goes, and the user is told."""
    whole = clip.read_bytes()
    start = whole.index(b"mdat") + 4
    tail = start + (len(whole) - start) // 3
    (tmp_path / "c.mp4").write_bytes(
        whole[:tail] + bytes(len(whole) // 10) + whole[tail + len(whole) // 10 :]
    )
    words = ("run", "Hi", "-v", "c.mp4", "-n", 1, "-m", toy_bundle)
    status, out, err = cli(*words)
    assert (status, out.count("\n")) == (0, 1)
    assert re.fullmatch(r"warning: c\.mp4: \d+ of 24 frames cannot be decoded\n", err)
    assert cli(*words, "--quiet") == (0, out, "")
    status, out, err = cli(*words, "--json")
    assert [f"warning: {text}\n" for text in parsed(out)["warnings"]] == [err]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal(toy_bundle: Path, photo: Path) -> None:
    """Bars and statistics on stderr, and with --quiet none; stdout is the same as ever."""
    run = [sys.executable, "-m", "onevision", "run", "Hi", "-i", str(photo), "-n", "4", "-m", str(toy_bundle)]
    shown, plain = in_terminal(run), in_terminal([*run, "--quiet"])
    assert "encoding tiles" in shown[1]
    assert re.search(r"31 tiles, 151 of 19\d prompt tokens; first token after [0-9.]+ s", shown[1])
    assert plain[1] == ""
    assert plain[0] == shown[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_chat_on_a_terminal(toy_bundle: Path, photo: Path) -> None:
    """A bar for each image while it is encoded, and commands in two columns."""
    chat = [sys.executable, "-m", "onevision", "chat", "-n", "4", "-m", str(toy_bundle)]
    out, err = in_terminal(chat, f"/help\n/image {photo}\nWhat is it?\n/stats\n")
    assert out.strip()
    err = re.sub(r"\x1b\[[0-9;]*m", "", err)
    assert re.search(r"/image FILE +add an image to the next question\r", err)
    assert "loading the model" in err
    assert re.search(r"encoding tiles.*31/31", err)
    assert re.search(r"reading the prompt.* (\d+)/\1", err)
    assert "known before" in err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("command", ["run", "chat"])
def test_an_answer_on_a_terminal_breaks_between_words(command: str, toy_bundle: Path) -> None:
    """The bytes of a pipe are the answer's; a terminal has lines of at most 16 columns."""
    text = "Explorers explore every place, then write about it."
    asked = [sys.executable, "-m", "onevision", command, *(["Hi"] if command == "run" else [])]
    asked += ["-m", str(toy_bundle), "--regex", re.escape(text), "-q"]
    assert in_terminal(asked, "Hi\n", columns=16)[0] == f"{text}\n"
    shown = in_terminal(asked, "Hi\n", columns=16, both=True)[1]
    assert shown.split("\r\n") == ["Explorers", "explore every", "place, then", "write about it.", ""]


def in_terminal(
    command: Sequence[str], stdin: str = "", *, columns: int = 120, both: bool = False
) -> tuple[str, str]:
    """Stdout through a pipe, and what a terminal gets as stderr, or as both."""
    master, slave = os.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=slave if both else subprocess.PIPE,
        stderr=slave,
        text=True,
        env=environment,
    ) as process:
        os.close(slave)
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(stdin)
        process.stdin = None
        seen = b""
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # how Linux tells that the other end is closed
                break
            if not data:
                break
            seen += data
        out, _ = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0
    return out, seen.decode()


class Screen(io.StringIO):
    """A terminal that keeps what it gets."""

    def isatty(self) -> bool:
        return True


def written(pieces: Sequence[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pieces as a terminal gets them."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout", screen := Screen())
    with AnswerWriter() as writer:
        for piece in pieces:
            writer.write(piece)
    return screen.getvalue()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("to explore a place", ["to explore", "a place"]),
        ("explore it  now", ["explore it", "now"]),  # ends at the edge
        ("one\n\n  two three", ["one", "", "  two", "three"]),
        ("0123456789 \nab \n", ["0123456789", "ab"]),
        ("ab 0123456789abcdefg h ijk", ["ab 0123456789abcdefg", "h ijk"]),  # the terminal's own break
        ("a\tb c d e f", ["a    b c d", "e f"]),
        ("红色的大圆。在左边", ["红色的大", "圆。在左边"]),  # no line begins with 。
        ("日本語とenglish", ["日本語と", "english"]),
        ("나는 한국어 안다", ["나는", "한국어", "안다"]),
        ("a 😀😀 😀😀 b", ["a 😀😀", "😀😀 b"]),
        ("😀" * 7 + " ab", ["😀" * 7 + " ab"]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines_of_an_answer(text: str, lines: list[str], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten columns, and pieces of any size."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert written(pieces, 10, monkeypatch) == "\n".join(lines)


def test_only_the_last_word_of_an_answer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setattr("sys.stdout", screen := Screen())
    with AnswerWriter() as writer:
        for piece, shown in (("a re", "a"), ("d", "a"), (" b", "a red"), ("0123456789", "a red b0123456789")):
            writer.write(piece)
            assert screen.getvalue() == shown


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.text("aé \n红。😀", max_size=8)), columns=st.integers(2, 12))
def test_nothing_but_spaces_of_an_answer_changes(
    pieces: list[str], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        shown = written(pieces, columns, patch)
        assert written(["".join(pieces)], columns, patch) == shown
    assert "".join(shown.split()) == "".join("".join(pieces).split())
    short = [line for line in shown.split("\n") if all(cell_len(word) <= columns for word in line.split())]
    assert all(cell_len(line) <= columns for line in short)


# Errors.


def test_traceback_only_when_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "error: no bundle at no: there is no such folder\n"
    status, _, err = cli("inspect", "no")
    assert status == 1
    assert err.startswith(plain)
    for words in (("--debug", "inspect", "no"), ("inspect", "no", "--debug")):
        assert re.match(r"Traceback .*BundleError: .*\nerror: no bundle", cli(*words)[2], re.DOTALL)
    monkeypatch.setenv("ONEVISION_DEBUG", "1")
    assert cli("inspect", "no")[2].startswith("Traceback")
    monkeypatch.setenv("ONEVISION_DEBUG", "0")
    assert cli("inspect", "no")[2].startswith(plain)


@pytest.mark.parametrize(
    ("words", "status", "hint"),
    [
        ("exprt", 2, "did you mean export?"),
        ("bench comprae a b", 2, "did you mean compare?"),
        ("run Hi --maxtokens 3", 2, "did you mean --max-tokens?"),
        ("run Hi --device gpu", 2, "did you mean cuda?"),
        ("export --size 0.6b", 2, "did you mean 0.5b?"),
        ("export --backbone q4_k", 2, "did you mean q4_k_s?"),
        ("eval --family color", 2, "did you mean colour?"),
        ("bench --scenario photo-480", 2, "did you mean photo-480p?"),
        ("verify folder", 2, "name a bundle with -m: onevision verify -m folder"),
        ("run Hi a.png", 2, "give images with -i, one -i for each: onevision run … -i a.png -i b.png"),
        ("chat --frobnicate", 2, "onevision chat --help"),
        ("bench compare no.json no.json", 1, None),
        ("run Hi -i no.png", 1, "relative paths start at "),
    ],
)
def test_errors_have_a_hint_and_are_json_too(words: str, status: int, hint: str | None, cli: Cli) -> None:
    code, out, err = cli(*words.split())
    assert (code, out) == (status, "")
    shown = re.search(r"^error: (.*)\n(?:hint: (.*)\n)?\Z", err, re.MULTILINE)
    assert shown
    assert shown[2] is None if hint is None else shown[2].startswith(hint)
    code, out, err = cli(*words.split(), "--json")
    error = parsed(out)
    if words.startswith("chat"):  # has no --json: the first unknown option is told
        assert (code, error["error"]["status"]) == (2, 2)
    else:
        expected = {"message": shown[1], "hint": shown[2], "status": status}
        assert error == {"error": expected, "onevision": __version__}
        assert (code, err.splitlines()[-1]) == (status, shown[0].splitlines()[-1])


def test_help_and_version_as_commands(cli: Cli) -> None:
    assert cli("help", "run") == cli("run", "--help")
    assert cli("help") == cli("--help")
    assert cli("version") == cli("--version")


def test_interrupt(cli: Cli, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onevision.bundle.open_bundle", interrupt)
    assert cli("inspect", toy_bundle) == (130, "", "error: interrupted\n")


# plan

# Width × height: tiles, grid (columns × rows), tokens (LLaVA-OneVision of 384-pixel tiles, anyres_max_9).
PLANS = """
    1×1 1×1 2 1485       100×100 1×1 2 1485     224×224 1×1 2 1485     384×384 1×1 2 1485
    385×384 2×1 3 1512   448×448 2×2 5 3699     512×512 2×2 5 3699     768×768 2×2 5 3699
    640×480 2×2 5 2929   480×640 2×2 5 2943     640×427 2×2 5 2709     800×600 3×2 7 4725
    1024×768 3×2 7 4725  1024×899 3×3 10 6551   1024×1024 3×3 10 7371  1152×1152 3×3 10 7371
    1153×1152 4×3 13 7452  1280×720 4×2 9 5967  720×1280 2×4 9 6009    1920×1080 5×3 16 7269
    1080×1920 3×5 16 7317  1080×2400 3×6 19 7329  2048×1536 6×4 25 7309  2304×2304 6×6 37 7371
    10000×10000 6×6 37 7371  3840×2160 6×4 25 7317  4032×3024 6×5 31 7309  3024×4032 5×6 31 7332
    1700×2200 5×6 31 7353  2550×3300 5×6 31 7353  5000×100 6×1 7 1218  100×5000 1×6 7 1377
    2304×1 6×1 7 892
"""


@pytest.fixture
def known_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle machine of known speed; the toy and the tiny model are measured all the same."""
    monkeypatch.setattr("onevision.planning.estimate.core_rate", lambda: 1e11)
    monkeypatch.setattr("onevision.planning.plan.load_average", lambda: 0.0)


@pytest.mark.usefixtures("known_rate")
@pytest.mark.parametrize("row", re.findall(r"\S+ \S+ \d+ \d+", PLANS))
def test_plan(row: str, cli: Cli) -> None:
    size, grid, tiles, tokens = row.split()
    words = ("plan", "--image-size", size.replace("×", "x"), "--size", "0.5b")
    status, out, err = cli(*words, "--json")
    plan = parsed(out)
    assert (status, err) == (0, "")
    assert list(plan)[:7] == [
        "bundle", "model", "inputs", "usage", "context_length", "kv_bytes", "flops",
    ]  # fmt: skip
    width, height = map(int, size.split("×"))
    columns, rows = map(int, grid.split("×"))
    assert plan["inputs"] == [
        {
            "path": size.replace("×", "x"),
            "kind": "image",
            "width": width,
            "height": height,
            "frames": None,
            "grid": [rows, columns],
            "usage": {"tiles": int(tiles), "image_tokens": int(tokens)},
        }
    ]
    assert (plan["usage"]["tiles"], plan["usage"]["image_tokens"]) == (int(tiles), int(tokens))
    assert plan["kv_bytes"] == plan["usage"]["prompt_tokens"] * 12 * 1024
    assert plan["flops"]["encode"] == pytest.approx(int(tiles) * 0.64e12, rel=0.05)
    assert list(plan["flops"]) == ["encode", "prefill"]


@pytest.mark.usefixtures("known_rate")
def test_plan_of_several(cli: Cli, photo: Path, clip: Path) -> None:
    """Two pictures are padded squares of 729 patches and a newline; 24 frames are 196 tokens each and one."""
    plan = parsed(cli("plan", photo, photo, clip, "--size", "0.5b", "--json")[1])
    assert [item["usage"]["image_tokens"] for item in plan["inputs"]] == [730, 730, 24 * 196 + 1]
    assert [item["kind"] for item in plan["inputs"]] == ["image", "image", "video"]
    assert plan["usage"]["tiles"] == 26
    few = parsed(cli("plan", clip, "--frames", 8, "--size", "0.5b", "--json")[1])
    assert few["usage"]["image_tokens"] == 8 * 196 + 1


@pytest.mark.usefixtures("known_rate")
@pytest.mark.parametrize("prompt", ["Hi", "What is the 图 about?"])
def test_plan_is_what_a_run_takes(prompt: str, cli: Cli, model: OneVision, photo: Path) -> None:
    plan = parsed(cli("plan", photo, "--prompt", prompt, "-m", model.bundle.folder, "--json")[1])
    usage = model.generate(prompt, images=[photo], max_tokens=1).usage
    assert (plan["usage"]["tiles"], plan["usage"]["image_tokens"]) == (usage.tiles, usage.image_tokens)
    assert plan["usage"]["prompt_tokens"] == usage.prompt_tokens


@pytest.mark.usefixtures("known_rate")
def test_plan_on_screen(cli: Cli, photo: Path, tmp_path: Path) -> None:
    """The name alone of a long path, and brackets in it are brackets."""
    picture = tmp_path / ("long-" * 20) / "[red] :smile:.jpg"
    picture.parent.mkdir()
    shutil.copy(photo, picture)
    status, out, err = cli("plan", picture, "--size", "0.5b")
    assert (status, err) == (0, "")
    assert re.search(r"^\[red\] :smile:\.jpg +640×427 +2×2 +5 +2,709$", out, re.MULTILINE)
    assert re.search(r"^model        0\.5b$", out, re.MULTILINE)
    assert re.search(r"^prompt       about 2,73\d tokens, 8% of 32,768$", out, re.MULTILINE)
    assert "the context cannot hold" not in out
    pictures = ["--image-size", "100x100"] * 50
    assert "the context cannot hold this prompt" in cli("plan", *pictures, "--size", "0.5b")[1]


@pytest.mark.usefixtures("known_rate")
def test_plan_without_a_model(cli: Cli, photo: Path, clip: Path) -> None:
    """The tiny one's numbers, without a file beside its bundle."""
    plan = parsed(cli("plan", clip, "--json")[1])
    # A frame of 5×5 patches is pooled to 3×3; keys and values are float16.
    assert (plan["usage"]["tiles"], plan["usage"]["image_tokens"]) == (8, 8 * 9 + 1)
    assert plan["kv_bytes"] == plan["usage"]["prompt_tokens"] * 2 * 5 * 128 * 2
    same = parsed(cli("plan", clip, "--size", "tiny", "--json")[1])
    measured = {"timings_ms", "budget", "budgets"}  # each time
    assert {key: plan[key] for key in plan.keys() - measured} == {
        key: same[key] for key in same.keys() - measured
    }
    status, out, err = cli("plan", photo)
    assert (status, err) == (0, "")
    assert re.search(r"^model        tiny$", out, re.MULTILINE)


@pytest.mark.usefixtures("known_rate")
def test_plan_of_the_tiny_model_is_what_a_run_takes(cli: Cli, tiny_bundle: Path, photo: Path) -> None:
    plan = parsed(cli("plan", photo, "--json")[1])
    usage = parsed(cli("run", "Hi", "-i", photo, "-n", 1, "--json")[1])["usage"]
    assert (plan["usage"]["tiles"], plan["usage"]["image_tokens"]) == (usage["tiles"], usage["image_tokens"])


# inspect, doctor, verify


def test_inspect(cli: Cli, toy_bundle: Path) -> None:
    status, out, err = cli("inspect", toy_bundle)
    assert (status, err) == (0, "")
    assert "backbone  2 layers of 128; 4 heads, 2 for keys and values; context 32,768; 32.00 bits" in out
    assert "sizes correct" in out
    assert "checksums correct" in cli("inspect", "-m", toy_bundle, "--check")[1]
    manifest = parsed(cli("inspect", toy_bundle, "--json")[1])
    assert (manifest.pop("bundle"), manifest.pop("onevision")) == (str(toy_bundle), __version__)
    assert manifest == json.loads((toy_bundle / "onevision.json").read_text(encoding="utf-8"))
    assert all(name in out for name in manifest["files"])


def test_inspect_prints_names_as_they_are(cli: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    path = shutil.copytree(toy_bundle, tmp_path / "odd") / "onevision.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["name"] = "[/bold] :smile:"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert "name      [/bold] :smile:\n" in cli("inspect", "odd")[1]


def test_doctor(cli: Cli) -> None:
    status, out, err = cli("doctor")
    assert (status, err) == (0, "")
    assert not re.search(r"[{}\[\]']", out.partition("pip")[0])
    health = parsed(cli("doctor", "--json")[1])
    assert health["onevision"] == __version__
    assert health["memory_bytes"]["total"] >= health["memory_bytes"]["available"] > 0
    assert "CPUExecutionProvider" in health["onnxruntime"]["providers"]
    assert health["advice"] == [] or all(health["advice"])


@pytest.mark.parametrize("library", ["llama_cpp", "onnxruntime"])
def test_doctor_of_a_broken_installation(
    library: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{library}.py").write_text("raise ImportError('its library is broken')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, library, raising=False)
    status, out, _ = cli("doctor")
    assert status == 0
    assert "cannot be loaded\n" in out
    assert re.search(
        rf"^! {library.replace('_cpp', '-cpp-python')} cannot be loaded \(.*is broken\)", out, re.MULTILINE
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_doctor_of_a_build_for_another_processor(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)"
    (tmp_path / "llama_cpp.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, out, _ = cli("doctor")
    assert status == 0
    assert "! llama-cpp-python cannot be loaded (illegal instruction: it was compiled for another" in out


def test_verify(cli: Cli, toy_bundle: Path) -> None:
    status, out, err = cli("verify", "-m", toy_bundle)
    assert (status, err) == (0, "")
    assert out.endswith("PASS: the bundle matches the reference\n")
    status, out, err = cli("verify", "-m", toy_bundle, "--json")
    report = parsed(out)
    assert (status, err) == (0, "")
    assert (report["bundle"], report["passed"]) == (str(toy_bundle), True)
    assert [case["name"] for case in report["cases"]] == ["image", "images", "video", "text"]
    stages = ["prompt", "tiles", "image features", "visual tokens", "logits", "greedy tokens"]
    assert [stage["stage"] for stage in report["cases"][0]["stages"]] == stages


def test_verify_fits_a_terminal(cli: Cli, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 80 columns every stage keeps to its line."""
    lines = cli("verify", "-m", toy_bundle)[1].splitlines()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    narrow = re.sub(r"\x1b\[[0-9;]*m", "", cli("verify", "-m", toy_bundle)[1]).splitlines()
    assert [line.rstrip() for line in narrow] == [line.rstrip() for line in lines]
    assert max(map(len, narrow)) <= 80


def test_verify_that_fails(cli: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(toy_bundle, tmp_path / "bad")
    image, *others = load_golden(bad / "golden.npz")
    assert image.logits is not None
    save_golden(bad / "golden.npz", [replace(image, logits=image.logits + np.float32(0.1)), *others])
    replace_file(bad, "golden.npz", (bad / "golden.npz").read_bytes())
    status, out, err = cli("verify", "-m", bad)
    assert (status, err) == (1, "")
    assert re.search(r"^  logits +FAIL +0\.1 .* 0\.001$", out, re.MULTILINE)
    assert len(re.findall(r"^  .*FAIL", out, re.MULTILINE)) == 1
    assert out.endswith("FAIL: the bundle does not match the reference\n")
    status, out, _ = cli("verify", "-m", bad, "--json")
    assert (status, parsed(out)["passed"]) == (1, False)


def test_verify_against_the_reference(cli: Cli, toy_bundle: Path, toy_checkpoint: Path, photo: Path) -> None:
    words = (
        "verify",
        "-m",
        toy_bundle,
        "--reference",
        toy_checkpoint,
        "-i",
        photo,
        "--prompt",
        "What is it?",
    )
    status, out, err = cli(*words, "--json")
    (case,) = parsed(out)["cases"]
    assert status == 0
    assert re.fullmatch(r"✓ running the reference [0-9.]+ s\n", err)
    assert (case["name"], case["prompt"], case["passed"]) == ("live", "What is it?", True)
    assert case["stages"][1]["note"] == "31 tiles, uint8 levels"


# export, synth


def test_export(cli: Cli, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = shutil.copytree(toy_checkpoint, tmp_path / "toy-hf")
    monkeypatch.chdir(here)
    exact = ("--vision", "fp32", "--backbone", "q8_0", "--prefill", "none")
    status, out, err = cli("export", "--source", ".", *exact, "--json")
    done = parsed(out)
    assert status == 0
    assert done["bundle"] == "toy-bundle"
    assert done["bytes"] > 0
    assert done["backbone"]["precision"] == "q8_0"
    assert done["backbone"]["fallbacks"] == {}
    assert done["verify"]["passed"]
    steps = [line for line in err.splitlines() if line.startswith("✓ ")]
    assert len(steps) == 4
    assert "q8_0: " in err
    assert "\x1b" not in err
    assert parsed(cli("inspect", "toy-bundle", "--check", "--json")[1])["name"] == "toy-hf"


def test_export_of_nothing_named_is_the_tiny_model(
    cli: Cli, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHIPPED, ("tiny", "ov"), shutil.copytree(toy_checkpoint, tmp_path / "in" / "tiny"))
    assert cli("export")[0] == 0
    manifest = parsed(cli("inspect", "tiny-bundle", "--json")[1])
    assert (manifest["size"], manifest["variant"], manifest["name"]) == ("tiny", "ov", "tiny")
    assert manifest["source"] == {"repo": "tiny", "revision": None, "format": "hf", "adapter": None}


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ({"size": "tiny"}, "tiny-bundle"),
        ({"size": "0.5b"}, "llava-onevision-qwen2-0.5b-ov-bundle"),
        ({"size": "7b", "variant": "si"}, "llava-onevision-qwen2-7b-si-bundle"),
        ({"source": "someone/thing"}, "thing-bundle"),
    ],
)
def test_default_target(words: dict[str, str], folder: str) -> None:
    assert resolve(**words).bundle_name == folder


def test_synth(cli: Cli, tmp_path: Path) -> None:
    small = ("--layers", 1, "--vision-layers", 1, "--shards", 2, "--naming", "lmms-lab")
    status, out, err = cli("synth", *small, "ck", "--json")
    sizes = [path.stat().st_size for path in (tmp_path / "ck").rglob("*") if path.is_file()]
    assert (status, parsed(out)) == (
        0,
        {"checkpoint": "ck", "bytes": sum(sizes), "onevision": __version__},
    )
    assert re.fullmatch(r"✓ checkpoint with random weights [0-9.]+ s\n", err)
    assert len(list((tmp_path / "ck").glob("*.safetensors"))) == 2
    assert cli("synth", *small, "[/red]")[:2] == (0, "[/red]\n")
