"""``onevision demo``: its inputs, what it measures, its page, and what it does not overwrite."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from onevision import OneVision
from onevision.bundle import GOLDEN, MANIFEST
from onevision.cli import _run
from onevision.errors import UsageError
from onevision.eval.demo import SCENES, Asked, Demo, check, files_of, make_inputs, render
from onevision.eval.suite import build_scene, score
from onevision.proof.golden import load_golden, save_golden
from onevision.proof.verify import Report
from onevision.runtime.video import read_video
from tests.conftest import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onevision.eval.demo import DemoInput

#: Elements without an end.
VOID = {"meta", "img"}


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A demo of the default bundle, as the command line makes it: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("made") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ONEVISION_MODEL", raising=False)
        printed: list[dict[str, Any]] = []
        patch.setattr("onevision.cli.console.print_json", printed.append)
        assert _run(["demo", "-o", str(folder), "--json", "--threads", "1"]) == 0
    json.dumps(printed[0])
    return folder, printed[0]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoInput, ...]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(tiny_bundle, threads=1) as loaded:
        yield loaded


class Page(HTMLParser):
    """What a page shows: pictures, text, and the elements that are open at the end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.elements: Counter[str] = Counter()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# Inputs.


def test_five_inputs_of_the_test_split(inputs: tuple[DemoInput, ...]) -> None:
    kinds = [item.samples[0].kind for item in inputs]
    assert kinds == ["image", "image", "image", "images", "video"]
    assert [len(item.files) for item in inputs] == [1, 1, 1, 2, 1]
    assert {sample.split for item in inputs for sample in item.samples} == {"test"}
    ids = [sample.id for item in inputs for sample in item.samples]
    assert len(set(ids)) == len(ids) == 15


def test_each_is_asked_in_every_form(inputs: tuple[DemoInput, ...]) -> None:
    for item in inputs:
        assert [sample.form for sample in item.samples] == ["short", "letter", "sentence"]
    scene, _, chart, _, _ = inputs
    assert {sample.family for sample in scene.samples} == {"colour", "shape", "position"}
    assert {sample.family for sample in chart.samples} == {"highest_bar", "bar_value"}


def test_expected_answers_are_right_and_others_wrong(inputs: tuple[DemoInput, ...]) -> None:
    for item in inputs:
        for sample in item.samples:
            assert all(score(sample, answer) for answer in sample.answers)
            assert not score(sample, "perhaps")


def test_files_hold_the_very_pixels(tmp_path: Path) -> None:
    for item, (name, number, _) in zip(make_inputs(tmp_path), SCENES, strict=True):
        scene = build_scene(name, "test", 5, number)
        if scene.video is not None:
            video = read_video(tmp_path / item.files[0], frames=99, prepare=np.asarray)
            assert np.array_equal(video.tiles, scene.video)
        for file, image in zip(item.files, scene.images, strict=False):
            with Image.open(tmp_path / file) as written:
                assert np.array_equal(np.asarray(written), image)


def test_inputs_are_the_same_every_time(inputs: tuple[DemoInput, ...], tmp_path: Path) -> None:
    again = make_inputs(tmp_path)
    for one, other in zip(inputs, again, strict=True):
        assert (one.title, one.caption, one.files) == (other.title, other.caption, other.files)
        assert [sample.prompt for sample in one.samples] == [sample.prompt for sample in other.samples]


# What it prints and writes.


def test_json(made: tuple[Path, dict[str, Any]], tiny_bundle: Path, inputs: tuple[DemoInput, ...]) -> None:
    folder, printed = made
    assert (printed["page"], printed["bundle"]) == (str(folder / "index.html"), str(tiny_bundle))
    assert printed["verify"]["passed"]
    assert [case["name"] for case in printed["verify"]["cases"]] == ["image", "images", "video", "text"]
    samples = {sample.id: (item, sample) for item in inputs for sample in item.samples}
    assert [answer["id"] for answer in printed["answers"]] == list(samples)
    for answer in printed["answers"]:
        item, sample = samples[answer["id"]]
        assert answer["prompt"] == sample.prompt
        assert answer["expected"] == list(sample.answers)
        assert answer["files"] == list(item.files)
        assert answer["right"] == score(sample, answer["text"])
        assert 0 < answer["timings_ms"]["ttft"] <= answer["timings_ms"]["total"]
    assert printed["right"] == sum(answer["right"] for answer in printed["answers"])
    assert printed["n"] == 15
    tiles = [answer["usage"]["tiles"] for answer in printed["answers"][::3]]
    assert tiles[3:] == [2, 8], "a square each of two pictures, a tile each of eight frames"
    assert max(tiles[:3]) > 5, "small print takes a grid of tiles"


def test_answers_are_the_models(
    made: tuple[Path, dict[str, Any]], model: OneVision, inputs: tuple[DemoInput, ...]
) -> None:
    """The same as for the pixels that the files were made of."""
    said = {answer["id"]: answer["text"] for answer in made[1]["answers"]}
    for item in inputs:
        sample = item.samples[0]
        answer = model.generate(sample.prompt, images=sample.images, video=sample.video, max_tokens=48)
        assert said[sample.id] == answer.text


def test_page(made: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = made
    html = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert page.elements["article"] == 5
    assert page.elements["li"] == page.elements["details"] == 15
    for answer in printed["answers"]:
        assert f"{'✓' if answer['right'] else '✗'} {answer['text']}" in page.text
        assert answer["expected"][0] in page.text
        assert all(line in page.text for line in answer["prompt"].split("\n"))
        assert f"{answer['timings_ms']['ttft']:.0f} ms" in page.text
        tiles, tokens = answer["usage"]["tiles"], answer["usage"]["image_tokens"]
        assert f"{tiles} tiles, {tokens} visual tokens" in page.text
    assert f"15 questions about them, {printed['right']} are answered correctly" in page.text
    assert "✓ the bundle computes what the reference does" in page.text


def test_page_needs_nothing_from_elsewhere(made: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = made
    html = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.elements.keys() & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?:|url\(|@import", html)
    files = list(dict.fromkeys(file for answer in printed["answers"] for file in answer["files"]))
    assert {path.name for path in folder.iterdir()} == {"index.html", *files}
    for image, file in zip(page.images, files, strict=True):
        kind, _, data = str(image["src"]).partition(";base64,")
        assert kind == ("data:image/apng" if file.endswith("apng") else "data:image/png")
        assert base64.b64decode(data) == (folder / file).read_bytes()
        with Image.open(folder / file) as opened:
            width, height = opened.size
        assert int(str(image["width"])) % width == int(str(image["height"])) % height == 0
        assert image["alt"]


@pytest.mark.parametrize("at", [1, 9, 14], ids=["picture", "two pictures", "video"])
def test_commands_ask_again(
    at: int,
    made: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, printed = made
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    commands = re.findall(r'^Commandonevision (run "(?:[^"\\]|\\.)*" .*)$', page.text, re.MULTILINE)
    assert len(commands) == 15
    monkeypatch.delenv("ONEVISION_MODEL", raising=False)
    monkeypatch.chdir(folder)
    capfd.readouterr()
    assert _run([*shlex.split(commands[at]), "--threads", "1"]) == 0
    assert capfd.readouterr() == (printed["answers"][at]["text"] + "\n", "")


def test_what_a_model_says_is_text(model: OneVision, inputs: tuple[DemoInput, ...], tmp_path: Path) -> None:
    make_inputs(tmp_path)
    item, sample = inputs[0], inputs[0].samples[0]
    answer = replace(model.generate("Hi", max_tokens=1), text='</dd><script>alert("&amp;")</script>')
    demo = Demo(Report(()), ((item, (Asked(sample, "run '<b>'", answer, right=False),)),))
    page = Page(render(demo, {"model": "<i>tiny</i>"}, tmp_path))
    assert page.open == []
    assert not page.elements.keys() & {"script", "b", "i"}
    assert f"✗ {answer.text}" in page.text
    assert "run '<b>'" in page.text
    assert "<i>tiny</i>" in page.text


# When it fails, and what it leaves alone.


def test_a_bundle_that_fails(
    made: tuple[Path, dict[str, Any]],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The page is written all the same, in place of an earlier one, and says it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made[0], "onevision-demo")
    bad = shutil.copytree(tiny_bundle, "bad bundle")
    image, *others = load_golden(Path(bad) / "golden.npz")
    assert image.logits is not None
    save_golden(Path(bad) / "golden.npz", [replace(image, logits=image.logits + np.float32(1)), *others])
    replace_file(Path(bad), "golden.npz", (Path(bad) / "golden.npz").read_bytes())
    monkeypatch.setattr("onevision.eval.demo.MAX_TOKENS", 2)
    capfd.readouterr()
    assert _run(["demo", "-m", "bad bundle", "--threads", "1"]) == 1
    out, err = capfd.readouterr()
    assert out == f"{Path('onevision-demo') / 'index.html'}\n"
    assert re.search(r"^✓ asking about 5 inputs [0-9.]+ s\n  \d+ of 15 answers are right$", err, re.MULTILINE)
    assert err.endswith("warning: the bundle does not match the reference\n")
    page = Page(Path(out.strip()).read_text(encoding="utf-8"))
    assert "✗ the bundle does not compute what the reference does" in page.text
    assert f"-n 2 -m '{tmp_path.resolve() / 'bad bundle'}'" in page.text
    assert {path.name for path in tmp_path.iterdir()} == {"onevision-demo", "bad bundle"}


def test_only_its_own_files_are_replaced(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    check(tmp_path / "nothing")
    check(tmp_path)
    own = shutil.copytree(made[0], tmp_path / "own")
    check(own)
    (own / "diary.txt").touch()
    with pytest.raises(UsageError, match=r"has files that are no demo's, such as diary\.txt"):
        check(own)
    (own / "diary.txt").unlink()
    (own / "index.html").write_bytes(b"<title>onevision demo</title>\xff")
    assert files_of(own / "index.html") == set()
    with pytest.raises(UsageError, match=r"such as bars\.png"):
        check(own)


def test_without_pyav(
    made: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The other inputs are asked about, and nothing is stored outside of the demo's folder."""
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path / "cache"))
    assert _run(["demo", "-o", str(tmp_path / "demo"), "--threads", "1", "--json"]) == 0
    out, err = capfd.readouterr()
    assert "the video is left out: it needs pip install 'onevision[video]'\n" in err
    ids = [answer["id"] for answer in json.loads(out)["answers"]]
    assert ids == [answer["id"] for answer in made[1]["answers"] if "moving" not in answer["id"]]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_an_unproven_bundle(tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / GOLDEN).unlink()
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    del manifest["files"][GOLDEN]
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    words = ["demo", "-o", str(tmp_path / "demo"), "-m", str(bundle), "--threads", "1", "--json"]
    assert _run(words) == 0
    assert json.loads(capfd.readouterr().out)["verify"] == {"passed": None, "cases": []}
    assert "unproven" in (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
