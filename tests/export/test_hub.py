"""Finding and fetching checkpoints with the real huggingface_hub client, from a Hub on the loopback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from onevision.errors import (
    CheckpointError,
    DownloadError,
    OneVisionError,
    SourceError,
    UnsupportedCheckpointError,
    UsageError,
)
from onevision.export import hub_errors
from onevision.export.checkpoint import Checkpoint
from onevision.export.config import read_config
from onevision.export.hub import FetchedCheckpoint, Source, fetch, resolve
from onevision.models import SHIPPED
from onevision.models.shapes import repositories
from tests.export.conftest import as_lmms_lab
from tests.export.hub_server import Hub, Repo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HF = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
LMMS = "lmms-lab/llava-onevision-qwen2-0.5b-ov"
ID = "someone/a-checkpoint"
COMMIT = "c" * 40
WEIGHTS = r"GET .*/model\.safetensors"


@pytest.fixture
def files(tiny: Path) -> dict[str, bytes]:
    """What a repository holds: a checkpoint, and much that an export does not need."""
    unneeded = (
        "README.md",
        "pytorch_model.bin",
        "training_args.bin",
        "onnx/model.onnx",
        "trainer_state.json",
    )
    wanted = {path.name: path.read_bytes() for path in tiny.iterdir()}
    tokenizer = dict.fromkeys(("tokenizer.json", "vocab.json", "merges.txt", "chat_template.jinja"), b"{}")
    return wanted | tokenizer | dict.fromkeys(unneeded, b"unneeded")


def get(source: str | Source, *, told: list[str] | None = None) -> FetchedCheckpoint:
    found = resolve(source) if isinstance(source, str) else source
    return fetch(found, progress=False, notify=[].append if told is None else told.append)


def fails(source: str | Source, match: str, kind: type[OneVisionError] = DownloadError) -> OneVisionError:
    with pytest.raises(kind, match=match) as caught:
        get(source)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def partial_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.incomplete"))


# resolve


def test_published() -> None:
    assert [repositories(size, variant) for size in ("0.5b", "7b", "72b") for variant in ("si", "ov")] == [
        ("llava-hf/llava-onevision-qwen2-0.5b-si-hf", "lmms-lab/llava-onevision-qwen2-0.5b-si"),
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "lmms-lab/llava-onevision-qwen2-0.5b-ov"),
        ("llava-hf/llava-onevision-qwen2-7b-si-hf", "lmms-lab/llava-onevision-qwen2-7b-si"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "lmms-lab/llava-onevision-qwen2-7b-ov"),
        ("llava-hf/llava-onevision-qwen2-72b-si-hf", "lmms-lab/llava-onevision-qwen2-72b-si"),
        ("llava-hf/llava-onevision-qwen2-72b-ov-hf", "lmms-lab/llava-onevision-qwen2-72b-ov-sft"),
    ]
    assert [
        repositories(size, variant) for size in ("0.5b", "7b", "72b") for variant in ("chat", "video")
    ] == [
        (),
        (),
        ("llava-hf/llava-onevision-qwen2-7b-ov-chat-hf", "lmms-lab/llava-onevision-qwen2-7b-ov-chat"),
        ("lmms-lab/LLaVA-Video-7B-Qwen2",),
        ("llava-hf/llava-onevision-qwen2-72b-ov-chat-hf", "lmms-lab/llava-onevision-qwen2-72b-ov-chat"),
        ("lmms-lab/LLaVA-Video-72B-Qwen2",),
    ]


def test_resolve_size() -> None:
    assert resolve(size="0.5b") == Source(None, (HF, LMMS))
    assert resolve(size="72b", variant="ov").repos[1] == "lmms-lab/llava-onevision-qwen2-72b-ov-sft"
    assert resolve(size="7b", variant="si").repos[0] == "llava-hf/llava-onevision-qwen2-7b-si-hf"
    assert resolve(size="0.5b", revision="abc") == Source(None, (HF,), "abc"), (
        "a revision is one repository's"
    )


def test_resolve_shipped() -> None:
    tiny = resolve(size="tiny")
    assert tiny == Source(SHIPPED["tiny", "ov"])
    assert tiny.folder is not None
    assert read_config(tiny.folder).frames == 8
    assert get(tiny) == FetchedCheckpoint(tiny.folder, None, None)


def test_resolve_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(ID, revision="v1") == Source(None, (ID,), "v1")
    (tmp_path / ID).mkdir(parents=True)
    folder = resolve(ID)
    assert folder.folder is not None, "a folder goes before the Hub"
    assert folder.folder.samefile(tmp_path / ID)
    assert get(folder) == FetchedCheckpoint(folder.folder, None, None)
    assert resolve(str(tmp_path)) == Source(tmp_path)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({}, UsageError, "by its size or by its source"),
        ({"source": ID, "size": "7b"}, UsageError, "not both"),
        ({"size": "3b"}, UsageError, "no size 3b"),
        ({"size": "tiny", "variant": "si"}, UsageError, "no size tiny, variant si"),
        ({"size": "tiny", "revision": "main"}, UsageError, "only the Hub has revisions"),
        ({"size": "0.5b", "variant": "chat"}, UsageError, "variant chat"),
        ({"size": "7b", "variant": "draft"}, UsageError, "variant draft"),
        ({"source": ".", "revision": "main"}, UsageError, "only the Hub has revisions"),
        ({"source": "./nowhere"}, SourceError, "no folder ./nowhere"),
        ({"source": "../nowhere"}, SourceError, "no folder"),
        ({"source": "/no/where"}, SourceError, "no folder /no/where"),
        ({"source": "~/no-such-folder"}, SourceError, "no folder"),
        ({"source": "~no-such-user/folder"}, SourceError, "no-such-user"),
        ({"source": "a" * 5000}, SourceError, "aaaa"),
        ({"source": "C:\\models\\nowhere"}, SourceError, "no folder"),
        ({"source": "C:/nowhere"}, SourceError, "no folder"),
        ({"source": "models\\nowhere"}, SourceError, "no folder"),
        ({"source": "a/b/c"}, SourceError, "no folder a/b/c"),
        ({"source": "owner/name/"}, SourceError, "no folder"),
        ({"source": "nowhere"}, SourceError, "no folder nowhere"),
        ({"source": ""}, UsageError, "by its size or by its source"),
        ({"source": "owner/na me"}, SourceError, "neither a folder nor a Hub id"),
        ({"source": "owner/--name"}, SourceError, "neither a folder nor a Hub id"),
        ({"source": "https://huggingface.co/owner/name"}, SourceError, "no folder"),
        ({"source": "file.safetensors"}, SourceError, "is a file"),
    ],
)
def test_resolve_refuses(
    options: dict[str, str],
    kind: type[OneVisionError],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.safetensors").touch()
    with pytest.raises(kind, match=told):
        resolve(**options)


# fetch: what arrives


def test_first_download_then_cache(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    told: list[str] = []
    first = get(ID, told=told)
    assert (first.repo, first.revision, told) == (ID, COMMIT, [])
    names = {path.relative_to(first.folder).as_posix() for path in first.folder.rglob("*") if path.is_file()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    }
    with Checkpoint.open(first.folder) as checkpoint:
        assert checkpoint.tensor("model.image_newline").shape == (64,)
    hub.log.clear()
    assert get(ID) == first
    assert hub.requests("/resolve/") == [], "nothing is fetched twice"


def test_shards(hub: Hub, files: dict[str, bytes], tiny: Path) -> None:
    from safetensors.torch import load_file, save

    tensors = load_file(tiny / "model.safetensors")
    del files["model.safetensors"]
    weight_map = {}
    for part in (1, 2):
        held = {name: tensors[name].clone() for name in sorted(tensors)[part - 1 :: 2]}
        files[f"model-0000{part}-of-00002.safetensors"] = save(held)
        weight_map |= dict.fromkeys(held, f"model-0000{part}-of-00002.safetensors")
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.repos[ID] = Repo(files)
    Checkpoint.open(get(ID).folder)


def test_tower_folder_comes_along(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files | {"tower/config.json": b"{}", "tower/model.safetensors": b"unneeded"})
    folder = get(ID).folder
    assert [path.name for path in (folder / "tower").iterdir()] == ["config.json"]


def test_a_tower_that_is_named_goes_before_the_config(hub: Hub, tiny: Path) -> None:
    """The config is checked before the weights come."""
    as_lmms_lab(tiny)
    tower = shutil.move(tiny / "tower", tiny.parent / "tower")
    held = {path.name: path.read_bytes() for path in tiny.iterdir()} | {"tokenizer.json": b"{}"}
    hub.repos[ID] = Repo(held)
    fails(ID, "mm_vision_tower", UnsupportedCheckpointError)
    assert hub.requests(WEIGHTS) == []
    found = fetch(resolve(ID), progress=False, notify=[].append, vision_tower=str(tower))
    assert found.vision_tower == str(tower)
    assert (found.folder / "model.safetensors").is_file()


def test_revisions(hub: Hub, files: dict[str, bytes]) -> None:
    old = Repo({**files, "merges.txt": b"old"}, commit="a" * 40, refs=("v1", "refs/pr/2"))
    hub.repos[ID] = Repo(files, history=(old,))
    assert get(ID).revision == COMMIT
    for name in ("v1", "a" * 40, "refs/pr/2"):
        fetched = get(resolve(ID, revision=name))
        assert fetched.revision == "a" * 40
        assert (fetched.folder / "merges.txt").read_bytes() == b"old"
    error = fails(resolve(ID, revision="v9"), "has no revision v9")
    assert "commit" in str(error.hint)


# fetch: the Hub falls silent


def test_offline(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.repos[ID] = Repo(files, refs=("main", "v1"))
    fetched = [get(ID), get(resolve(ID, revision="v1"))]
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [get(ID), get(resolve(ID, revision="v1")), get(resolve(ID, revision=COMMIT))] == [
        *fetched,
        fetched[0],
    ]
    fails(resolve(ID, revision="v2"), "HF_HUB_OFFLINE is set and someone/a-checkpoint is not in the cache")
    error = fails("someone/else", "HF_HUB_OFFLINE is set and someone/else is not in the cache")
    assert "unset it" in str(error.hint)
    fails(resolve(size="0.5b"), f"HF_HUB_OFFLINE is set and {HF} is not in the cache")
    assert hub.log == []


def test_offline_takes_the_other_family(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.repos[LMMS] = Repo(files)
    get(LMMS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(resolve(size="0.5b")).repo == LMMS


def test_offline_with_a_part_of_it(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.repos[ID] = Repo(files)
    hub.fault(WEIGHTS, cut_after=1000)
    fails(ID, "connection")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails(ID, "not in the cache, or not wholly")


def test_no_network(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError

    hub.repos[ID] = Repo(files)
    fetched = get(ID)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    told: list[str] = []
    assert get(ID, told=told) == fetched
    name = "ConnectionError" if issubclass(HTTPError, OSError) else "ConnectError"  # of requests, httpx
    failure = f"the connection to {dead} failed ({name})"
    assert told == [f"{failure}; using {ID} as it is in the cache, commit {COMMIT}"]
    error = fails("someone/else", f"the connection to {dead} failed")
    assert "check the network" in str(error.hint)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_error(status: int, hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    fault = hub.fault("GET /api", status=status)
    fails(ID, f"the Hub answered HTTP {status} for {ID}")
    fault.times = 0
    fetched = get(ID)
    fault.times = 1000
    told: list[str] = []
    assert get(ID, told=told) == fetched
    assert f"HTTP {status}" in told[0]


def test_server_error_for_the_weights(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits 23 s in all
    hub.repos[ID] = Repo(files)
    hub.fault(r"HEAD .*/model\.safetensors", status=503)
    fails(ID, "the Hub answered HTTP 503")


def test_a_page_instead_of_an_answer(hub: Hub) -> None:
    hub.fault("GET /api", status=200, body=b"<html>Welcome to the hotel</html>")
    fails(ID, "the connection to .* failed")


# fetch: interruptions


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client writes what has arrived in chunks of 10 MB; the files here are smaller."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)


@pytest.mark.usefixtures("small_chunks")
def test_a_cut_is_resumed(hub: Hub, files: dict[str, bytes], tiny: Path) -> None:
    hub.repos[ID] = Repo(files)
    hub.fault(WEIGHTS, cut_after=100_000, times=1)
    folder = get(ID).folder
    first, second = hub.requests(WEIGHTS)
    assert first.endswith(".safetensors")
    start = int(second.rpartition("bytes=")[2].rstrip("-"))
    assert 90_000 < start <= 100_000, "only the rest is asked for"
    assert (folder / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("small_chunks")
def test_cuts_without_end_and_a_later_run(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    import huggingface_hub

    if int(huggingface_hub.__version__.partition(".")[0]) > 0:
        pytest.skip("since 1.0 the client goes on by itself for as long as something arrives")
    hub.repos[ID] = Repo(files)
    fault = hub.fault(WEIGHTS, cut_after=50_000)
    error = fails(ID, r"the connection to .* failed \(ChunkedEncodingError\)")
    assert "run the same command again" in str(error.hint)
    assert fault.seen == 5
    (kept,) = partial_files(tmp_path)
    size = kept.stat().st_size
    assert size > 200_000, "each of the five brought something"
    hub.log.clear()
    fault.times = 0
    Checkpoint.open(get(ID).folder)
    assert hub.requests(WEIGHTS)[0].endswith(f"bytes={size}-")
    assert partial_files(tmp_path) == []


def test_wrong_length(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    hub.fault(WEIGHTS, shorten=10, times=1)
    fails(ID, "the connection to .* failed")
    Checkpoint.open(get(ID).folder)


def test_corrupt_contents(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.repos[ID] = Repo(files)
    hub.fault(WEIGHTS, flip=True, times=1)
    error = fails(ID, r"model\.safetensors of someone/a-checkpoint arrived damaged")
    assert "run the same command again" in str(error.hint)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert max(sizes) < 10_000, "the bad file is gone"
    Checkpoint.open(get(ID).folder)


@pytest.mark.parametrize("fits", ["GET /api", r"HEAD .*/model\.safetensors", WEIGHTS])
def test_rate_limit_that_ends(fits: str, hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    fault = hub.fault(fits, status=429, headers={"Retry-After": "0"}, times=3)
    assert get(ID).revision == COMMIT
    assert fault.seen == 3


@pytest.mark.parametrize(
    "headers", [{}, {"Retry-After": "0"}, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}]
)
def test_rate_limit_without_end(headers: dict[str, str], hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    fault = hub.fault("GET /api", status=429, headers=headers)
    error = fails(ID, "HTTP 429")
    assert "HF_TOKEN" in str(error.hint)
    assert fault.seen == 5


def test_rate_limit_for_an_hour(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    fault = hub.fault("GET /api", status=429, headers={"Retry-After": "3600"})
    fails(ID, "HTTP 429")
    assert fault.seen == 1, "nobody waits that long"


def test_retry_after_is_honoured(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    hub.repos[ID] = Repo(files)
    hub.fault("GET /api", status=429, headers={"Retry-After": "17"}, times=2)
    get(ID)
    assert [wait for wait in slept if wait > 1] == [17, 17]


def test_hub_that_stops_answering_half_way(hub: Hub, files: dict[str, bytes]) -> None:
    """The client then hands out the folder without the weights, and no error."""
    hub.repos[ID] = Repo(files)
    fault = hub.fault("GET /api", status=503, skip=2, times=2)
    Checkpoint.open(get(ID).folder)
    assert fault.seen == 2


# fetch: refusals


def test_unknown_id(hub: Hub) -> None:
    error = fails(ID, f"{ID} is not on the Hub, or is private")
    assert "HF_TOKEN" in str(error.hint)


def test_gone_repository_gives_way_to_the_other_family(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[LMMS] = Repo(files)
    told: list[str] = []
    assert get(resolve(size="0.5b"), told=told).repo == LMMS
    assert told == [f"{HF} is not on the Hub, or is private; trying {LMMS} instead"]


def test_both_families_gone(hub: Hub) -> None:
    fails(resolve(size="0.5b"), f"{HF} is not on the Hub")
    fails(resolve(size="0.5b", revision="v1"), f"{HF} is not on the Hub")
    assert len(hub.requests(LMMS)) == 1, "not tried with a revision of the other"


def test_repository_without_safetensors_gives_way_too(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[HF] = Repo({"config.json": files["config.json"], "model-00001-of-00031.safetensors.md": b"?"})
    hub.repos[LMMS] = Repo(files)
    assert get(resolve(size="0.5b")).repo == LMMS
    fails(HF, f"{HF} has no safetensors files")


def test_private(hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[ID] = Repo(files, token="hf_secret")
    fails(ID, "is not on the Hub, or is private")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    fails(ID, "is not on the Hub, or is private")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert get(ID).revision == COMMIT


def test_bad_token(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    hub.fault(
        "GET /api", status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"}
    )
    error = fails(ID, r"the Hub refuses access to .* \(HTTP 401\)")
    assert "HF_TOKEN" in str(error.hint)


def test_gated(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files, gated=True)
    error = fails(ID, f"{ID} is gated")
    assert f"{hub.url}/{ID}" in str(error.hint)
    assert "HF_TOKEN" in str(error.hint)


def test_pickles_alone_are_refused_before_any_download(hub: Hub, files: dict[str, bytes]) -> None:
    del files["model.safetensors"]
    hub.repos[ID] = Repo(files)
    error = fails(ID, r"only as pickles \(pytorch_model\.bin", UnsupportedCheckpointError)
    assert "safe_serialization=True" in str(error.hint)
    assert hub.requests("/resolve/") == []


def test_no_config(hub: Hub, files: dict[str, bytes]) -> None:
    del files["config.json"]
    hub.repos[ID] = Repo(files)
    fails(ID, r"has no config\.json", UnsupportedCheckpointError)
    assert hub.requests("/resolve/") == []


@pytest.mark.parametrize(
    ("config", "kind"),
    [(b'{"model_type": "llama"}', UnsupportedCheckpointError), (b"{", CheckpointError)],
)
def test_what_cannot_be_exported_is_not_downloaded(
    config: bytes, kind: type[OneVisionError], hub: Hub, files: dict[str, bytes]
) -> None:
    hub.repos[ID] = Repo(files | {"config.json": config})
    fails(ID, r"config\.json", kind)
    assert hub.requests(WEIGHTS) == []


def test_no_disk_space(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files, sizes={"model.safetensors": 10**18})
    error = fails(ID, r"needs 1000000000\.0 GB more in .*cache, where .*B are free")
    assert "HF_HOME" in str(error.hint)
    assert hub.requests(WEIGHTS) == []


def test_cache_that_cannot_be_written(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    hub.repos[ID] = Repo(files)
    error = fails(ID, "cannot write .*cache")
    assert "HF_HOME" in str(error.hint)


def raising(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "blob"), "the disk of .* is full"),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "blob"),
            "cannot write blob: Permission denied",
        ),
        (
            RuntimeError("Data processing error: CAS service error\nmore"),
            f"{ID} failed: .* CAS service error$",
        ),
    ],
)
def test_errors_that_a_loopback_cannot_cause(error: Exception, told: str) -> None:
    with pytest.raises(DownloadError, match=told):
        hub_errors.retried(raising(error), ID, None)


# the client as a user has it

RUN = """
import sys
from onevision.export.hub import fetch, resolve
print(fetch(resolve(sys.argv[1]), progress=sys.argv[2] == "bars", notify=print).revision)
"""


def test_environment_and_bars(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE in a process of its own; bars only when asked for."""
    hub.repos[ID] = Repo(files, token="hf_secret")

    def run(home: str, bars: str, **more: str) -> tuple[str, str]:
        home = str(tmp_path / home)
        environment: dict[str, Any] = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": home, **more}
        environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
        command = [sys.executable, "-c", RUN, ID, bars]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    assert run("one", "no bars", HF_TOKEN="hf_secret") == (f"{COMMIT}\n", "")
    assert (tmp_path / "one" / "hub").is_dir()
    hub.log.clear()
    assert run("one", "no bars", HF_HUB_OFFLINE="1") == (f"{COMMIT}\n", "")
    assert hub.log == []
    printed, drawn = run("two", "bars", HF_TOKEN="hf_secret")
    assert printed == f"{COMMIT}\n"
    assert "Fetching 7 files" in drawn
