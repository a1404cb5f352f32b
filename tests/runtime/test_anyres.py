"""The tiles and tokens of a picture are those of transformers, number for number."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from onevision.errors import BundleError
from onevision.runtime.anyres import (
    AnyRes,
    fit_within,
    normalize,
    pad_square,
    select_best_resolution,
    split,
    squash,
)
from onevision.runtime.pack import pack_image, pack_square, pack_video, pool_frames, resize_bilinear
from tests.reference import PillowProcessor
from tests.runtime.media import noise, photograph

if TYPE_CHECKING:
    from PIL import Image

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def square_grids(tile: int, most: int) -> tuple[tuple[int, int], ...]:
    """All grids of 1 to ``most`` tiles a side, in the order of the released checkpoints."""
    return tuple((tile * rows, tile * cols) for rows in range(1, most + 1) for cols in range(1, most + 1))


def five_grids(tile: int) -> tuple[tuple[int, int], ...]:
    """The grids of the 0.5B mid-stage checkpoint: 1×2, 2×1, 2×2, 3×1, 1×3."""
    return tuple((tile * rows, tile * cols) for rows, cols in [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])


RELEASED = AnyRes(384, 27, square_grids(384, 6), 9)

# width, height; grid columns, rows; passes of the encoder; fitted; unpadded; packed (width, height each);
# tokens with anyres_max_9, tokens with anyres_max_4 (None: not stated)
SIZES = [
    (1, 1, 1, 1, 2, 384, 384, 27, 27, 27, 27, 1485, None),
    (100, 100, 1, 1, 2, 384, 384, 27, 27, 27, 27, 1485, None),
    (224, 224, 1, 1, 2, 384, 384, 27, 27, 27, 27, 1485, None),
    (384, 384, 1, 1, 2, 384, 384, 27, 27, 27, 27, 1485, None),
    (385, 384, 2, 1, 3, 385, 384, 28, 27, 28, 27, 1512, None),
    (448, 448, 2, 2, 5, 768, 768, 54, 54, 54, 54, 3699, None),
    (512, 512, 2, 2, 5, 768, 768, 54, 54, 54, 54, 3699, None),
    (768, 768, 2, 2, 5, 768, 768, 54, 54, 54, 54, 3699, None),
    (640, 480, 2, 2, 5, 768, 576, 54, 40, 54, 40, 2929, None),
    (480, 640, 2, 2, 5, 576, 768, 40, 54, 40, 54, 2943, None),
    (640, 427, 2, 2, 5, 768, 513, 54, 36, 54, 36, 2709, None),
    (800, 600, 3, 2, 7, 1024, 768, 73, 54, 73, 54, 4725, 3627),
    (1024, 768, 3, 2, 7, 1024, 768, 73, 54, 73, 54, 4725, 3627),
    (1024, 899, 3, 3, 10, 1152, 1012, 81, 71, 81, 71, 6551, 3629),
    (1024, 1024, 3, 3, 10, 1152, 1152, 81, 81, 81, 81, 7371, 3699),
    (1152, 1152, 3, 3, 10, 1152, 1152, 81, 81, 81, 81, 7371, 3699),
    (1153, 1152, 4, 3, 13, 1153, 1152, 82, 81, 82, 81, 7452, None),
    (1280, 720, 4, 2, 9, 1366, 768, 96, 54, 96, 54, 5967, None),
    (720, 1280, 2, 4, 9, 768, 1366, 54, 96, 54, 96, 6009, None),
    (1920, 1080, 5, 3, 16, 1920, 1080, 135, 75, 108, 60, 7269, None),
    (1080, 1920, 3, 5, 16, 1080, 1920, 75, 135, 60, 108, 7317, None),
    (1080, 2400, 3, 6, 19, 1037, 2304, 73, 162, 54, 120, 7329, None),
    (2048, 1536, 6, 4, 25, 2048, 1536, 144, 108, 93, 70, 7309, None),
    (2304, 2304, 6, 6, 37, 2304, 2304, 162, 162, 81, 81, 7371, None),
    (10000, 10000, 6, 6, 37, 2304, 2304, 162, 162, 81, 81, 7371, None),
    (3840, 2160, 6, 4, 25, 2304, 1296, 162, 92, 107, 61, 7317, None),
    (4032, 3024, 6, 5, 31, 2304, 1728, 162, 121, 93, 70, 7309, None),
    (3024, 4032, 5, 6, 31, 1728, 2304, 121, 162, 70, 93, 7332, None),
    (1700, 2200, 5, 6, 31, 1781, 2304, 125, 162, 71, 92, 7353, None),
    (2550, 3300, 5, 6, 31, 1781, 2304, 125, 162, 71, 92, 7353, None),
    (5000, 100, 6, 1, 7, 2304, 47, 162, 3, 162, 3, 1218, None),
    (100, 5000, 1, 6, 7, 47, 2304, 3, 162, 3, 162, 1377, None),
    (2304, 1, 6, 1, 7, 2304, 1, 162, 1, 162, 1, 892, None),
]

# width, height, fitted width, fitted height: one less with the ceiling taken in single precision or rounded
CEILINGS = [
    (748, 561, 768, 577),
    (561, 748, 577, 768),
    (374, 187, 384, 193),
    (652, 815, 768, 961),
    (825, 1100, 865, 1152),
    (769, 1538, 961, 1920),
    (217, 992, 253, 1152),
]

# width, height, tokens: int(x) instead of int(round(x, 7)) gives others
ROUNDINGS = [
    (375, 1375, 3529),
    (369, 820, 2437),
    (738, 820, 4084),
    (820, 1107, 5751),
    (1107, 820, 5731),
    (750, 1375, 6229),
    (1125, 1375, 7226),
    (3969, 2695, 7295),
    (294, 1323, 3537),
]

SPECS = [
    pytest.param(AnyRes.parse(ratio, image_size=tile, patch_size=patch, pinpoints=grids(tile)), id=name)
    for name, ratio, tile, patch, grids in [
        ("side27-max9", "anyres_max_9", 384, 14, partial(square_grids, most=6)),  # 6 pixels left over
        ("side8-max9", "anyres_max_9", 32, 4, partial(square_grids, most=6)),
        ("side5-max4", "anyres_max_4", 46, 9, partial(square_grids, most=4)),  # 1 pixel left over
        ("side4-max4", "anyres_max_4", 58, 14, partial(square_grids, most=6)),  # 2 pixels left over
        ("side8-anyres", "anyres", 32, 4, partial(square_grids, most=6)),
        ("side5-anyres-five-grids", "anyres", 46, 9, five_grids),
        ("side4-max9-five-grids", "anyres_max_9", 58, 14, five_grids),
    ]
]
SMALL_SPECS = SPECS[1:]


def oracle_ratio(spec: AnyRes) -> str:
    """transformers cannot read the plain "anyres" of older checkpoints; a cap never reached is the same."""
    return f"anyres_max_{spec.max_tiles or 100_000}"


def oracle_tokens(size: tuple[int, int], spec: AnyRes) -> int:
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=[list(grid) for grid in spec.pinpoints]),
        num_image_tokens=spec.side**2,
        vision_aspect_ratio=oracle_ratio(spec),
    )
    processor._get_unpadded_features = partial(LlavaOnevisionProcessor._get_unpadded_features, processor)
    return LlavaOnevisionProcessor._get_number_of_features(processor, *size, spec.tile, spec.tile)


def oracle_model(spec: AnyRes) -> SimpleNamespace:
    """All of the model that packing and pooling look at: its config."""
    patch = next(p for p in range(1, spec.tile + 1) if spec.tile // p == spec.side)
    return SimpleNamespace(
        config=SimpleNamespace(
            vision_config=SimpleNamespace(image_size=spec.tile, patch_size=patch),
            image_grid_pinpoints=[list(grid) for grid in spec.pinpoints],
        )
    )


def oracle_pixels(images: list[list[Image.Image]], spec: AnyRes, mean=HALF, std=HALF) -> np.ndarray:
    processor = PillowProcessor(
        size={"height": spec.tile, "width": spec.tile},
        image_grid_pinpoints=[list(grid) for grid in spec.pinpoints],
        image_mean=list(mean),
        image_std=list(std),
    )
    # Without the format a picture of 1 or 3 rows would be taken for one of 1 or 3 channels.
    batch = processor(images=images, input_data_format="channels_last", return_tensors="np")
    return batch["pixel_values"]


def features(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("row", SIZES, ids=lambda row: f"{row[0]}x{row[1]}")
def test_the_table_of_sizes(row):
    width, height, cols, rows, passes, fit_w, fit_h, kept_w, kept_h, packed_w, packed_h, tokens, tokens_4 = (
        row
    )
    size = (height, width)
    assert RELEASED.grid_shape(size) == (rows, cols)
    assert 1 + rows * cols == passes
    assert fit_within(size, select_best_resolution(size, RELEASED.pinpoints)) == (fit_h, fit_w)
    kept_rows, kept_cols = RELEASED.unpadded(size)
    assert (kept_rows.stop - kept_rows.start, kept_cols.stop - kept_cols.start) == (kept_h, kept_w)
    assert RELEASED.packed_shape(size) == (packed_h, packed_w)
    assert RELEASED.token_count(size) == tokens
    if tokens_4 is not None:
        assert AnyRes(384, 27, RELEASED.pinpoints, 4).token_count(size) == tokens_4


@pytest.mark.parametrize(("width", "height", "fit_w", "fit_h"), CEILINGS)
def test_fitting_rounds_up_in_double_precision(width, height, fit_w, fit_h):
    size = (height, width)
    assert fit_within(size, select_best_resolution(size, RELEASED.pinpoints)) == (fit_h, fit_w)


@pytest.mark.parametrize(("width", "height", "tokens"), ROUNDINGS)
def test_unpadding_rounds_to_seven_digits_first(width, height, tokens):
    assert RELEASED.token_count((height, width)) == tokens


def test_the_most_and_the_fewest_tokens_known():
    assert RELEASED.token_count((1402, 1148)) == 8765
    assert RELEASED.token_count((23, 368)) == 757


@settings(max_examples=2500)
@given(
    size=st.tuples(st.integers(1, 6000), st.integers(1, 6000)),
    spec=st.sampled_from([param.values[0] for param in SPECS]),
)
def test_token_counts_are_the_processors(size, spec):
    assert spec.token_count(size) == oracle_tokens(size, spec)


def test_plain_anyres_has_no_cap():
    plain = AnyRes.parse("anyres", image_size=384, patch_size=14, pinpoints=RELEASED.pinpoints)
    assert plain.max_tiles is None
    assert plain.packed_shape((2304, 2304)) == (162, 162)
    assert plain.token_count((2304, 2304)) == 729 + 162 * 163


@pytest.mark.parametrize("ratio", ["pad", "anyres_max_", "anyres_max_0", "anyres_max_9x", "square", ""])
def test_other_aspect_ratios_are_refused(ratio):
    with pytest.raises(BundleError, match="aspect ratio"):
        AnyRes.parse(ratio, image_size=384, patch_size=14, pinpoints=RELEASED.pinpoints)


@pytest.mark.parametrize("pinpoints", [[], [(384, 400)], [(0, 384)], [(384, 384), (-384, 384)]])
def test_grids_that_are_not_whole_tiles_are_refused(pinpoints):
    with pytest.raises(BundleError, match="grid"):
        AnyRes.parse("anyres", image_size=384, patch_size=14, pinpoints=pinpoints)


@pytest.mark.parametrize("name", ["china", "flower", "hopper"])
def test_tiles_of_photographs_are_the_processors(name):
    image = photograph(name)
    tiles = split(image, RELEASED)
    assert tiles.size == (image.height, image.width)
    assert tiles.pixels.shape == (1 + math.prod(tiles.grid), 384, 384, 3)
    assert np.array_equal(normalize(tiles.pixels, HALF, HALF), oracle_pixels([[image]], RELEASED)[0])


@pytest.mark.parametrize("spec", SMALL_SPECS)
def test_tiles_of_random_sizes_are_the_processors(spec):
    rng = np.random.default_rng(7)
    sizes = [(1, 1), (2, 500), (500, 2), (1, 90), (90, 1), (700, 699), (11, 640), (640, 11)]
    sizes += [tuple(int(side) for side in rng.integers(1, 400, 2)) for _ in range(40)]
    compared = 0
    for seed, size in enumerate(sizes):
        if {1, 3} & set(fit_within(size, select_best_resolution(size, spec.pinpoints))):
            continue  # the oracle takes a fitted picture of 1 or 3 rows for one of 1 or 3 channels, and fails
        image = noise(*size, seed=seed)
        tiles = split(image, spec)
        expected = oracle_pixels([[image]], spec)[0]
        assert np.array_equal(normalize(tiles.pixels, HALF, HALF), expected), size
        compared += 1
    assert compared >= 42


def test_a_line_of_pixels_is_fitted_like_any_other_picture():
    tiles = split(noise(1, 2304), RELEASED)
    assert tiles.grid == (1, 6)
    shown = np.flatnonzero(tiles.pixels[1:].any(axis=(0, 2, 3)))
    assert list(shown) == [191]  # of 383 black rows the odd one is below


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (77, 77), (1, 90), (90, 1), (5, 1200), (2500, 31)])
@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), (CLIP_MEAN, CLIP_STD)], ids=["siglip", "clip"])
def test_several_pictures_are_padded_squares(size, mean, std):
    spec = AnyRes(56, 4, square_grids(56, 2), 9)
    images = [noise(*size), photograph("china").resize((150, 100))]
    expected = oracle_pixels([images], spec, mean, std)
    for image, pixels in zip(images, expected, strict=True):
        tiles = pad_square(image, spec.tile, mean)
        assert tiles.grid is None
        assert tiles.size == (image.height, image.width)
        assert np.array_equal(normalize(tiles.pixels, mean, std), pixels)


def test_photographs_are_padded_as_the_processor_does():
    images = [photograph("china"), photograph("hopper")]
    expected = oracle_pixels([images], RELEASED)
    ours = [normalize(pad_square(image, 384).pixels, HALF, HALF) for image in images]
    assert np.array_equal(ours, expected)


def test_a_frame_is_squashed_to_the_base_view():
    image = photograph("flower")
    assert np.array_equal(squash(image, 384), split(image, RELEASED).pixels[0])


@pytest.mark.parametrize("spec", SPECS)
def test_packing_is_the_models(spec):
    rng = np.random.default_rng(3)
    sizes = [(1, 1), (9, 2000), (2000, 9), (1080, 1920), (spec.tile * 2, spec.tile * 2 + 1)]
    sizes += [tuple(int(side) for side in rng.integers(1, 6 * spec.tile, 2)) for _ in range(15)]
    newline = features(8, seed=99)
    for seed, size in enumerate(sizes):
        rows, cols = spec.grid_shape(size)
        x = features(1 + rows * cols, spec.side**2, 8, seed=seed)
        [expected], [length] = LlavaOnevisionModel.pack_image_features(
            oracle_model(spec), [torch.from_numpy(x)], [size], torch.from_numpy(newline), oracle_ratio(spec)
        )
        packed = pack_image(x, size, spec, newline)
        assert len(packed) == length == spec.token_count(size)
        assert relative_error(packed, expected.numpy()) <= 1e-6, size


def test_some_sizes_above_are_resampled_and_some_are_not():
    for param in SPECS:
        spec = param.values[0]
        kept = [axis.stop - axis.start for axis in spec.unpadded((1080, 1920))]
        resampled = spec.packed_shape((1080, 1920)) != tuple(kept)
        assert resampled == (spec.max_tiles is not None and len(spec.pinpoints) > 5), param.id


def test_a_padded_square_gets_one_newline():
    x, newline = features(1, 25, 8), features(8, seed=1)
    spec = AnyRes(46, 5, five_grids(46), 9)
    [expected], _ = LlavaOnevisionModel.pack_image_features(
        oracle_model(spec), [torch.from_numpy(x)], [(10, 20)], torch.from_numpy(newline)
    )
    assert np.array_equal(pack_square(x, newline), expected.numpy())


@pytest.mark.parametrize("side", [1, 2, 4, 5, 8, 27])
@pytest.mark.parametrize("frames", [1, 3])
def test_frames_are_pooled_as_the_model_does(side, frames):
    x, newline = features(frames, side**2, 8), features(8, seed=1)
    model = oracle_model(AnyRes(side * 14, side, ((side * 14, side * 14),), 9))
    expected = LlavaOnevisionModel.apply_pooling(model, torch.from_numpy(x)).numpy()
    assert relative_error(pool_frames(x, side), expected) <= 1e-6
    tokens = pack_video(x, side, newline)
    assert tokens.shape == (frames * math.ceil(side / 2) ** 2 + 1, 8)
    assert np.array_equal(tokens[:-1], pool_frames(x, side).reshape(-1, 8))
    assert np.array_equal(tokens[-1], newline)


def test_a_video_of_32_frames_has_6273_tokens():
    assert pack_video(features(32, 729, 2), 27, features(2)).shape == (6273, 2)


@settings(max_examples=300)
@given(
    source=st.tuples(st.integers(1, 170), st.integers(1, 170)),
    target=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    seed=st.integers(0, 2**16),
)
def test_resampling_is_torchs(source, target, seed):
    x = features(*source, 3, seed=seed)
    planes = torch.from_numpy(x).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, target, mode="bilinear")[0].permute(1, 2, 0).numpy()
    ours = resize_bilinear(x, target)
    assert ours.shape == expected.shape
    # Relative to the values that are mixed: where they cancel, torch's own rounding is as large.
    assert np.abs(ours - expected).max() <= 1e-6 * np.abs(x).max()
