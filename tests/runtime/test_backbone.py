"""The backbone: prefill, context and sampling of llama.cpp, against transformers' own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onevision.bundle import BACKBONE
from onevision.errors import BundleError, GenerationError, PromptError
from onevision.runtime import backbone as backbone_module
from onevision.runtime.backbone import CHUNK, CONTEXT_STEP, Backbone
from onevision.runtime.options import AnswerOptions
from onevision.runtime.sampler import Sampler
from onevision.runtime.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

#: Ids of text, as long as three chunks and a bit.
PROMPT = tuple(np.random.default_rng(5).integers(0, 700, 3 * CHUNK + 17).tolist())


@pytest.fixture(scope="module")
def backbone(toy_bundle: Path) -> Iterator[Backbone]:
    loaded = load(toy_bundle)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def embedding(toy_checkpoint: Path) -> npt.NDArray[np.float32]:
    """Rows of the token table, float32 [vocabulary, H]."""
    from onevision.export.checkpoint import Checkpoint

    with Checkpoint.open(toy_checkpoint) as checkpoint:
        return checkpoint.tensor("model.language_model.embed_tokens.weight").astype(np.float32)


def load(bundle: Path) -> Backbone:
    return Backbone(bundle / BACKBONE, device="cpu", threads=1, cache_type="f32", flash_attention=False)


def count_tokens(path: Path, texts: list[str]) -> int:
    """By the tokenizer alone, without the weights."""
    with open_tokenizer(path) as tokenizer:
        return sum(len(tokenizer.encode(text)) for text in texts)


def read(backbone: Backbone, *parts: Any, room: int = 0) -> npt.NDArray[np.float32]:
    """Logits after a prompt."""
    backbone.start(sum(len(part) for part in parts) + room)
    backbone.prefill(parts)
    return backbone.logits()


def assert_close(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> None:
    assert np.linalg.norm(ours - theirs) <= 2e-5 * np.linalg.norm(theirs)


# Prefill.


@pytest.mark.parametrize("chunk", [64, 500])
def test_prefill_in_chunks_is_prefill_in_one_go(
    toy_bundle: Path, backbone: Backbone, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    expected = read(backbone, PROMPT)
    monkeypatch.setattr(backbone_module, "CHUNK", chunk)
    in_chunks = load(toy_bundle)
    assert_close(read(in_chunks, PROMPT), expected)
    assert in_chunks.used == len(PROMPT)
    in_chunks.close()


def test_prefill_is_appending_token_by_token(backbone: Backbone):
    expected = read(backbone, PROMPT[:40])
    backbone.start(40)
    for token in PROMPT[:40]:
        backbone.append(token)
    assert_close(backbone.logits(), expected)
    assert backbone.used == 40


def test_embeddings_stand_in_for_the_tokens_they_are_of(
    backbone: Backbone, embedding: npt.NDArray[np.float32]
):
    expected = read(backbone, PROMPT)
    rows = embedding[list(PROMPT)]
    assert_close(read(backbone, rows), expected)
    assert_close(read(backbone, PROMPT[:30], rows[30:1000], PROMPT[1000:1001], rows[1001:]), expected)
    # Views that are not contiguous are read as they look.
    assert_close(read(backbone, np.asfortranarray(rows)), expected)
    assert_close(read(backbone, rows[::-1][::-1]), expected)


def test_progress_counts_every_token(backbone: Backbone):
    steps: list[int] = []
    backbone.start(len(PROMPT))
    backbone.prefill([PROMPT[:3], PROMPT[3:]], steps.append)
    assert sum(steps) == backbone.used == len(PROMPT)
    assert len(steps) == 5
    assert max(steps) == CHUNK


@pytest.mark.parametrize("shape", [(4, 127), (4, 256), (4,), (4, 128, 1)])
def test_embeddings_of_another_width_are_refused(backbone: Backbone, shape: tuple[int, ...]):
    backbone.start(4)
    with pytest.raises(GenerationError, match=r"not \[n, 128\]"):
        backbone.prefill([np.zeros(shape, np.float32)])


# The context.


def test_contexts_grow_are_reused_and_forget(backbone: Backbone):
    short, long = PROMPT[:50], PROMPT
    expected = read(backbone, short), read(backbone, long)
    grown = backbone.context
    assert_close(read(backbone, short), expected[0])
    assert backbone.context == grown, "a context with room enough was made anew"
    assert_close(read(backbone, long), expected[1])


def test_a_context_has_the_room_that_was_asked_for(toy_bundle: Path):
    small = load(toy_bundle)
    small.start(CONTEXT_STEP)
    small.prefill([PROMPT[:CONTEXT_STEP]])
    with pytest.raises(GenerationError, match="the context is full"):
        small.append(1)
    small.start(CONTEXT_STEP + 1)
    small.prefill([PROMPT[: CONTEXT_STEP + 1]])
    small.close()


def test_more_than_the_context_length_is_refused(backbone: Backbone):
    assert backbone.context_length == 32768
    with pytest.raises(PromptError, match="32,769 tokens are more than the model's context of 32,768"):
        backbone.start(32769)
    read(backbone, PROMPT[:5])  # still usable


def test_a_closed_backbone_says_so(toy_bundle: Path):
    closed = load(toy_bundle)
    tokenizer = closed.tokenizer
    read(closed, PROMPT[:5])
    closed.close()
    closed.close()
    with pytest.raises(GenerationError, match="is closed"):
        closed.start(5)
    with pytest.raises(GenerationError, match="is closed"):
        tokenizer.encode("Hi.")


def test_a_half_precision_cache_changes_little(toy_bundle: Path, backbone: Backbone):
    half = Backbone(toy_bundle / BACKBONE, device="cpu", threads=1, cache_type="f16")
    expected, logits = read(backbone, PROMPT[:200]), read(half, PROMPT[:200])
    half.close()
    assert 0 < np.linalg.norm(logits - expected) < 5e-3 * np.linalg.norm(expected)


def test_without_flash_attention_a_long_prompt_loses_little(toy_bundle: Path, backbone: Backbone):
    prompt = [PROMPT[at % len(PROMPT)] for at in range(1000)]
    half = Backbone(toy_bundle / BACKBONE, device="cpu", threads=1, cache_type="f16", flash_attention=False)
    expected, logits = read(backbone, prompt), read(half, prompt)
    half.close()
    assert 0 < np.linalg.norm(logits - expected) < 1e-3 * np.linalg.norm(expected)


# Files.

DAMAGE = {
    "empty": lambda data: b"",
    "another format": lambda data: b"PK\x03\x04" + data[4:],
    "header only": lambda data: data[:100],
    "half": lambda data: data[: len(data) // 2],
    "last byte missing": lambda data: data[:-1],
    "another architecture": lambda data: data.replace(b"qwen2", b"qwen9"),
    "noise": lambda data: np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_refused(toy_bundle: Path, tmp_path: Path, damage: Any):
    path = tmp_path / "backbone.gguf"
    path.write_bytes(damage((toy_bundle / BACKBONE).read_bytes()))
    for read_it in (lambda: Backbone(path, device="cpu"), lambda: count_tokens(path, ["Hi."])):
        with pytest.raises(BundleError, match=r"backbone\.gguf: \S") as caught:
            read_it()
        assert caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(BundleError, match=r"nowhere\.gguf"):
        Backbone(tmp_path / "nowhere.gguf", device="cpu")


def test_a_folder_may_have_any_name(toy_bundle: Path, tmp_path: Path):
    path = tmp_path / "größer 模型 '\"" / "back bone.gguf"
    path.parent.mkdir()
    path.write_bytes((toy_bundle / BACKBONE).read_bytes())
    assert count_tokens(path, ["Hi.", "there"]) == count_tokens(toy_bundle / BACKBONE, ["Hi.", "there"])


# The tokenizer.


def test_pieces_join_to_the_text(backbone: Backbone):
    tokenizer = backbone.tokenizer
    for text in ("", "Hi.", " two  spaces\n\n\ttab", "naïve 🙂 日本語", "null\0byte", "x" * 3000):
        ids = tokenizer.encode(text)
        assert b"".join(map(tokenizer.piece, ids)) == text.encode()


def test_control_tokens_have_ids_and_no_text(backbone: Backbone):
    tokenizer = backbone.tokenizer
    controls = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
    ids = [tokenizer.control_id(token) for token in controls]
    assert ids == list(range(755, 760))
    assert [tokenizer.ends(id_) for id_ in ids if id_] == [True, False, True, False, False]
    assert all(tokenizer.piece(id_) == b"" for id_ in ids if id_)
    assert tokenizer.control_id("<|im_middle|>") is None
    assert tokenizer.control_id("") is None


def test_rows_without_a_token_are_unused(backbone: Backbone):
    assert backbone.tokenizer.unused == range(760, 768)


# Sampling.

BANNED = (758, 759, *range(760, 768))


def draw(backbone: Backbone, count: int, **options: Any) -> list[int]:
    """Samples of the next token, all from the same logits."""
    options.setdefault("seed", 3)
    with Sampler(AnswerOptions(**options), backbone.tokenizer.size, BANNED) as sampler:
        return [sampler.sample(backbone) for _ in range(count)]


def write(backbone: Backbone, count: int, **options: Any) -> list[int]:
    """A continuation of the prompt."""
    read(backbone, PROMPT[:30], room=count)
    with Sampler(AnswerOptions(**options), backbone.tokenizer.size, BANNED) as sampler:
        tokens = []
        for _ in range(count):
            tokens.append(sampler.sample(backbone))
            backbone.append(tokens[-1])
    return tokens


@pytest.fixture
def scores(backbone: Backbone) -> npt.NDArray[np.float32]:
    """Logits that samples are drawn from, without the banned tokens."""
    logits = read(backbone, PROMPT[:30])
    logits[list(BANNED)] = -np.inf
    return logits


def test_greedy_is_the_largest_logit(backbone: Backbone, scores: npt.NDArray[np.float32]):
    assert set(draw(backbone, 5)) == {int(scores.argmax())}
    assert write(backbone, 24) == write(backbone, 24)


def test_the_same_seed_gives_the_same_answer(backbone: Backbone):
    once, again, other = (write(backbone, 24, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert once == again != other
    free = [tuple(write(backbone, 24, temperature=1.5)) for _ in range(3)]
    assert len(set(free)) == 3


def test_one_candidate_is_greedy(backbone: Backbone):
    greedy = write(backbone, 24)
    assert write(backbone, 24, temperature=2.0, top_k=1) == greedy
    assert write(backbone, 24, temperature=2.0, top_p=1e-6) == greedy
    assert write(backbone, 24, temperature=2.0, min_p=1.0) == greedy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_their_probability(
    backbone: Backbone, scores: npt.NDArray[np.float32], temperature: float
):
    count = 4000
    expected = softmax(scores / temperature)
    seen = np.bincount(draw(backbone, count, temperature=temperature), minlength=len(scores)) / count
    # The four likeliest, within four standard deviations, and all others together.
    top = np.argsort(-expected)[:4]
    for share, wanted in (
        *zip(seen[top], expected[top], strict=True),
        (seen[top].sum(), expected[top].sum()),
    ):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / count) + 1e-9


FILTERS = {
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.15},
    "min_p": {"min_p": 0.3},
    "all": {"top_k": 12, "top_p": 0.7, "min_p": 0.2},
}


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_candidates_are_those_of_transformers(
    backbone: Backbone, scores: npt.NDArray[np.float32], options: dict[str, Any]
):
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    temperature = 1.2
    kept = torch.from_numpy(scores)[None]
    kinds = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    for warp in (
        TemperatureLogitsWarper(temperature),
        *(kinds[key](value) for key, value in options.items()),
    ):
        kept = warp(None, kept)
    candidates = set(torch.nonzero(kept[0].isfinite()).flatten().tolist())
    assert 1 < len(candidates) < 100
    assert set(draw(backbone, 3000, temperature=temperature, **options)) == candidates


@pytest.mark.parametrize("penalty", [1.3, 2.0, 0.7])
def test_the_penalty_is_transformers_on_generated_tokens(backbone: Backbone, penalty: float):
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    processor = RepetitionPenaltyLogitsProcessor(penalty)
    logits = read(backbone, PROMPT[:30], room=40)
    expected: list[int] = []
    while len(expected) < 40:
        logits[list(BANNED)] = -np.inf
        seen = torch.tensor([expected], dtype=torch.long)
        token = int(processor(seen, torch.from_numpy(logits)[None]).argmax())
        expected.append(token)
        backbone.append(token)
        logits = backbone.logits()
    assert write(backbone, 40, repetition_penalty=penalty) == expected
    assert write(backbone, 40) != expected


def test_banned_tokens_never_come(backbone: Backbone, scores: npt.NDArray[np.float32]):
    seen = draw(backbone, 3000, temperature=5.0)
    assert len(set(seen)) > 300
    assert not set(seen) & set(BANNED)
    # They would have come, had they not been banned.
    with Sampler(AnswerOptions(temperature=5.0, seed=3), backbone.tokenizer.size, ()) as sampler:
        free = {sampler.sample(backbone) for _ in range(3000)}
    assert free & set(BANNED)


def test_a_sampler_can_be_closed_twice(backbone: Backbone):
    sampler = Sampler(AnswerOptions(), backbone.tokenizer.size, BANNED)
    sampler.close()
    sampler.close()


def softmax(scores: npt.NDArray[np.float32]) -> Sequence[float]:
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return powers / powers.sum()
