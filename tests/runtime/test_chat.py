"""Conversations: the answers of `run`, and nothing read twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from onevision import OneVision
from onevision.errors import PromptError
from tests.runtime.media import photograph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
