"""Calibration tiles: from the user's own images, or from a built-in set.

In: a folder, or none. Out: tiles as the vision encoder gets them, from as many images as there are. The same
files give the same tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from onevision.bundle import VisionInfo
from onevision.errors import ImageError, QuantError
from onevision.runtime.anyres import AnyRes, normalize, split
from onevision.runtime.images import read_image

#: Default number of tiles: the pixels of 16 SigLIP tiles, and at most what the built-in set gives.
PIXELS, TILES = 16 * 384**2, 128
_TILES_PER_IMAGE = 8

#: Built-in set: width and height of its photo-like images, in tile sides, and its scenes of the tiny suite,
#: from the train split: no test question's image is among them.
_SHAPES = ((1.0, 1.0), (1.5, 1.0), (0.7, 1.3), (3.0, 2.0), (0.4, 0.4), (2.2, 0.6), (0.5, 2.0), (4.0, 3.0))
_SCENES = ("objects", "crowd", "small_print", "form", "bars", "table", "screen", "sum")


@dataclass(frozen=True, eq=False)
class CalibrationTiles:
    """Tiles to calibrate with.

    Attributes:
        pixel_values: float32 [T, 3, S, S]
        images: Number of images that the tiles come from.
        source: Name for reports.
        warnings: Files that were skipped.
    """

    pixel_values: npt.NDArray[np.float32]
    images: int
    source: str
    warnings: tuple[str, ...]


def calibration_tiles(
    vision: VisionInfo, folder: Path | None = None, *, limit: int | None = None
) -> CalibrationTiles:
    """Cut images to tiles by AnyRes, as the runtime does.

    Args:
        vision: The bundle's tile size and grids.
        folder: Images in any format that the runtime reads, subfolders included; None for the built-in set.
        limit: Maximum number of tiles; None: 16 of SigLIP's size, more of smaller ones.

    Raises:
        QuantError: No such folder, an empty one, or no readable image in it.
    """
    spec = AnyRes.of(vision)
    limit = limit or min(max(PIXELS // vision.image_size**2, 1), TILES)
    warnings: list[str] = []
    images = _built_in(vision.image_size) if folder is None else _read_folder(folder, warnings)
    per_image: list[npt.NDArray[np.uint8]] = []
    for image in images:
        tiles = split(image, spec).pixels
        # The base view, and tiles from all over the grid.
        chosen = np.linspace(0, len(tiles) - 1, min(len(tiles), _TILES_PER_IMAGE)).round().astype(int)
        per_image.append(tiles[np.unique(chosen)])
        if len(per_image) == limit:
            break
    if not per_image:
        raise QuantError(
            f"none of the {len(warnings)} files in {folder} is an image", hint=f"the first: {warnings[0]}"
        )
    # Every image's base view comes before a second tile of any.
    ordered = [tiles[turn] for turn in range(_TILES_PER_IMAGE) for tiles in per_image if turn < len(tiles)]
    return CalibrationTiles(
        normalize(np.stack(ordered[:limit]), vision.mean, vision.std),
        len(per_image),
        "built-in images" if folder is None else folder.name,
        tuple(warnings),
    )


def files_in(folder: Path) -> list[Path]:
    """All files of a folder and its subfolders except hidden ones.

    Raises:
        QuantError: No such folder, or an empty one.
    """
    if not folder.is_dir():
        raise QuantError(f"no calibration folder at {folder}", hint="name a folder with images")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise QuantError(
            f"the calibration folder {folder} is empty", hint="put a dozen or more different images into it"
        )
    return files


def _read_folder(folder: Path, warnings: list[str]) -> Iterator[Image.Image]:
    """Images of a folder, shuffled since neighbors are often alike; unreadable files become warnings."""
    files = files_in(folder)
    Random(0).shuffle(files)  # noqa: S311  # the same order each time
    for path in files:
        try:
            image = read_image(path)
        except ImageError as error:  # the next one may be good
            warnings.append(f"skipped: {error.message}")
        else:
            yield image


def _built_in(side: int) -> Iterator[Image.Image]:
    """Photo-like images and drawn scenes in turn, of many sizes and proportions."""
    from onevision.eval.suite import build_scene
    from onevision.proof.reference import synthetic_image

    for number, (name, (width, height)) in enumerate(zip(_SCENES, _SHAPES, strict=True)):
        shape = max(1, round(width * side)), max(1, round(height * side))
        yield Image.fromarray(synthetic_image(*shape, seed=number))
        yield Image.fromarray(build_scene(name, "train", 0, number).images[0])
