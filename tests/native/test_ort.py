"""Graphs whose files lie behind links, as in the Hub's cache, and ONNX Runtime's reasons in messages."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision.bundle import VISION, VISION_DATA
from onevision.errors import BundleError
from onevision.native.ort import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


def hub_cache(bundle: Path, folder: Path) -> Path:
    """Every file is a link into a folder of blobs that are named by their hashes."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, name in enumerate((VISION, VISION_DATA)):
        shutil.copy(bundle / name, blobs / f"{number:x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:x}")
    return snapshot / VISION


def weights_elsewhere(bundle: Path, folder: Path) -> Path:
    """The graph is a file, its weights are a link to another folder."""
    (folder / "other").mkdir()
    shutil.copy(bundle / VISION, folder)
    shutil.copy(bundle / VISION_DATA, folder / "other" / "weights")
    (folder / VISION_DATA).symlink_to("other/weights")
    return folder / VISION


def graph_elsewhere(bundle: Path, folder: Path) -> Path:
    """The weights are a file, the graph is a link to another folder."""
    (folder / "other").mkdir()
    shutil.copy(bundle / VISION, folder / "other" / "graph")
    shutil.copy(bundle / VISION_DATA, folder)
    (folder / VISION).symlink_to("other/graph")
    return folder / VISION


def hard_links(bundle: Path, folder: Path) -> Path:
    """Both files have a second name."""
    for name in (VISION, VISION_DATA):
        shutil.copy(bundle / name, folder / f"first-{name}")
        os.link(folder / f"first-{name}", folder / name)
    return folder / VISION


def folder_link(bundle: Path, folder: Path) -> Path:
    """The whole folder is a link."""
    (folder / "link").symlink_to(bundle)
    return folder / "link" / VISION


def features(path: Path) -> np.ndarray:
    session, _, _ = open_session(path, "cpu", 1, "the vision encoder")
    (pixels,) = session.get_inputs()
    values = np.random.default_rng(0).uniform(-1, 1, (2, *pixels.shape[1:])).astype(np.float32)
    result: np.ndarray = session.run(None, {pixels.name: values})[0]
    return result


@pytest.mark.parametrize("layout", [hub_cache, weights_elsewhere, graph_elsewhere, hard_links, folder_link])
def test_links(layout: Callable[[Path, Path], Path], toy_bundle: Path, tmp_path: Path) -> None:
    assert np.array_equal(features(layout(toy_bundle, tmp_path)), features(toy_bundle / VISION))


def test_a_link_to_nothing(toy_bundle: Path, tmp_path: Path) -> None:
    path = weights_elsewhere(toy_bundle, tmp_path)
    (tmp_path / "other" / "weights").unlink()
    with pytest.raises(BundleError, match=f"lacks its weights, {VISION_DATA}"):
        features(path)


def test_a_link_to_an_empty_file(toy_bundle: Path, tmp_path: Path) -> None:
    path = weights_elsewhere(toy_bundle, tmp_path)
    (tmp_path / "other" / "weights").write_bytes(b"")
    with pytest.raises(BundleError, match="is damaged"):
        features(path)


def test_the_reason_is_in_the_message(toy_bundle: Path, tmp_path: Path) -> None:
    path = hard_links(toy_bundle, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        BundleError, match=r"vision\.onnx is damaged, or not an ONNX model: .*[Pp]rotobuf"
    ) as caught:
        features(path)
    assert "ONNXRuntimeError" not in caught.value.message


def test_names_that_are_not_utf8(toy_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime's binding fails with a UnicodeDecodeError."""
    path = hard_links(toy_bundle, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"pixel_values", b"pixel\xff\xfe\xc3alues"))
    with pytest.raises(BundleError, match="is damaged"):
        features(path)
