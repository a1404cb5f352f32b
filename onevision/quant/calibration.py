"""Pictures to calibrate with: the user's own, or a built-in set.

In: a folder, or nothing. Out: tiles as the vision encoder gets them, from as many pictures as there are. The
same files give the same tiles, and so does no folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from onevision.errors import ImageError, QuantError
from onevision.runtime.anyres import AnyRes, normalise, split
from onevision.runtime.images import read_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from onevision.bundle import VisionInfo

#: Tiles at most: as many as have the pixels of 16 of SigLIP's, up to what the built-in set gives.
PIXELS, TILES = 16 * 384**2, 128
_TILES_OF_ONE = 8  # picture, at most: there may be few of them

#: Width and height of the built-in set's photo-like pictures, by the side of a tile.
_SHAPES = ((1.0, 1.0), (1.5, 1.0), (0.7, 1.3), (3.0, 2.0), (0.4, 0.4), (2.2, 0.6), (0.5, 2.0), (4.0, 3.0))
#: Its scenes of the tiny suite, never those that a model is tested with.
_SCENES = ("objects", "crowd", "small_print", "form", "bars", "table", "screen", "sum")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Tiles to calibrate with.

    Attributes:
        pixel_values: float32 [T, 3, S, S].
        pictures: How many they are cut from.
        source: What to call them in a report.
        warnings: Pictures that could not be read.
    """

    pixel_values: npt.NDArray[np.float32]
    pictures: int
    source: str
    warnings: tuple[str, ...]


def calibration_tiles(
    vision: VisionInfo, folder: Path | None = None, *, limit: int | None = None
) -> Calibration:
    """Cut pictures to tiles by AnyRes, as the runtime does.

    Args:
        vision: A bundle's: how large a tile is, which grids there are.
        folder: Pictures in any format that the runtime reads, in sub-folders too; None for the built-in set.
        limit: Tiles at most; None: as many as suit their size.

    Raises:
        QuantError: No such folder, nothing in it, or nothing that can be read.
    """
    spec = AnyRes.parse(
        vision.aspect_ratio,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        pinpoints=vision.grid_pinpoints,
    )
    limit = limit or min(max(PIXELS // vision.image_size**2, 1), TILES)
    warnings: list[str] = []
    images = _built_in(vision.image_size) if folder is None else _of_folder(folder, warnings)
    cut: list[npt.NDArray[np.uint8]] = []
    for image in images:
        tiles = split(image, spec).pixels
        # The base view, and tiles from all over the grid.
        chosen = np.unique(np.linspace(0, len(tiles) - 1, min(len(tiles), _TILES_OF_ONE)).round().astype(int))
        cut.append(tiles[chosen])
        if len(cut) == limit:
            break
    if not cut:
        raise QuantError(
            f"none of the {len(warnings)} files in {folder} is a picture", hint=f"the first: {warnings[0]}"
        )
    # Every picture's base view before a second tile of any.
    turns = [tiles[turn] for turn in range(_TILES_OF_ONE) for tiles in cut if turn < len(tiles)]
    return Calibration(
        normalise(np.stack(turns[:limit]), vision.mean, vision.std),
        len(cut),
        "built-in pictures" if folder is None else folder.name,
        tuple(warnings),
    )


def files_in(folder: Path) -> list[Path]:
    """All files of a folder and its sub-folders, hidden ones left out.

    Raises:
        QuantError: No such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise QuantError(f"no calibration folder at {folder}", hint="name a folder with pictures")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise QuantError(
            f"the calibration folder {folder} is empty",
            hint="put pictures in it, a dozen or more, of all kinds",
        )
    return files


def _of_folder(folder: Path, warnings: list[str]) -> Iterator[Image.Image]:
    """The pictures of a folder, shuffled: neighbours are often alike."""
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
    """Drawn scenes and photo-like pictures in turn, of all sizes and proportions."""
    from onevision.eval.suite import build_scene
    from onevision.proof.reference import picture

    for number, (name, (width, height)) in enumerate(zip(_SCENES, _SHAPES, strict=True)):
        shape = max(1, round(width * side)), max(1, round(height * side))
        yield Image.fromarray(picture(*shape, seed=number))
        yield Image.fromarray(build_scene(name, "train", 0, number).images[0])
