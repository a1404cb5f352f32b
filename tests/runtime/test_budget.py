"""Budgets of pictures: which grid is left, that the input stays one of the model's, and that none is spent
where none was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onevision import OneVision
from onevision.models.shapes import published_config
from onevision.planning.cost import Shape
from onevision.runtime import anyres
from onevision.runtime.anyres import AnyRes, choose_tiling
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions, make_options
from onevision.runtime.pack import pack_image
from tests.runtime.media import noise, photograph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RELEASED = Shape.of_config(published_config("0.5b")).anyres
PLAIN = AnyRes.parse(  # LLaVA-NeXT's grids: none of one tile, and no cap
    "anyres",
    image_size=384,
    patch_size=14,
    pinpoints=[(384, 768), (768, 384), (768, 768), (1152, 384), (384, 1152)],
)
sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
specs = st.sampled_from([RELEASED, PLAIN])
limits = st.integers(1, 40)

#: width, height, limit of tiles; rows and columns, tiles, tokens.
BY_LIMIT = (
    (640, 480, None, (2, 2), 5, 2929),
    (640, 480, 5, (2, 2), 5, 2929),
    (640, 480, 4, (1, 2), 3, 1728),
    (640, 480, 3, (1, 2), 3, 1728),
    (640, 480, 2, (1, 1), 2, 1317),
    (640, 480, 1, None, 1, 730),
    (1920, 1080, None, (3, 5), 16, 7269),
    (1920, 1080, 15, (3, 4), 13, 7378),
    (1920, 1080, 9, (2, 4), 9, 5967),
    (1920, 1080, 7, (2, 3), 7, 4501),
    (1920, 1080, 5, (2, 2), 5, 2379),
    (384, 384, None, (1, 1), 2, 1485),
    (384, 384, 2, (1, 1), 2, 1485),
    (384, 384, 1, None, 1, 730),
)

#: width, height, what it is enlarged to, rows and columns.
ENLARGED = (
    (384, 384, (1152, 1152), (3, 3)),
    (640, 480, (1330, 998), (3, 4)),
    (100, 100, (1152, 1152), (3, 3)),
    (1920, 1080, (1920, 1080), (3, 5)),
    (5000, 100, (5000, 100), (1, 6)),
    (4, 1, (2304, 576), (2, 6)),
)


@pytest.mark.parametrize(("width", "height", "limit", "grid", "tiles", "tokens"), BY_LIMIT)
def test_the_table_of_limits(width, height, limit, grid, tiles, tokens):
    found = choose_tiling(RELEASED, (height, width), AnswerOptions(max_tiles=limit))
    assert (found.grid, found.tiles, found.tokens) == (grid, tiles, tokens)
    assert found.size == (height, width)


@pytest.mark.parametrize(("width", "height", "larger", "grid"), ENLARGED)
def test_the_table_of_enlarged_pictures(width, height, larger, grid):
    found = choose_tiling(RELEASED, (height, width), AnswerOptions(detail="high"))
    assert (found.size[::-1], found.grid) == (larger, grid)


@given(size=sizes, spec=specs, limit=limits)
def test_never_more_tiles_than_the_limit(size, spec, limit):
    assert choose_tiling(spec, size, AnswerOptions(max_tiles=limit)).tiles <= limit


@given(size=sizes, spec=specs, limit=limits, detail=st.sampled_from(["auto", "high"]))
def test_a_grid_is_one_of_the_models(size, spec, limit, detail):
    budget = AnswerOptions(max_tiles=limit) if detail == "auto" else AnswerOptions(detail="high")
    found = choose_tiling(spec, size, budget)
    if found.grid is None:
        assert (found.tiles, found.tokens) == (1, spec.side**2 + 1)
    else:
        rows, columns = found.grid
        assert (rows * spec.tile, columns * spec.tile) in spec.pinpoints


@given(size=sizes, spec=specs, limit=limits)
def test_a_limit_that_the_reference_keeps_to_changes_nothing(size, spec, limit):
    usual = choose_tiling(spec, size, AnswerOptions())
    assert usual.spec is spec
    assert usual.grid == spec.grid_shape(size)
    assert usual.tokens == spec.token_count(size)
    limited = choose_tiling(spec, size, AnswerOptions(max_tiles=usual.tiles + limit))
    assert replace(limited, spec=spec) == usual


@given(size=sizes, spec=specs)
def test_low_is_a_picture_of_several(size, spec):
    low = choose_tiling(spec, size, AnswerOptions(detail="low"))
    assert (
        low
        == choose_tiling(spec, size, AnswerOptions(max_tiles=1))
        == choose_tiling(spec, size, AnswerOptions(), several=True)
    )


@given(size=sizes, spec=specs)
def test_several_pictures_have_no_smaller_budget(size, spec):
    budgets = (
        AnswerOptions(),
        AnswerOptions(max_tiles=5),
        AnswerOptions(detail="high"),
        AnswerOptions(detail="low"),
    )
    assert len({choose_tiling(spec, size, budget, several=True) for budget in budgets}) == 1


@given(size=sizes, spec=specs)
def test_high_keeps_proportions_and_never_shrinks(size, spec):
    larger = spec.enlarged(size)
    assert larger[0] >= size[0]
    assert larger[1] >= size[1]
    if larger != size:  # rounded to whole pixels
        assert larger[0] / size[0] == pytest.approx(larger[1] / size[1], rel=0.5 / min(larger) * 2 + 1e-9)


def test_grids_within_a_limit():
    assert RELEASED.within(None) is RELEASED
    assert RELEASED.within(37) == RELEASED
    assert [len(RELEASED.within(limit).pinpoints) for limit in (2, 3, 4, 5)] == [1, 3, 5, 8]
    assert RELEASED.within(1) is None
    assert PLAIN.within(2) is None
    assert RELEASED.within(5).max_tiles == RELEASED.max_tiles, "the cap of tokens stays"


# What the model is then given.


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(toy_bundle, device="cpu", threads=1) as loaded:
        yield loaded


def prepared(model: OneVision, images=(), video=None, **options):
    return model.pipeline.prepare(conversation_of("What?", images, video, None), make_options(options))


@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=30)
def test_without_a_budget_the_input_is_the_references(model: OneVision, size):
    """Byte for byte: tiles, and packing of any features."""
    image, spec = noise(*size), model.pipeline.preparer.anyres
    (visual,) = prepared(model, [image]).visuals
    tiles = anyres.split(image, spec)
    assert np.array_equal(visual.tiles, tiles.pixels)
    newline = model.pipeline.preparer._newline
    shape = (len(tiles.pixels), spec.side**2, len(newline))
    features = np.random.default_rng(0).standard_normal(shape, np.float32)
    packed = pack_image(features, size, spec, newline)
    assert visual.pack(features).tobytes() == packed.tobytes()
    for same in ({"max_tiles": 1000}, {"detail": "auto"}):
        (limited,) = prepared(model, [image], **same).visuals
        assert limited.tiles.tobytes() == visual.tiles.tobytes()
        assert limited.key == visual.key, "a known prefix stays known"


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    budget=st.one_of(
        st.fixed_dictionaries({"max_tiles": st.integers(1, 10)}),
        st.fixed_dictionaries({"detail": st.sampled_from(["low", "high"])}),
    ),
)
@settings(max_examples=30)
def test_counts_are_those_of_the_cut(model: OneVision, size, budget):
    spec = model.pipeline.preparer.anyres
    (visual,) = prepared(model, [noise(*size)], **budget).visuals
    planned = choose_tiling(spec, size, make_options(budget))
    assert (len(visual.tiles), visual.tokens) == (planned.tiles, planned.tokens)
    width = len(model.pipeline.preparer._newline)
    assert visual.pack(np.zeros((planned.tiles, spec.side**2, width), np.float32)).shape == (
        planned.tokens,
        width,
    )


def test_a_limited_picture_is_one_that_the_model_could_have_chosen(model: OneVision):
    """As if the checkpoint had only those grids."""
    image = photograph("china").resize((150, 100))
    spec = model.pipeline.preparer.anyres.within(3)
    (visual,) = prepared(model, [image], max_tiles=3).visuals
    assert np.array_equal(visual.tiles, anyres.split(image, spec).pixels)


def test_low_detail_is_the_square_of_several_pictures(model: OneVision):
    image = photograph("china").resize((150, 100))
    (low,) = prepared(model, [image], detail="low").visuals
    first, _ = prepared(model, [image, image]).visuals
    assert (low.tokens, low.key) == (first.tokens, first.key)


def test_high_detail_is_that_of_the_enlarged_picture(model: OneVision):
    image = photograph("china").resize((60, 40))
    larger = model.pipeline.preparer.anyres.enlarged((40, 60))
    assert larger > (40, 60)
    (high,) = prepared(model, [image], detail="high").visuals
    resized = image.resize(larger[::-1], Image.Resampling.BICUBIC)
    (other,) = prepared(model, [resized]).visuals
    assert (high.tokens, high.key) == (other.tokens, other.key)


def test_an_answer_tells_its_budget(model: OneVision):
    image = photograph("china").resize((150, 100))
    usual = model.generate("What?", images=[image], max_tokens=4)
    limited = model.generate("What?", images=[image], max_tokens=4, max_tiles=3)
    assert usual.to_dict()["budget"] == {
        "max_tiles": None,
        "detail": "auto",
        "frames": None,
        "dedup": None,
        "ttft_target_ms": None,
        "predicted_ttft_ms": None,
    }
    assert limited.options.max_tiles == 3
    assert limited.usage.tiles <= 3 < usual.usage.tiles
