"""Reference vectors in a file: they come back as they went, and damage is an error of the bundle."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.bundle import GOLDEN
from onevision.errors import BundleError
from onevision.proof.golden import GREEDY_STEPS, KEPT_ROWS, ReferenceCase, Rows, load_golden, save_golden

RANDOM = np.random.default_rng(0)
TEXT_ONLY = ReferenceCase(
    "text", "Hi. 🙂", (), None, np.array([1, 2, 3]), None, None, None,
    RANDOM.normal(size=16).astype(np.float32), np.array([4, 5]),
)  # fmt: skip
WITHOUT_BACKBONE = ReferenceCase(
    "images",
    "Which?",
    (RANDOM.integers(0, 256, (5, 7, 3), np.uint8), RANDOM.integers(0, 256, (2, 1, 3), np.uint8)),
    RANDOM.integers(0, 256, (4, 6, 8, 3), np.uint8),
    np.array([1, -200, -200, -200]),
    RANDOM.integers(0, 256, (2, 8, 8, 3), np.uint8),
    Rows.of(RANDOM.normal(size=(2, 30, 4)).astype(np.float32), 10),
    Rows.of(RANDOM.normal(size=(30, 4)).astype(np.float32)),
    None,
    None,
)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, (ReferenceCase, Rows)):
        assert_same(tuple(vars(one).values()), tuple(vars(other).values()))
    else:
        assert one == other


def test_cases_come_back_as_they_went(tmp_path: Path):
    cases = (TEXT_ONLY, WITHOUT_BACKBONE)
    save_golden(tmp_path / "golden.npz", cases)
    assert_same(load_golden(tmp_path / "golden.npz"), cases)
    save_golden(tmp_path / "again.npz", cases)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "golden.npz").read_bytes()


def test_a_bundle_has_one_case_of_each_kind(toy_bundle: Path):
    image, images, video, text = load_golden(toy_bundle / GOLDEN)
    assert [case.name for case in (image, images, video, text)] == ["image", "images", "video", "text"]
    assert (len(image.images), len(images.images)) == (1, 2)
    assert video.video is not None
    assert not text.images
    assert text.tiles is text.features is text.embeddings is None
    for case in (image, images, video, text):
        assert case.logits is not None
        assert case.tokens is not None
        assert 0 < len(case.tokens) <= GREEDY_STEPS


@given(st.integers(1, 200), st.integers(1, 5), st.none() | st.integers(1, 60))
def test_kept_rows_span_the_matrix(rows: int, width: int, keep: int | None):
    matrix = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    kept = Rows.of(matrix, keep)
    assert len(kept.index) == (rows if keep is None else min(keep, rows))
    assert kept.index[0] == 0
    assert keep == 1 or kept.index[-1] == rows - 1
    assert len(set(kept.index.tolist())) == len(kept.index)
    np.testing.assert_array_equal(kept.values, matrix[kept.index])
    np.testing.assert_allclose(kept.norms, np.sqrt((matrix**2).sum(1)), rtol=1e-6)


def test_golden_is_small(toy_bundle: Path):
    """What is kept of features does not grow with the picture."""
    for case in load_golden(toy_bundle / GOLDEN):
        for rows in (case.features, case.embeddings):
            assert rows is None or len(rows.values) <= KEPT_ROWS


@given(data=st.data())
@settings(max_examples=200)
def test_a_damaged_file_is_a_bundle_error_or_the_cases(
    toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    whole = (toy_bundle / GOLDEN).read_bytes()
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    directory = whole.find(b"PK\x01\x02")
    spot = data.draw(
        st.integers(0, len(whole) - 1) | st.integers(0, 200) | st.integers(directory, len(whole) - 1)
    )
    if data.draw(st.booleans()):
        path.write_bytes(whole[:spot])
    else:
        flipped = bytes([whole[spot] ^ (1 << data.draw(st.integers(0, 7)))])
        path.write_bytes(whole[:spot] + flipped + whole[spot + 1 :])
    try:
        cases = load_golden(path)
    except BundleError as error:
        if "damaged.npz is damaged" not in error.message:
            raise
    else:
        assert_same(cases, load_golden(toy_bundle / GOLDEN))


@pytest.mark.parametrize("field", [30, 31, 32, 33])
def test_an_entry_is_hidden_by_no_wrong_length(toy_bundle: Path, tmp_path: Path, field: int):
    """Lengths of an entry's extra data and comment, in the directory of the archive."""
    whole = bytearray((toy_bundle / GOLDEN).read_bytes())
    spot = whole.rfind(b"PK\x01\x02", 0, whole.rfind(b"PK\x01\x02"))
    whole[spot + field] ^= 1
    path = tmp_path / "damaged.npz"
    path.write_bytes(whole)
    with pytest.raises(BundleError, match="is damaged"):
        load_golden(path)


OTHER = {
    "nothing": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("golden", encoding="utf-8"),
    "a folder": lambda path: path.mkdir(),
    "no cases": lambda path: np.savez(path, x=np.zeros(3)),
    "cases of another form": lambda path: np.savez(path, cases=np.array("[1, 2]")),
    "cases without vectors": lambda path: np.savez(path, cases=np.array('[{"name": "a", "prompt": "b"}]')),
    "pickles": lambda path: np.savez(path, cases=np.array([{}], dtype=object)),
    "one array": lambda path: (np.save(f"{path}.npy", np.zeros(3)), Path(f"{path}.npy").replace(path)),
}


@pytest.mark.parametrize("write", OTHER.values(), ids=OTHER)
def test_other_files_are_refused(tmp_path: Path, write: Any):
    path = tmp_path / "golden.npz"
    write(path)
    with pytest.raises(BundleError, match=r"golden\.npz is damaged"):
        load_golden(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path):
    """564 MB of zeros in 548 kB: refused before anything is unpacked."""
    path = tmp_path / "golden.npz"
    np.savez_compressed(path, cases=np.array("[]"), zeros=np.zeros((564, 1000, 1000), np.uint8))
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=r"golden\.npz is damaged"):
            load_golden(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_missing_file_leads_to_the_checkpoint(tmp_path: Path):
    with pytest.raises(BundleError, match="no reference vectors") as caught:
        load_golden(tmp_path / "golden.npz")
    assert "--reference" in str(caught.value.hint)
