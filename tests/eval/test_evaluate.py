"""``onevision eval``: what it prints and writes, how it goes on and compares, and what can be wrong."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from onevision import OneVision
from onevision.cli import _run
from onevision.eval.suite import FAMILIES
from onevision.eval.suite.sample import normalize
from tests.eval.test_questions import write
from tests.runtime.media import encode_video, noise, numbered_frames
from tests.test_bad_inputs import Bad, Place, arguments, check_error, file, finish, folder, listing, start
from tests.test_cli import in_terminal
from tests.test_imports import EXPORT, RUN, modules_after

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKENS = 6
FAST = ("-n", TOKENS, "--threads", 1)


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_bundle: Path
) -> Callable[..., tuple[int, str, str]]:
    """``onevision eval -m BUNDLE …`` in an empty folder: status, stdout, stderr."""
    for name in ("ONEVISION_DEBUG", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONEVISION_MODEL", str(toy_bundle))
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = _run(["eval", *map(str, (*FAST, *words))])
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="session")
def other_bundle(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with another system prompt, and so other answers; its name is no markup."""
    copy = shutil.copytree(toy_bundle, tmp_path_factory.mktemp("other") / "bundle")
    manifest = json.loads((copy / "onevision.json").read_text(encoding="utf-8"))
    manifest["prompt"]["system"] = "Answer in one word, always, and in capital letters."
    manifest["name"] = "[/red]"
    (copy / "onevision.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


@pytest.fixture(scope="session")
def mine(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: four questions, of which the first, second and fourth are answered rightly."""
    place = tmp_path_factory.mktemp("mine")
    for name in ("a", "b"):
        noise(80, 100, seed=ord(name)).save(place / f"{name}.png")
    encode_video(place / "clip.mp4", numbered_frames(12))
    asked: list[dict[str, Any]] = [
        {"prompt": "What is it?", "image": "a.png", "family": "things"},
        {"prompt": "Which is it?", "images": ["a.png", "b.png"], "family": "things"},
        {"prompt": "What happens?", "video": "clip.mp4", "answer": "nothing"},
        {"prompt": "Who are you?", "id": "who"},
    ]
    with OneVision.load(toy_bundle, threads=1) as model:
        for question in asked:
            images = [place / name for name in question.get("images", [question.get("image")]) if name]
            said = model.generate(question["prompt"], images=images, max_tokens=TOKENS).text
            assert normalize(said)
            question.setdefault("answers", [said]) if "answer" not in question else None
    write(place, *asked)
    return place


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(path: Path) -> list[dict[str, Any]]:
    return [{**line, "ttft_ms": None} for line in lines(path)]


# The suite.


def test_suite(cli, tmp_path):
    status, out, err = cli("--limit", 30, "--json", "-o", "a.jsonl")
    data = json.loads(out)
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert (data["suite"], data["seed"], data["see"], data["max_tokens"]) == ("tiny", 0, "all", TOKENS)
    assert (data["n"], data["errors"], data["accuracy"]) == (30, 0, 0.0)
    assert {name: score["n"] for name, score in data["families"].items()} == dict(
        Counter((list(FAMILIES) * 2)[:30])
    )
    assert list(data["kinds"]) == ["image", "images", "video", "text"]
    assert sum(score["n"] for score in data["kinds"].values()) == 30
    low, high = data["interval"]
    assert low == 0 < high < 0.2
    assert 0.1 < data["chance"] < 0.4
    assert data["ttft_ms"] > 0
    answers = lines(tmp_path / "a.jsonl")
    assert [answer["family"] for answer in answers] == (list(FAMILIES) * 2)[:30]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_table(cli, monkeypatch):
    """Every family is a line, and in 80 columns it stays one."""
    status, out, err = cli("--limit", 26)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 1 + 26 + 1 + 4 + 1 + 2
    assert re.search(r"^colour +1 +0\.0% +0\.0–79\.3 +\d+\.\d% +[\d,]+ ms$", out, re.MULTILINE)
    assert re.search(r"^one image +15 +0\.0% ", out, re.MULTILINE)
    assert re.search(r"^on average \d\.\d\d tiles and \d+ visual tokens per question$", out, re.MULTILINE)
    assert re.search(r"^overall +26 +0\.0% +0\.0–15\.6 ", out, re.MULTILINE)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    narrow = re.sub(r"\x1b\[[0-9;]*m", "", cli("--limit", 26)[1])
    assert len(narrow.splitlines()) == len(out.splitlines())
    assert max(map(len, narrow.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "60")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", cli("--limit", 26)[1]).splitlines()
    assert lines[1].split() == ["family", "questions", "accuracy", "interval", "chance", "token"]
    assert len(lines) == len(out.splitlines()) + 1
    assert max(map(len, lines)) <= 60


def test_families_and_seed(cli):
    one = json.loads(cli("--family", "sum", "--family", "order", "--limit", 3, "--seed", 7, "--json")[1])
    assert {name: score["n"] for name, score in one["families"].items()} == {"sum": 2, "order": 1}
    assert one["seed"] == 7


# A user's questions.


def test_questions(cli, mine, tmp_path):
    status, out, err = cli("--questions", mine, "-o", "a.jsonl", "--json", "--frames", 2)
    data = json.loads(out)
    assert (status, err) == (0, "")
    assert data["questions"] == str(mine)
    assert "suite" not in data
    assert {name: (score["accuracy"], score["n"]) for name, score in data["families"].items()} == {
        "things": (1.0, 2),
        "all": (0.5, 2),
    }
    assert data["accuracy"] == 0.75
    assert {kind: score["accuracy"] for kind, score in data["kinds"].items()} == {
        "image": 1.0,
        "images": 1.0,
        "video": 0.0,
        "text": 1.0,
    }
    assert data["chance"] is None
    answers = lines(tmp_path / "a.jsonl")
    assert [answer["id"] for answer in answers] == ["1", "2", "3", "who"]
    assert [answer["right"] for answer in answers] == [True, True, False, True]
    assert [answer["kind"] for answer in answers] == ["image", "images", "video", "text"]
    only = json.loads(
        cli("--questions", mine / "questions.jsonl", "--family", "all", "--limit", 1, "--json")[1]
    )
    assert {name: score["n"] for name, score in only["families"].items()} == {"all": 1}


def test_what_the_pictures_are_worth(cli, mine):
    blind = json.loads(cli("--questions", mine, "--see", "nothing", "--json")[1])
    assert blind["see"] == "nothing"
    assert blind["families"]["things"]["accuracy"] == 0.0
    assert blind["kinds"]["text"]["accuracy"] == 1.0


def test_budgets(cli, mine, tmp_path):
    """The picture is cut into fewer tiles, the frames of the video are one; the text is what it was."""
    run = ("--questions", mine, "--json")
    usual = json.loads(cli(*run)[1])
    status, out, err = cli(*run, "--max-tiles", 2, "--dedup", 255, "-o", "a.jsonl")
    less = json.loads(out)
    assert (status, err) == (0, "")
    assert (less["max_tiles"], less["detail"], less["dedup"]) == (2, "auto", 255)
    assert (usual["max_tiles"], usual["detail"], usual["dedup"]) == (None, "auto", None)
    assert [answer["tiles"] for answer in lines(tmp_path / "a.jsonl")] == [2, 2, 1, 0]
    assert usual["kinds"]["video"]["usage"]["tiles"] == 12
    assert usual["kinds"]["image"]["usage"]["tiles"] > 2
    assert less["usage"]["image_tokens"] < usual["usage"]["image_tokens"]
    videos = [each["kinds"]["video"]["usage"]["image_tokens"] for each in (less, usual)]
    assert videos[0] == videos[1]
    low = json.loads(cli(*run, "--detail", "low", "--family", "things")[1])
    assert low["kinds"]["image"]["usage"]["tiles"] == 1


def test_a_damaged_picture(cli, tmp_path):
    noise(80, 100).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    write(tmp_path, *({"prompt": "Q", "answer": "x", "image": "a.png"} for _ in range(2)))
    status, out, err = cli("--questions", ".", "--json", "-o", "o.jsonl")
    data = json.loads(out)
    assert (status, data["errors"], data["accuracy"], data["ttft_ms"]) == (0, 2, 0.0, None)
    assert err.startswith("warning: 2 questions could not be asked, and count as wrong; 1: a.png is damaged")
    assert err.count("\n") == 1
    assert all("damaged" in answer["error"] for answer in lines(tmp_path / "o.jsonl"))
    assert re.search(r"^overall +2 +0\.0% +0\.0–65\.8$", cli("--questions", ".")[1], re.MULTILINE)


# Going on.


def test_a_run_that_was_stopped_goes_on(cli, tmp_path):
    run = ("--limit", 8, "-o")
    assert cli(*run, "whole.jsonl")[0] == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:3])
    (tmp_path / "b.jsonl.part").write_bytes(kept + b'{"id": "rela')
    status, out, err = cli(*run, "b.jsonl")
    assert (status, err) == (0, "  resuming after 3 answers in b.jsonl.part\n")
    assert "overall" in out
    assert (tmp_path / "b.jsonl").read_bytes().startswith(kept), "they are not asked again"
    assert without_times(tmp_path / "b.jsonl") == without_times(tmp_path / "whole.jsonl")
    assert not (tmp_path / "b.jsonl.part").exists()


@pytest.mark.parametrize(
    "change", [("--seed", 1), ("--see", "nothing"), ("--max-tiles", 2), ("--family", "sum"), ("--limit", 2)]
)
def test_another_run_does_not_go_on(change, cli, tmp_path):
    cli("--limit", 3, "-o", "a.jsonl")
    (tmp_path / "a.jsonl").rename(tmp_path / "a.jsonl.part")
    before = (tmp_path / "a.jsonl.part").read_bytes()
    status, out, err = cli("--limit", 3, "-o", "a.jsonl", *change)
    check_error(status, out, err, says=r"a\.jsonl\.part is of another run", expected=2)
    assert (tmp_path / "a.jsonl.part").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes at once")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(number: signal.Signals, expected: int, place: Place) -> None:
    words = ("eval", "-m", str(place.bundle), "-n", "2", "--threads", "1", "-o", "a.jsonl")
    process = start(place, *words)
    part = place.cwd / "a.jsonl.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.send_signal(number)
    status, out, err = finish(process)
    assert (status, out) == (expected, "")
    (count,) = re.findall(
        r"^  (\d+) of 2,600 answers are in a\.jsonl\.part; run the same command to resume$", err, re.MULTILINE
    )
    assert len(lines(part)) == int(count)
    assert ("error: interrupted" in err) == (number == signal.SIGINT)
    assert "Traceback" not in err


# Comparing.


def test_against_another_bundle(cli, mine, other_bundle):
    status, out, err = cli("--questions", mine, "--against", other_bundle, "--json")
    against = json.loads(out)["against"]
    assert (status, err) == (0, "")
    assert against["name"] == str(other_bundle)
    assert (against["wins"], against["losses"]) == (3, 0)
    assert (against["agreement"], against["same_text"]) == (0.0, 0.0)
    assert against["difference"] == 0.75
    assert against["other"]["accuracy"] == 0.0
    assert against["mcnemar_p"] == 0.25
    low, high = against["interval"]
    assert low < 0.75 < high
    families = {name: (each["wins"], each["difference"]) for name, each in against["families"].items()}
    assert families == {"things": (2, 1.0), "all": (1, 0.5)}
    assert set(against["other"]["families"]) == {"things", "all"}


def test_against_itself(cli, mine, toy_bundle):
    against = json.loads(cli("--questions", mine, "--against", toy_bundle, "--json")[1])["against"]
    assert (against["wins"], against["losses"], against["difference"]) == (0, 0, 0.0)
    assert (against["agreement"], against["same_text"], against["mcnemar_p"]) == (1.0, 1.0, 1.0)


def test_against_earlier_answers(cli, mine, other_bundle):
    """The same figures as when the other is run now."""
    run = ("--questions", mine, "--json")
    now = json.loads(cli(*run, "--against", other_bundle)[1])["against"]
    assert cli(*run, "-m", other_bundle, "-o", "other.jsonl")[0] == 0
    earlier = json.loads(cli(*run, "--against", "other.jsonl")[1])["against"]
    assert earlier.pop("name") == "other.jsonl"
    assert now.pop("name") == str(other_bundle)
    for data in (now, earlier):
        for score in (data["other"], *data["other"]["kinds"].values(), *data["other"]["families"].values()):
            assert score.pop("ttft_ms") > 0
    assert earlier == now


@pytest.mark.parametrize("see", ["all", "base", "nothing"])
def test_against_the_checkpoint(cli, mine, toy_checkpoint, see):
    """transformers answers what the exact bundle does: pictures, a video file, text."""
    status, out, err = cli("--questions", mine, "--against", toy_checkpoint, "--see", see, "--json")
    against = json.loads(out)["against"]
    assert (status, against["same_text"]) == (0, 1.0)
    assert against["other"]["ttft_ms"] is None
    assert "loading the reference" in err


def test_comparison_on_screen(cli, mine, other_bundle, monkeypatch):
    _, out, _ = cli("--questions", mine, "--against", other_bundle)
    assert f"\nagainst {other_bundle}\n" in out
    assert re.search(r"^things +100\.0% +0\.0% +\+100\.0 +\S+ to \S+ +2 +0 +0\.0%$", out, re.MULTILINE)
    assert re.search(r"^overall +75\.0% +0\.0% +\+75\.0 +\S+ to \S+ +3 +0 +0\.0%$", out, re.MULTILINE)
    assert out.endswith("McNemar's exact test of 3 wins and 0 losses: p = 0.25\n")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    narrow = re.sub(r"\x1b\[[0-9;]*m", "", cli("--limit", 26, "--against", other_bundle)[1]).splitlines()
    table = narrow[narrow.index(next(line for line in narrow if line.startswith("family          this"))) :]
    assert sorted(line.split()[0] for line in table[1:27]) == sorted(FAMILIES)
    assert max(map(len, table)) <= 80


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bar_on_a_terminal(other_bundle: Path) -> None:
    command = [sys.executable, "-m", "onevision", "eval", "-m", str(other_bundle), "--limit", "12", "-n", "2"]
    out, seen = in_terminal([*command, "--threads", "1", "--json"])
    assert re.search(r"\[/red\] .*12/12.* 0% right", seen)
    assert json.loads(out)["n"] == 12


def test_needs_nothing_of_the_export(toy_bundle: Path) -> None:
    words = ("eval", "--limit", "26", "-n", "1", "--threads", "1", "-m", toy_bundle, "--json")
    modules = modules_after(RUN, *words)
    assert modules & (EXPORT | {"av"}) == set()


def test_help_is_quick() -> None:
    modules = modules_after("from onevision.cli import _run; assert _run(['eval', '--help']) == 0")
    assert not modules & {"numpy", "PIL", "rich", "llama_cpp", "onnxruntime"}


# What a user can get wrong. {mine} is a good folder of questions.

Q = {"prompt": "Q", "answer": "x"}


def asked(*questions: str | dict[str, object]) -> Callable[[Place], object]:
    """Write ``q.jsonl``: lines as they are, or changes to a good question; ``...`` takes a key away."""
    rows = []
    for question in questions:
        if isinstance(question, dict):
            changed = {key: value for key, value in (Q | question).items() if value is not ...}
            rows.append(json.dumps(changed))
        else:
            rows.append(question)
    return file("q.jsonl", "\n".join(rows))


def empty_picture(place: Place) -> None:
    asked({"image": "e.png"})(place)
    (place.cwd / "e.png").touch()


def line(name: str, says: str, *questions: object) -> Bad:
    """A file of questions with something wrong in it."""
    return Bad(name, "eval -m {bundle} --questions q.jsonl", says, make=asked(*questions))


def part(data: bytes) -> Callable[[Place], object]:
    return file("a.jsonl.part", data)


KINDS = (
    Bad("no such suite", "eval --suite huge", "unknown suite 'huge'", 2),
    Bad("no such family", "eval --family color", "there is no family 'color'", 2),
    Bad("no such sight", "eval --see half", "--see is 'half', it must be one of all, base, nothing", 2),
    Bad("no such device", "eval --device tpu", "--device is 'tpu', it must be one of auto, cpu, cuda", 2),
    Bad("no questions wanted", "eval --limit 0", "--limit is 0, it must be 1 or more", 2),
    Bad("no tokens wanted", "eval -n 0", "max-tokens is 0", 2),
    Bad("no frames wanted", "eval --questions {mine} --frames 0", "frames is 0", 2),
    Bad("no tiles wanted", "eval --max-tiles 0", "max-tiles is 0", 2),
    Bad("no such detail", "eval --detail most", "--detail is 'most', it must be one of low, auto, high", 2),
    Bad("two budgets", "eval --detail low --max-tiles 3", "exclude each other", 2),
    Bad("no such distance", "eval --dedup 256", "dedup is 256", 2),
    Bad(
        "budgets against a checkpoint",
        "eval --max-tiles 3 --against {checkpoint}",
        "a checkpoint in transformers takes no --max-tiles",
        2,
    ),
    Bad(
        "another prompt format against a checkpoint",
        "eval --template hf --against {checkpoint}",
        "a checkpoint in transformers takes no .* --template",
        2,
    ),
    Bad("frames of a suite", "eval --frames 4", "--frames needs --questions", 2),
    Bad(
        "suite and questions",
        "eval --suite tiny --questions {mine}",
        "--questions cannot be combined with --suite",
        2,
    ),
    Bad(
        "seed and questions",
        "eval --seed 1 --questions {mine}",
        "cannot be combined with --suite or --seed",
        2,
    ),
    Bad("force alone", "eval --force", "--force needs -o", 2),
    Bad("no bundle there", "eval -m no", "no bundle at no"),
    Bad("questions for a bundle", "eval -m {mine}", "is not a bundle"),
    Bad("nowhere to write", "eval -m {bundle} --limit 1 -o no/a.jsonl", "cannot write no.a.jsonl.part", 2),
    Bad("answers into a folder", "eval -o d", "d is a folder", 2, folder("d")),
    Bad("answers that exist", "eval -o a.jsonl", "a.jsonl exists", 2, file("a.jsonl", "precious")),
    Bad(
        "answers of something else",
        "eval -o a.jsonl",
        r"a.jsonl.part, line 1 is not valid",
        make=part(b"x\n"),
    ),
    Bad(
        "answers of another form",
        "eval -o a.jsonl",
        "line 1 is not an answer: id is missing",
        make=part(b"{}\n"),
    ),
    Bad("no questions there", "eval --questions no.jsonl", "cannot read no.jsonl: No such file"),
    Bad("a folder without", "eval --questions d", "cannot read d.questions.jsonl", make=folder("d")),
    Bad("a picture for questions", "eval --questions {photo}", "is not UTF-8 text"),
    Bad("no family of these", "eval --questions {mine} --family sum", "there is no family 'sum'", 2),
    Bad("nothing to compare with", "eval -m {bundle} --against no", "no bundle at no"),
    Bad("a picture to compare with", "eval -m {bundle} --against {photo}", "is not UTF-8 text"),
    Bad(
        "questions to compare with",
        "eval -m {bundle} --questions q.jsonl --against q.jsonl",
        "q.jsonl, line 1 is not an answer: id is missing",
        make=asked({}),
    ),
    line("empty", "q.jsonl has no questions"),
    line("blank", "q.jsonl has no questions", "", "  "),
    line("not JSON", "q.jsonl, line 2 is not valid JSON", {}, "{prompt: Q}"),
    line("over several lines", "q.jsonl, line 1 is not valid JSON", json.dumps([Q], indent=2)),
    line("nested without end", "line 1 is not valid JSON", "[" * 100_000),
    line("a list", "line 1 is not a JSON object", json.dumps([Q])),
    line("no prompt", "line 2: there is no prompt", {}, {"prompt": ...}),
    line("null prompt", "line 1: there is no prompt", {"prompt": None}),
    line("blank prompt", "line 1: prompt is empty", {"prompt": " \n"}),
    line("prompt is a list", "line 1: prompt is not a text", {"prompt": ["Q"]}),
    line("prompt is not Unicode", "line 1: prompt is not valid Unicode", {"prompt": "\ud800"}),
    line("no answer", "line 1: there is no answer", {"answer": ...}),
    line("answers empty", "line 1: there is no answer", {"answer": ..., "answers": []}),
    line("answers a text", "line 1: answers is not a list", {"answer": ..., "answers": "red"}),
    line("answer a truth", "line 1: answer is not a text", {"answer": True}),
    line("answer blank", r"line 1: answers\[1\] is empty", {"answer": ..., "answers": ["a", ""]}),
    line("answer without a word", "the answer '!' has no letter or digit", {"answer": "!"}),
    line("answer and answers", "there are both answer and answers", {"answers": ["x"]}),
    line("letter that is a word", "'red' is not a letter", {"answer": "red", "form": "letter"}),
    line("unknown form", "line 1: form is 'long'", {"form": "long"}),
    line("form a list", r"line 1: form is \['short'\]", {"form": ["short"]}),
    line("unknown key", "line 1: unknown key 'picture'", {"picture": "a.png"}),
    line("the same id", "line 2: the id 'x' is that of line 1", {"id": "x"}, {"id": "x"}),
    line("the id of a line", "line 2: the id '2' is that of line 1", {"id": 2}, {}),
    line("no such picture", "line 1: a.png does not exist", {"image": "a.png"}),
    line("a picture on the web", "is an address, not a file", {"image": "https://example.org/a.png"}),
    line("a folder for a picture", "line 1: . is a folder", {"images": ["."]}),
    line("no such video", "line 1: c.mp4 does not exist", {"video": "c.mp4"}),
    line("image a list", "line 1: image is not a text", {"image": ["a.png"]}),
    line("image and images", "there are both image and images", {"image": "a", "images": ["b"]}),
    Bad("an empty picture", "eval --questions q.jsonl", "e.png is empty", make=empty_picture),
    Bad("picture and video", "eval --questions {mine}/../both.jsonl", "images or a video, not both"),
)


@pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.name) for bad in KINDS])
def test_bad_input(bad: Bad, place: Place, mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad.make(place)
    write(mine.parent, Q | {"image": f"{mine}/a.png", "video": f"{mine}/clip.mp4"}, name="both.jsonl")
    before = listing(place.cwd, place.bundle, mine)
    words = arguments(bad.command.replace("{mine}", str(mine)), place)
    capfd.readouterr()
    status = _run(words)
    check_error(status, *capfd.readouterr(), says=bad.says, expected=bad.status)
    assert listing(place.cwd, place.bundle, mine) == before


def test_videos_without_pyav(cli, mine, monkeypatch):
    monkeypatch.setattr("onevision.eval.questions.find_spec", lambda _: None)
    status, out, err = cli("--questions", mine)
    check_error(status, out, err, says="asks about videos, which need PyAV", expected=2)
