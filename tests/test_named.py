"""Bundles by name: found in a folder, fetched from a local Hub, or exported once, into the cache."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import onevision
from onevision.bundle import BACKBONE, MANIFEST, NAMES, PREFILL, VISION, open_bundle
from onevision.errors import BundleError, DownloadError, ExportError, OneVisionError, QuantError, UsageError
from onevision.models import TINY_BUNDLE
from onevision.named import PUBLISHED, named_bundle, stored_bundles
from tests.conftest import NoProgress
from tests.export.hub_server import Hub, Repo
from tests.test_cli import cli, parsed

if TYPE_CHECKING:
    from tests.test_cli import Cli

__all__ = ["cli"]  # a fixture
HF = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
SI = "llava-hf/llava-onevision-qwen2-7b-si-hf"
CHECKPOINT, BUNDLE = "someone/a-checkpoint", "someone/a-bundle"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an empty working folder."""
    monkeypatch.setenv("ONEVISION_CACHE", str(tmp_path / "ours"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "ours"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def filled(hub: Hub, toy_checkpoint: Path, toy_bundle: Path, place: Path) -> Hub:
    """A Hub whose models are toys."""
    for name in (HF, SI, CHECKPOINT):
        hub.repos[name] = Repo(contents(toy_checkpoint))
    hub.repos[BUNDLE] = Repo(contents(toy_bundle) | {"notes.txt": b"no part of it"})
    return hub


# Sizes and checkpoints.


def test_a_size_is_exported_once(filled: Hub, place: Path) -> None:
    progress = NoProgress()
    folder = named_bundle("0.5b", progress)
    assert progress.notes[0] == f"0.5b is exported once, into {place / 'models'}"
    bundle = open_bundle(folder, check=True)
    files, manifest = bundle.manifest.files, bundle.manifest
    assert [files[name].precision for name in (VISION, BACKBONE, PREFILL)] == ["fp16", "q8_0", "int8"]
    assert (manifest.size, manifest.variant, manifest.source.repo) == ("0.5b", "ov", HF)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]

    asked, progress = len(filled.log), NoProgress()
    for name in ("0.5b", "0.5B", "0.5b-ov", HF):
        assert named_bundle(name, progress) == folder
    assert (progress.steps, progress.notes, len(filled.log)) == ([], [], asked)


@pytest.mark.parametrize(
    ("name", "repo", "size", "variant"),
    [("7b-si", SI, "7b", "si"), (SI, SI, "7b", "si"), (CHECKPOINT, CHECKPOINT, None, None)],
)
def test_other_checkpoints(filled: Hub, name: str, repo: str, size: str | None, variant: str | None) -> None:
    manifest = open_bundle(named_bundle(name, NoProgress())).manifest
    assert (manifest.size, manifest.variant, manifest.source.repo) == (size, variant, repo)


def test_every_published_model_has_a_name() -> None:
    assert {"0.5b", "0.5b-si", "7b", "7b-si", "72b", "72b-si"} <= PUBLISHED.keys()


def test_what_is_exported_needs_neither_the_hub_nor_the_extra(
    filled: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0.5b", CHECKPOINT):
        folder = named_bundle(name, NoProgress())
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "huggingface_hub", None)
            assert named_bundle(name, NoProgress()) == folder
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("7b-si", "someone/else"):
        with pytest.raises(UsageError, match=f"{name} needs onnx") as caught:
            named_bundle(name)
        assert caught.value.hint == "pip install 'onevision[export]', or name a bundle: -m FOLDER"


def test_an_interrupt_leaves_nothing_but_what_has_arrived(
    filled: Hub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(NoProgress):
        def step(self, name: str) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        named_bundle("0.5b", Stopping())
    assert [path.suffix for path in (place / "models").iterdir()] == [".lock"]
    weights = rf"GET /{HF}/resolve/.*safetensors"
    assert len(filled.requests(weights)) == 1
    open_bundle(named_bundle("0.5b", NoProgress()))
    assert len(filled.requests(weights)) == 1, "it is not downloaded again"


def test_a_download_that_is_cut_goes_on(filled: Hub) -> None:
    filled.fault(rf"GET /{HF}/.*\.safetensors", cut_after=4096, times=1)
    open_bundle(named_bundle("0.5b", NoProgress()))
    assert len(filled.requests(rf"GET /{HF}/resolve/.*safetensors")) == 2


def test_a_small_disk(filled: Hub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onevision.quant.search._needed_bytes", lambda *_, **__: 1 << 60)
    with pytest.raises(ExportError, match="not enough disk space"):
        named_bundle("0.5b", NoProgress())
    assert [path.suffix for path in (place / "models").iterdir()] == [".lock"]


TWICE = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from onevision import extras
extras.EXTRAS["proof"] = ("no_torch",)  # quicker
from onevision.named import named_bundle
print(named_bundle("0.5b"))
"""


def test_of_two_processes_one_exports_it(filled: Hub, place: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": filled.url, "HF_HOME": str(tmp_path / "home")}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", TWICE]
    both = [subprocess.Popen(command, env=environment, **streams) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] == f"{named_bundle('0.5b')}\n"
    assert sorted("is exported once" in err for _, err in said) == [False, True]
    assert sorted("waiting for another process" in err for _, err in said) == [False, True]


# Bundles on the Hub.


def test_a_ready_bundle_is_fetched_once(filled: Hub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = named_bundle(BUNDLE, NoProgress())
    open_bundle(folder, check=True)
    assert {path.name for path in folder.iterdir()} <= NAMES, "nothing else is downloaded"
    assert not (place / "models").exists(), "the Hub's own cache keeps it"
    asked = len(filled.log)
    assert named_bundle(BUNDLE) == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert named_bundle(BUNDLE) == folder
    assert len(filled.log) == asked
    with onevision.load(BUNDLE, threads=1) as model:
        assert model.generate("Hi", max_tokens=1).text is not None


def test_a_ready_bundle_that_arrives_damaged(filled: Hub) -> None:
    filled.fault(rf"GET /{BUNDLE}/.*\.gguf", flip=True, times=1)
    with pytest.raises(DownloadError, match=f"{BACKBONE} of {BUNDLE} is damaged") as caught:
        named_bundle(BUNDLE)
    assert "run the same command again" in str(caught.value.hint)
    open_bundle(named_bundle(BUNDLE), check=True)


def test_a_ready_bundle_that_stopped_half_way(filled: Hub) -> None:
    fault = filled.fault(rf"GET /{BUNDLE}/.*\.gguf", status=403)
    with pytest.raises(DownloadError, match="refuses access"):
        named_bundle(BUNDLE)
    filled.faults.remove(fault)
    open_bundle(named_bundle(BUNDLE), check=True)


def test_a_token_is_used(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.repos[BUNDLE].token = "secret"
    with pytest.raises(DownloadError, match="is not on the Hub, or is private"):
        named_bundle(BUNDLE)
    monkeypatch.setenv("HF_TOKEN", "secret")
    open_bundle(named_bundle(BUNDLE))


def test_offline(filled: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("0.5b", BUNDLE, CHECKPOINT):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
            named_bundle(name, NoProgress())
    assert filled.log == []


# What a name stands for.


def test_a_folder_comes_first(filled: Hub, toy_bundle: Path) -> None:
    for name in ("0.5b", "tiny", BUNDLE):
        shutil.copytree(toy_bundle, name)
        assert named_bundle(name) == Path(name)
    assert filled.log == []
    assert named_bundle(toy_bundle) == toy_bundle


def test_the_tiny_model(place: Path) -> None:
    assert named_bundle(None) == named_bundle("tiny") == TINY_BUNDLE
    Path("tiny").mkdir()
    assert named_bundle(None) == TINY_BUNDLE


@pytest.mark.parametrize(
    ("name", "kind", "says", "hint"),
    [
        ("0.6b", UsageError, "there is no size '0.6b'", "did you mean 0.5b"),
        ("7b-xl", UsageError, "there is no size '7b-xl'", "did you mean 7b"),
        ("99b", UsageError, "there is no size '99b'", "a size \\(0.5b, "),
        ("lava", BundleError, "no bundle at lava: there is no such folder", "did you mean llava\\?"),
        ("models/lava", BundleError, "no bundle at models/lava", "did you mean models/llava\\?"),
        ("./0.5b", BundleError, "no bundle at ./0.5b", "did you mean"),
        ("a/b/c", BundleError, "no bundle at a/b/c", "a bundle's folder, a size"),
        ("", BundleError, "no bundle at", "a bundle's folder, a size"),
        ("x" * 5000, BundleError, "no bundle at xxx", "a bundle's folder, a size"),
        ("a\0b", BundleError, "no bundle at", "a bundle's folder, a size"),
        (
            "someone/nothing",
            DownloadError,
            "there is no folder someone/nothing, and .* not on the Hub",
            "name",
        ),
    ],
)
def test_names_of_nothing(
    filled: Hub, toy_bundle: Path, name: str, kind: type[OneVisionError], says: str, hint: str
) -> None:
    shutil.copytree(toy_bundle, "llava")
    shutil.copytree(toy_bundle, "models/llava")
    with pytest.raises(kind, match=says) as caught:
        named_bundle(name)
    assert re.search(hint, str(caught.value.hint))
    assert bool(filled.log) == (name == "someone/nothing")


# The facade and the commands.


def test_all_functions_take_names(filled: Hub, photo: Path) -> None:
    name = BUNDLE
    assert onevision.verify(name, threads=1).passed
    assert onevision.plan([photo], bundle=name).model == "checkpoint"
    assert onevision.evaluate(name, limit=1, threads=1).bundle.folder == named_bundle(name)
    assert onevision.evaluate(bundle=name, limit=1, threads=1).report.overall.n == 1
    with pytest.raises(QuantError, match="is quantized already"):
        onevision.quantize("0.5b", Path("out"))


def test_commands_take_names(filled: Hub, place: Path, cli: Cli, photo: Path) -> None:
    here = ("-m", BUNDLE)
    assert cli("run", "Hi", "-i", photo, "-n", 1, *here)[0] == 0
    assert cli("verify", *here, "--threads", 1)[0] == 0
    assert parsed(cli("plan", photo, *here, "--json")[1])["usage"]["tiles"] > 0
    assert parsed(cli("eval", "--limit", 1, *here, "--json")[1])["bundle"] == str(named_bundle(BUNDLE))
    assert parsed(cli("inspect", BUNDLE, "--json")[1])["bundle"] == str(named_bundle(BUNDLE))
    status, _, err = cli("run", "Hi", "-n", 1, "-m", "0.5b")
    assert status == 0
    assert "✓ backbone in q8_0" in err
    status, out, err = cli("quant", "apply", "0.5b", "small")
    assert (status, out) == (1, "")
    assert "is quantized already" in err


def test_list_and_remove(
    filled: Hub, place: Path, cli: Cli, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = cli("list")
    assert (status, out) == (0, "")
    assert "-m 0.5b" in err
    folder = named_bundle("0.5b", NoProgress())
    ready = named_bundle(BUNDLE)
    damaged = shutil.copytree(toy_bundle, place / "synthetic-0.5b")
    (damaged / BACKBONE).unlink()
    rows = {row["name"]: row for row in parsed(cli("list", "--json")[1])["bundles"]}
    assert rows.keys() == {"0.5b", BUNDLE, "synthetic-0.5b"}
    assert rows["0.5b"] == {
        "name": "0.5b",
        "folder": str(folder),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "damaged": False,
        "precisions": {"vision": "fp16", "backbone": "q8_0", "prefill": "int8"},
        "verify": True,
        "source": {"repo": HF, "revision": "c" * 40},
    }
    assert rows[BUNDLE]["folder"] == str(ready)
    assert rows["synthetic-0.5b"]["damaged"]
    status, out, err = cli("list")
    assert (status, err) == (0, "")
    assert re.search(rf"^0\.5b +\S+ MB +fp16 +q8_0 +int8 +passed +{HF}$", out, re.MULTILINE)
    assert "DAMAGED" in out

    status, out, err = cli("rm", "0.5b")
    assert (status, out) == (2, "")
    assert "onevision rm 0.5b --yes" in err
    for name in ("0.5b-ov", BUNDLE, "synthetic-0.5b"):
        assert cli("rm", name, "--yes")[0] == 0
    assert list(stored_bundles()) == []
    assert not folder.exists()
    assert not (ready / MANIFEST).exists()
    status, _, err = cli("rm", "0.5b", "--yes")
    assert status == 1
    assert "the cache has no bundle" in err


class Typed(io.StringIO):
    """An answer on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 130)])
def test_removing_asks_on_a_terminal(
    filled: Hub, cli: Cli, answer: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = named_bundle(BUNDLE)
    monkeypatch.setattr("sys.stdin", Typed(f"{answer}\n"))
    done, out, err = cli("rm", BUNDLE)
    assert (done, (folder / MANIFEST).exists()) == (status, status != 0)
    assert f"remove {folder}, " in err
    assert ("removed" in out) == (status == 0)


# The tiny model and photos.


def test_whoever_asks_the_tiny_model_about_a_photo_is_told(cli: Cli, photo: Path, toy_bundle: Path) -> None:
    words = ("run", "Hi", "-n", 1)
    status, _, err = cli(*words, "-i", photo, "-i", photo)
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("note: this is the tiny demo model, which knows drawings alone")
    assert "-m 0.5b" in err
    for quiet in ((), ("-i", photo, "--quiet"), ("-i", photo, "-m", "tiny"), ("-i", photo, "-m", toy_bundle)):
        assert cli(*words, *quiet)[2] == ""


def test_the_demos_images_are_no_photos(cli: Cli) -> None:
    status, _, err = cli("demo", "--threads", 1)
    assert status == 0
    assert err.splitlines()[-1].startswith("next: onevision run")
    image = next(Path("onevision-demo").glob("*.png"))
    assert cli("run", "Hi", "-n", 1, "-i", image)[2] == ""
