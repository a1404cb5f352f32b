"""Special tokens of a fine-tune: typed in a question, shown in an answer; those of the format never."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from onevision.bundle import open_bundle
from onevision.export.config import read_config
from onevision.export.tokenizer import IM_END, RESERVED, TokenType, read_tokenizer
from onevision.runtime.engine import OneVision
from tests.conftest import make_bundle, swap_head_rows
from tests.export.conftest import edit_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ADDED = ("<gro>", "<bbox>", "<|seg|>")
QUESTION = "Where is it?"


def add_tokens(folder: Path, *tokens: str) -> None:
    """Add special tokens in spare rows of a toy, as transformers' ``add_special_tokens`` saves them."""
    first = len(read_tokenizer(folder, read_config(folder)).tokens) - 8
    entries = [{"id": first + at, "content": text, "special": True} for at, text in enumerate(tokens)]
    edit_json(folder / "tokenizer.json", lambda data: data["added_tokens"].extend(entries))


@pytest.fixture(scope="module")
def fine_tune(untied_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(untied_checkpoint, tmp_path_factory.mktemp("added") / "checkpoint")
    add_tokens(folder, *ADDED, "<|vision_start|>")
    return folder


@pytest.fixture(scope="module")
def model(fine_tune: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneVision]:
    bundle = make_bundle(fine_tune, tmp_path_factory.mktemp("added") / "bundle", backbone="f32", prove=False)
    with OneVision.load(bundle, device="cpu", threads=1) as loaded:
        yield loaded


def test_the_manifest_lists_them(model: OneVision):
    assert model.bundle.manifest.prompt.added_tokens == ADDED


def test_no_other_bundle_has_any(toy_bundle: Path):
    assert open_bundle(toy_bundle).manifest.prompt.added_tokens == ()


@pytest.mark.parametrize("token", ADDED)
def test_a_typed_one_becomes_its_id_and_is_shown(model: OneVision, token: str):
    tokenizer = model.pipeline.backbone.tokenizer
    around = tokenizer.encode("a"), tokenizer.encode("b")
    (own,) = tokenizer.encode(token)
    assert tokenizer.encode(f"a{token}b") == [*around[0], own, *around[1]]
    assert tokenizer.piece(own) == token.encode()


@pytest.mark.parametrize("token", [*RESERVED[:5], "<|vision_start|>"])
def test_one_of_the_format_is_text_and_is_not_shown(model: OneVision, token: str):
    tokenizer = model.pipeline.backbone.tokenizer
    own = tokenizer.control_id(token)
    assert own is not None
    typed = tokenizer.encode(token)
    assert own not in typed
    assert b"".join(map(tokenizer.piece, typed)) == token.encode()
    assert tokenizer.piece(own) == b""


def test_an_answer_shows_them(fine_tune: Path, model: OneVision, tmp_path: Path):
    said = model.generate(QUESTION, max_tokens=4)
    (own,) = model.pipeline.backbone.tokenizer.encode("<bbox>")
    swapped = swap_head_rows(fine_tune, tmp_path / "swapped", said.token_ids[0], own)
    bundle = make_bundle(swapped, tmp_path / "bundle", backbone="f32", prove=False)
    with OneVision.load(bundle, device="cpu", threads=1) as other:
        answer = other.generate(QUESTION, max_tokens=1)
    assert (answer.text, answer.token_ids) == ("<bbox>", (own,))


def test_the_end_of_a_fine_tune_stays_an_end(fine_tune: Path, tmp_path: Path):
    folder = shutil.copytree(fine_tune, tmp_path / "checkpoint")
    before = read_tokenizer(folder, read_config(folder))
    end = before.tokens.index("<gro>")
    edit_json(folder / "generation_config.json", lambda values: values.update(eos_token_id=[end]))
    read = read_tokenizer(folder, read_config(folder))
    assert before.types[end] is TokenType.USER_DEFINED
    assert read.types[end] is TokenType.CONTROL


def test_a_placeholder_that_is_not_special_is_not_typed(toy_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")

    def plain(data: dict[str, Any]) -> None:
        for entry in data["added_tokens"]:
            entry["special"] = False

    edit_json(folder / "tokenizer.json", plain)
    read = read_tokenizer(folder, read_config(folder))
    assert {kind for text, kind in zip(read.tokens, read.types, strict=True) if text in RESERVED} == {
        TokenType.CONTROL
    }
    assert read.tokens.index(IM_END) == read.im_end_id


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("<image>\nWhat is it?", ["<image>"]),
        ("Compare <image> and <video>.", ["<image>", "<video>"]),
        ("What is an image?", []),
    ],
)
def test_a_typed_placeholder_is_warned_of(model: OneVision, question: str, said: list[str]):
    answer = model.generate(question, max_tokens=1)
    assert [warning.split(" in ")[0] for warning in answer.warnings] == said
    assert all("is read as text" in warning for warning in answer.warnings)
