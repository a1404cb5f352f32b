"""Conversations: the answers of `run`, and nothing read twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from onevision import OneVision
from onevision.errors import PromptError
from onevision.runtime.prepare import Preparer
from tests.runtime.media import photograph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from onevision.runtime.messages import ImagePart
    from onevision.runtime.prepare import VisualInput


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(toy_bundle, device="cpu", threads=1) as loaded:
        yield loaded


def test_a_conversation_is_answered_as_one_prompt(model: OneVision, tmp_path: Path):
    picture = tmp_path / "picture.png"
    photograph("china").resize((120, 90)).save(picture)
    chat = model.chat(max_tokens=8)
    chat.add_image(picture)
    first = chat.ask("What is it?")
    second = chat.ask("And beside it?")
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert second.timings.encode == 0
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, "What is it?"]},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And beside it?"},
    ]
    assert model.generate(messages=messages, max_tokens=8).token_ids == second.token_ids
    chat.save(tmp_path / "saved.json")
    other = model.chat(max_tokens=8)
    other.load(tmp_path / "saved.json")
    assert other.ask("Why?").token_ids == chat.ask("Why?").token_ids


def test_turns_are_prepared_once(model: OneVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Earlier images are not cut again; another one changes how all of them are cut."""
    cut: list[bool] = []
    image = Preparer._image

    def counted(self: Preparer, part: ImagePart, several: bool, *more: Any) -> VisualInput:
        cut.append(several)
        return image(self, part, several, *more)

    monkeypatch.setattr(Preparer, "_image", counted)
    chat = model.chat(max_tokens=2)
    chat.add_image(photograph("china"))
    chat.ask("What is it?")
    again = chat.ask("And now?")
    assert cut == [False]
    assert again.timings.read == again.timings.preprocess == 0
    chat.add_image(photograph("flower"))
    chat.ask("Which is it?")
    chat.ask("And now?")
    assert cut == [False, True, True]
    chat.reset()
    chat.add_image(photograph("flower"))
    chat.ask("What is it?")
    assert cut == [False, True, True, False]


def test_a_question_that_does_not_fit_loses_nothing(model: OneVision):
    chat = model.chat(max_tokens=2)
    chat.ask("Hi.")
    with pytest.raises(PromptError, match="the prompt needs"):
        chat.ask("0123456789 " * 4000)
    assert [turn.prompt for turn in chat.turns] == ["Hi."]
    assert chat.dropped == 0
    assert chat.ask("And now?").usage.cached_tokens > 0


def test_an_answer_longer_than_the_context_drops_no_turns(model: OneVision, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model.pipeline.backbone, "context_length", 200)
    chat = model.chat(max_tokens=10_000, stop=("e", "a", "o", "n"))
    for _ in range(2):
        chat.ask("Hi.")
    assert (chat.dropped, len(chat.turns)) == (0, 2)


def test_the_system_prompt_is_saved(model: OneVision, tmp_path: Path):
    chat = model.chat(max_tokens=4, system="Be brief.")
    chat.ask("Hi.")
    chat.save(tmp_path / "saved.json")
    other = model.chat(max_tokens=4)
    other.load(tmp_path / "saved.json")
    assert other.ask("Why?").token_ids == chat.ask("Why?").token_ids


def test_the_oldest_turns_are_dropped(model: OneVision, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model.pipeline.backbone, "context_length", 120)
    chat = model.chat(max_tokens=8)
    for _ in range(4):
        chat.ask("What is it that is on the table beside the window?")
    assert chat.dropped > 0
    assert len(chat.turns) + chat.dropped == 4
    chat.reset()
    assert chat.turns == []


def test_a_file_that_is_no_conversation_is_told(model: OneVision, tmp_path: Path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(PromptError, match="not valid JSON"):
        model.chat().load(tmp_path / "bad.json")
