"""Calibration tiles: from images of the user or the built-in ones, cut as the runtime cuts them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from onevision.bundle import VisionInfo
from onevision.errors import QuantError
from onevision.quant.calibration import TILES, calibration_tiles
from onevision.runtime.anyres import AnyRes, normalize, split
from tests.runtime.media import noise, photograph

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 56
IMAGES = 16  # of the built-in set
VISION = VisionInfo(
    image_size=SIDE,
    patch_size=14,
    hidden=64,
    intermediate=128,
    layers=2,
    grid_pinpoints=tuple((SIDE * rows, SIDE * cols) for rows in range(1, 4) for cols in range(1, 4)),
    aspect_ratio="anyres_max_9",
    mean=(0.5, 0.4, 0.3),
    std=(0.5, 0.3, 0.2),
)
SPEC = AnyRes.parse(
    VISION.aspect_ratio,
    image_size=VISION.image_size,
    patch_size=VISION.patch_size,
    pinpoints=VISION.grid_pinpoints,
)


def is_of(tile: np.ndarray, image: object) -> bool:
    """Whether a tile is one that the runtime cuts from an image."""
    tiles = normalize(split(image, SPEC).pixels, VISION.mean, VISION.std)
    return bool((tiles == tile).all(axis=(1, 2, 3)).any())


def test_built_in_set_is_varied_and_the_same_each_time() -> None:
    one, other = calibration_tiles(VISION, limit=IMAGES), calibration_tiles(VISION, limit=IMAGES)
    assert one.pixel_values.shape == (IMAGES, 3, SIDE, SIDE)
    assert one.pixel_values.dtype == np.float32
    assert one.images == IMAGES
    assert one.warnings == ()
    np.testing.assert_array_equal(one.pixel_values, other.pixel_values)
    assert len({tile.tobytes() for tile in one.pixel_values}) == IMAGES
    colours = one.pixel_values.std(axis=(2, 3)).mean(axis=1)
    assert colours.min() > 0.05  # none is blank


def test_small_tiles_are_many() -> None:
    assert 60 < len(calibration_tiles(VISION).pixel_values) <= TILES
    large = replace(VISION, image_size=384, grid_pinpoints=((384, 768), (768, 384)))
    assert len(calibration_tiles(large).pixel_values) == 16


@pytest.mark.parametrize("side", [14, 70, 384])
def test_built_in_set_fits_any_tile(side: int) -> None:
    vision = VisionInfo(
        side, 14, 8, 8, 1, ((side, side * 2), (side * 2, side)), "anyres", (0.5,) * 3, (0.5,) * 3
    )
    assert calibration_tiles(vision, limit=5).pixel_values.shape == (5, 3, side, side)


def test_tiles_are_those_of_the_runtime(tmp_path: Path) -> None:
    images = [photograph("china"), photograph("flower"), noise(30, 200)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    calibration = calibration_tiles(VISION, tmp_path)
    assert calibration.images == 3
    assert calibration.source == tmp_path.name
    assert len(calibration.pixel_values) == 8 + 8 + 4, "the last has a grid of 3 × 1"
    owners = [[is_of(tile, image) for image in images].index(True) for tile in calibration.pixel_values]
    assert sorted(owners[:3]) == [0, 1, 2]  # each image's base view comes first
    assert min(owners.count(number) for number in range(3)) >= 3


def test_one_image_gives_no_more_than_its_tiles(tmp_path: Path) -> None:
    noise(SIDE, SIDE).save(tmp_path / "square.png")
    calibration = calibration_tiles(VISION, tmp_path)
    assert (calibration.images, len(calibration.pixel_values)) == (1, 2)


def test_of_many_images_few_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onevision.quant import calibration

    for number in range(40):
        noise(20, 20, seed=number).save(tmp_path / f"{number}.png")
    read: list[Path] = []
    read_image = calibration.read_image
    monkeypatch.setattr(calibration, "read_image", lambda path: read.append(path) or read_image(path))
    chosen = calibration_tiles(VISION, tmp_path, limit=6)
    assert (chosen.images, len(chosen.pixel_values), len(read)) == (6, 6, 6)
    assert [path.name for path in read] != sorted(path.name for path in read)
    again = calibration_tiles(VISION, tmp_path, limit=6)
    np.testing.assert_array_equal(again.pixel_values, chosen.pixel_values)


def test_images_in_folders_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    (tmp_path / "summer" / "beach").mkdir(parents=True)
    noise(60, 60).save(tmp_path / "summer" / "beach" / "a.jpg")
    (tmp_path / ".thumbnails.db").write_bytes(b"no image")
    calibration = calibration_tiles(VISION, tmp_path)
    assert (calibration.images, calibration.warnings) == (1, ())


def test_an_unreadable_image_is_skipped_with_a_warning(tmp_path: Path) -> None:
    noise(60, 60).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("remember the milk")
    calibration = calibration_tiles(VISION, tmp_path)
    assert calibration.images == 1
    assert len(calibration.warnings) == 2
    for name in ("cut.png", "notes.txt"):
        assert any(name in warning for warning in calibration.warnings)


def test_nothing_readable(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(QuantError, match="none of the 2 files") as caught:
        calibration_tiles(VISION, tmp_path)
    assert ".png" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is empty"),
        (lambda path: (path / "empty").mkdir(parents=True), "is empty"),
        (lambda path: path.write_bytes(b""), "no calibration folder"),
        (lambda path: None, "no calibration folder"),
    ],
    ids=["empty", "empty folders", "a file", "nothing there"],
)
def test_no_images(make, message: str, tmp_path: Path) -> None:
    make(tmp_path / "images")
    with pytest.raises(QuantError, match=message) as caught:
        calibration_tiles(VISION, tmp_path / "images")
    assert caught.value.hint
