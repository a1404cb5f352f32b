"""What many tests share: a toy checkpoint, its exact bundle, photographs and a video."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

from onevision.bundle import MANIFEST
from onevision.models import SHIPPED, TINY_BUNDLE
from tests.runtime.media import encode_video, photograph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.export.hub_server import Hub


# No test depends on a clock.
settings.register_profile("onevision", deadline=None)
settings.load_profile("onevision")


class NoProgress:
    """Progress that keeps the names of steps, and notes."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.notes: list[str] = []

    def step(self, name: str):
        self.steps.append(name)
        return nullcontext(lambda fraction: None)

    def note(self, text: str) -> None:
        self.notes.append(text)


def make_bundle(checkpoint: Path, target: Path, **options: object) -> Path:
    """Export a local checkpoint on one thread, which is faster for toys; ``options``: of ExportOptions."""
    import torch

    from onevision.export.build import ExportOptions, export
    from onevision.export.hub import FetchedCheckpoint

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = ExportOptions(**{"threads": 1, **options})
        export(FetchedCheckpoint(checkpoint, None, None), target, chosen, NoProgress())
    finally:
        torch.set_num_threads(threads)
    return target


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """Change a file of a bundle and its entry in the manifest, so that only its contents are bad."""
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / "onevision.json").read_text(encoding="utf-8"))
    manifest["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / "onevision.json").write_text(json.dumps(manifest), encoding="utf-8")


def swap_head_rows(checkpoint: Path, target: Path, one: int, other: int) -> Path:
    """A copy of an untied checkpoint that says token ``other`` where it said ``one``, and the reverse."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(checkpoint, target)
    weights = copy / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    head = tensors["language_model.lm_head.weight"]
    head[[one, other]] = head[[other, one]]
    save_file(tensors, weights, metadata={"format": "pt"})
    return copy


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub, and the client set to it as its environment variables would at import, with an empty cache."""
    from huggingface_hub import constants, file_download, utils

    from onevision.export import hub_errors
    from tests.export.hub_server import Hub

    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        home = file_download if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE") else constants
        monkeypatch.setattr(home, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_errors, "_FIRST_WAIT_S", 0.0)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        getattr(utils, "close_session", getattr(utils, "reset_sessions", None))()  # since 1.0, before
        yield server


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Bundles and measurements go here, never into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("ONEVISION_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def tiny_bundle() -> Path:
    """The tiny model's bundle, as the sources write it now. Do not change it: copy it."""
    from onevision.export.tiny import write_tiny_bundle

    package = TINY_BUNDLE.parents[1]
    sources = [*package.rglob("*.py"), *SHIPPED["tiny", "ov"].iterdir()]
    manifest = TINY_BUNDLE / MANIFEST
    if not manifest.exists() or manifest.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        write_tiny_bundle(TINY_BUNDLE)
    return TINY_BUNDLE


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default synthetic checkpoint: 56-pixel tiles of 16 patches, hidden size 128."""
    from onevision.export.synth import SynthSpec, synthesize

    return synthesize(tmp_path_factory.mktemp("toy") / "checkpoint", SynthSpec())


@pytest.fixture(scope="session")
def toy_bundle(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle in full precision. Do not change it: copy it."""
    return make_bundle(toy_checkpoint, tmp_path_factory.mktemp("toy") / "bundle", backbone="f32")


@pytest.fixture(scope="session")
def untied_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose head is not its embedding."""
    from onevision.export.synth import SynthSpec, synthesize

    return synthesize(tmp_path_factory.mktemp("untied") / "checkpoint", SynthSpec(tied=False, seed=1))


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photograph of 640×427 as JPEG."""
    path = tmp_path_factory.mktemp("photo") / "china.jpg"
    photograph("china").save(path, quality=92)
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real H.264 video: a window that moves over a photograph, 24 frames of 160×120."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    scene = np.asarray(photograph("flower"))
    frames = np.stack([scene[4 * at : 4 * at + 120, 8 * at : 8 * at + 160] for at in range(24)])
    encode_video(path, frames)
    return path
