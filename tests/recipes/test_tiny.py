"""The recipe: packing against the reference, questions side by side and alone, resuming, exporting."""

from __future__ import annotations

import csv
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from onevision.eval.suite import FAMILIES, build_scene, iter_samples, score
from onevision.eval.suite.video import FRAMES
from onevision.eval.suite.vocabulary import HELD_OUT_NUMBERS, HELD_OUT_THINGS, HELD_OUT_WORDS
from onevision.export.checkpoint import Checkpoint
from onevision.export.tokenizer import read_tokenizer
from onevision.models import SHIPPED
from onevision.proof.reference import Reference
from onevision.runtime.engine import OneVision
from recipes.tiny import tiles, train
from recipes.tiny.brief import brief_pairs
from recipes.tiny.data import IGNORED, Encoder, Turn, collate, turns_of
from recipes.tiny.forward import LabelHead, answer, embeddings, features, hidden_states, learn
from recipes.tiny.lookup import lookup
from recipes.tiny.model import GRID, PATCHES, TILE, build_model, export_checkpoint
from recipes.tiny.optimiser import MasterOptimiser
from recipes.tiny.stages import FURTHER, STAGES, StepSize, make_step
from recipes.tiny.tiles import LABELS, SIDES, labelled_tiles
from recipes.tiny.tokenizer import label_tokens, load_tokenizer, read_vocabulary, train_tokenizer
from recipes.tiny.train import BySteps, ByTime, Trainer, learning_rate
from tests.conftest import make_bundle

KINDS = ("objects", "small_print", "same", "which_has", "moving", "text")


@pytest.fixture(scope="module")
def vocabulary():
    return train_tokenizer()


@pytest.fixture(scope="module")
def encoder(vocabulary, tmp_path_factory) -> Encoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary.write(folder)
    return Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))


@pytest.fixture(scope="module")
def lively(vocabulary):
    """A model whose answers depend on what it sees: random weights, larger than a start has them."""
    model = build_model(vocabulary, seed=3).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "position" not in name:
                parameter.normal_(std=1.3 / parameter.shape[1] ** 0.5)
    return model


@pytest.fixture(scope="module")
def checkpoint(lively, vocabulary, tmp_path_factory) -> Path:
    return export_checkpoint(lively, vocabulary, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def rounded(lively, vocabulary):
    """The lively model as its checkpoint has it, in float32 again."""
    model = build_model(vocabulary, seed=0).eval()
    model.load_state_dict({name: value.bfloat16().float() for name, value in lively.state_dict().items()})
    return model


@pytest.mark.parametrize("name", sorted(set(FAMILIES.values())))
def test_brief_lessons_are_short_and_each_key_has_one_answer(name):
    for number in range(30):
        scene = build_scene(name, "train", 5, number)
        pairs = brief_pairs(name, scene, Random(number), 8)
        assert len(pairs) <= 8
        assert len(dict(pairs)) == len(pairs)
        assert all(0 < len(text) <= 20 for pair in pairs for text in pair)


@pytest.mark.parametrize(
    ("family", "asked", "key"),
    [
        ("colour", r"What colour is the (\w+)\?", "{0}"),
        ("shape", r"What shape is the (\w+) thing\?", "{0}"),
        ("relation", r"Where is the (\w+):", "where {0}"),
        ("position", r"is the (\w+)\?", "where {0}"),
        ("count", r"How many (\w+?)(es|s)? are", "count {0}"),
        ("word", "Which word", "word"),
        ("number", "Which number", "number"),
        ("small_print", r"small (\w+) frame", "{0}"),
        ("field", r"next to (\w+)\?", "{0}"),
        ("highest_bar", r"the (\w+) bar", "{0}"),
        ("bar_value", r"the (\w+) bar", "{0}"),
        ("cell", r"row (\w), column (\w)", "{0} {1}"),
        ("button", r"the (\w+) button", "{0}"),
        ("sum", "the sum", "sum"),
        ("which_has", r"has an? (\w+ \w+)\?", "{0}"),
        ("direction", "which direction", "direction"),
        ("order", r"appears (\w+)", "{0}"),
    ],
)
def test_brief_lessons_say_what_the_questions_ask(family, asked, key):
    compared = 0
    for number in range(20):
        scene = build_scene(FAMILIES[family], "train", 6, number)
        pairs = dict(brief_pairs(FAMILIES[family], scene, Random(0), 1000))
        for question in scene.questions:
            if question.family == family:
                said = pairs.get(key.format(*re.search(asked, question.text).groups()))
                compared += said is not None
                assert said is None or question.answer.removesuffix(" of") in said
    assert compared >= 10


def test_the_checkpoint_is_small_and_published_in_shape(checkpoint):
    assert (checkpoint / "model.safetensors").stat().st_size < 20e6
    names = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    assert names <= {file.name for file in checkpoint.iterdir()}
    with Checkpoint.open(checkpoint) as opened:
        assert opened.config.text.hidden_size % 256 == 0
        assert opened.config.vision.image_size == TILE
        assert opened.config.frames == FRAMES
        assert len(opened.config.grid_pinpoints) == GRID**2
        tokenizer = read_tokenizer(checkpoint, opened.config)
    assert tokenizer.tokens[tokenizer.im_end_id] == "<|im_end|>"
    assert tokenizer.eos_id == tokenizer.im_end_id


def test_capitals_stay_single_letters(encoder):
    for word in ("OTTER", "TOTAL", "QUAIL", "47"):
        assert len(encoder.encode(word)) == len(word)
    assert len(encoder.encode("Answer the question using a single word or phrase.")) <= 12


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_the_references(checkpoint, rounded, encoder, kind):
    """Tiles, packing and token ids of transformers, against the batched gather."""
    scene = build_scene(kind, "test", 1, 0)
    with Checkpoint.open(checkpoint) as opened:
        case = Reference(opened).case("x", "What?", images=scene.images, video=scene.video)
    row = encoder.row(scene, [Turn("x", "What?", "")])
    assert np.array_equal(np.maximum(row.ids, 0)[row.ids >= 0], case.prompt_ids[case.prompt_ids >= 0])
    if case.embeddings is None:
        return
    assert np.array_equal(row.tiles, case.tiles)
    batch = collate([row])
    with torch.no_grad():
        ours = embeddings(rounded, batch).flatten(0, 1).numpy()[batch.places]
        logits = rounded.lm_head(hidden_states(rounded, batch)[0, -1]).numpy()
    assert np.abs(ours - case.embeddings.values).max() < 2e-4 * np.abs(ours).max()
    assert np.abs(logits - case.logits).max() < 1e-3 * np.abs(logits).max()


def test_questions_side_by_side_are_answered_as_if_alone(rounded, encoder):
    scenes = [build_scene(kind, "train", 2, 5) for kind in KINDS]
    asked = [turns_of(scene, Random(at), caption=True) for at, scene in enumerate(scenes)]
    rows = [encoder.row(scene, turns) for scene, turns in zip(scenes, asked, strict=True)]
    together = collate(rows, length_step=32, tile_step=4)
    alone = [
        collate([encoder.row(scene, [turn])])
        for scene, turns in zip(scenes, asked, strict=True)
        for turn in turns
    ]
    with torch.no_grad():
        losses = learn(rounded, together).losses
        singly = torch.cat([learn(rounded, batch).losses for batch in alone])
    assert len(losses) == len(alone) > len(scenes)
    assert torch.allclose(losses, singly, rtol=1e-3)


def test_only_answers_are_learned(encoder):
    scene = build_scene("pair", "train", 2, 0)
    turns = turns_of(scene, Random(0), caption=True)
    row = encoder.row(scene, turns)
    for number, turn in enumerate(turns, start=1):
        learned = row.labels[(row.segments == number) & (row.labels != IGNORED)]
        assert learned.tolist() == [*encoder.encode(turn.answer), encoder.end]
    assert (row.labels[row.segments == 0] == IGNORED).all()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_data_of_a_step_comes_from_its_number(encoder, stage):
    first, again, next_ = (make_step(encoder, stage, 1, step, StepSize())[0] for step in (4, 4, 5))
    for name in ("tiles", "ids") if stage.scenes else ("tiles",):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    told = "ids" if stage.scenes else "tiles"
    assert not np.array_equal(getattr(first, told), getattr(next_, told))
    if stage.scenes:
        assert len(first.families) == stage.batch // 4


def test_the_curriculum():
    assert sum(stage.share for stage in STAGES) == pytest.approx(1)
    assert [stage.name for stage in STAGES] == [
        "0-tower",
        "0-lookup",
        "0-language",
        "0-projector",
        "1",
        "1.5",
        "2-si",
        "2-ov",
    ]
    by_name = {stage.name: stage for stage in STAGES}
    assert set(by_name["1"].rates) == {"projector"}
    for name in ("1.5", "2-si", "2-ov"):
        assert by_name[name].rates["tower"] == pytest.approx(by_name[name].rates["language"] / 5)
    several = {"same", "difference", "which_has", "more", "moving", "order", "flashing", "changing"}
    for name in ("1", "1.5", "2-si"):
        assert not several & set(by_name[name].scenes)
    assert set(by_name["2-ov"].scenes) == set(FAMILIES.values())


def test_labelled_tiles_name_what_they_show():
    made = labelled_tiles(1, 0, 2)
    assert made.tiles.shape == (2 * GRID**2, TILE, TILE, 3)
    assert made.labels.shape == (2 * GRID**2, PATCHES, len(LABELS))
    things, sides = made.labels[..., : -len(SIDES)], made.labels[0, :, -len(SIDES) :]
    assert (made.labels[..., -len(SIDES) :] == sides).all()
    assert [sorted(np.flatnonzero(side)) for side in sides.T[[0, 2, 4]]] == [
        list(range(10)),
        [0, 1, 5, 6, 10, 11, 15, 16, 20, 21],
        [12],
    ]
    assert 0.3 < things.any(axis=2).mean() < 0.95
    # A patch without a label is smoother than one with.
    patches = made.tiles.reshape(-1, 5, 14, 5, 14, 3).swapaxes(2, 3).reshape(-1, PATCHES, 14 * 14 * 3)
    contrast = patches.std(axis=2)
    shows = things.any(axis=2)
    assert np.median(contrast[shows]) > 2 * np.median(contrast[~shows])


def test_stage_0_keeps_to_what_may_be_trained_on():
    texts = [tiles._text(Random(at)) for at in range(20000)]
    assert not set(texts) & (HELD_OUT_WORDS | HELD_OUT_NUMBERS)
    assert not [text for text in texts if "+" in text and len(text) > 1]


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate(at / 100) for at in range(101)]
    assert rates[0] < 0.1 < 0.9 < max(rates) <= 1
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)


def test_lookups_have_one_answer_each_and_keep_to_what_may_be_trained_on():
    for seed in range(3000):
        text, found = lookup(Random(seed))
        assert found
        assert len({(begin, rest) for begin, rest in found}) == len({begin for begin, _ in found})
        assert not set(re.findall("[A-Z]+|[0-9]+", text)) & (HELD_OUT_WORDS | HELD_OUT_NUMBERS)
        for begin, rest in found:
            assert rest.strip() in text or begin.startswith(
                ("count", "What is count", "Which is count", "the count")
            )
        assert not [
            (colour, shape)
            for colour, shape in HELD_OUT_THINGS
            if re.search(rf"\b({colour} {shape}|{shape}:? {colour})\b", text.replace(" is ", " "))
            and not re.search(rf"{shape}(, |\. |\n| and | ){colour}|{colour}(, |\. |\n| and | ){shape}", text)
        ]


def test_a_text_row_asks_each_thing_as_if_alone(rounded, encoder):
    text, found = "red 47, blue 12.\n", [("blue:", " 12"), ("47\n", "red"), ("red:", " 47")]
    together = collate([encoder.text_row(text, "lookup", found)])
    alone = [collate([encoder.text_row(text, "lookup", [pair])]) for pair in found]
    with torch.no_grad():
        losses = learn(rounded, together).losses
        assert torch.allclose(losses, torch.cat([learn(rounded, batch).losses for batch in alone]), rtol=1e-3)


def test_the_language_model_starts_by_looking_back_and_for_its_like(vocabulary):
    """A head of the first layer sees the token before, another the one before that, others the same token."""
    model = build_model(vocabulary, seed=1).eval()
    ids = torch.randint(300, (1, 12), generator=torch.Generator().manual_seed(1))
    ids[0, 9] = ids[0, 3]
    with torch.no_grad():
        seen = model.model.language_model(input_ids=ids, output_attentions=True).attentions[0][0]
    assert (seen[0].argmax(-1)[1:] == torch.arange(11)).all()
    assert (seen[1].argmax(-1)[2:] == torch.arange(10)).all()
    for head in (2, 3):
        assert seen[head][9, 3] > 2 * seen[head][9, [0, 1, 2, 4, 5, 6, 7, 8]].max()


def test_labels_are_the_language_models_own_words(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    pairs = label_tokens(vocabulary)
    assert len(pairs) == len(LABELS)
    for label, pair in zip(LABELS, pairs, strict=True):
        assert {tokenizer.decode([token]).strip() for token in pair} == {label}


def test_a_patch_projected_to_its_words_costs_least(lively, vocabulary):
    """The loss of stage 0 for the projector: lowest where each patch is the sum of its labels' embeddings."""
    batch = labelled_tiles(1, 0, 1)
    head = LabelHead(torch.tensor(label_tokens(vocabulary)))
    words = lively.get_input_embeddings().weight[head.words].mean(1)
    words = words / words.norm(dim=-1, keepdim=True)
    wanted = torch.from_numpy(batch.labels) @ words
    aligned = 3 * wanted + torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)) * 0.01
    with torch.no_grad():
        random = float(head.word_loss(lively, batch).loss)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lively.model, "multi_modal_projector", _Fixed(aligned))
            perfect = float(head.word_loss(lively, batch).loss)
    assert perfect < 0.5 * random


class _Fixed(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, _):
        return self.value


@pytest.mark.parametrize("threads", [1, 2])
def test_features_are_the_same_with_threads(lively, threads):
    batches = [labelled_tiles(1, number, 1).tiles[:4] for number in range(6)]
    with torch.no_grad(), ThreadPoolExecutor(threads) as pool:
        got = list(pool.map(lambda tiles: features(lively, tiles), batches))
        expected = [
            lively.model.vision_tower(
                torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1, output_hidden_states=True
            ).hidden_states[-1]
            for tiles in batches
        ]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(got, expected, strict=True))


def test_time_is_shared_by_the_stages():
    schedule = ByTime(hours=1)
    first, last = STAGES[0], STAGES[-1]
    assert schedule.progress(first, 0, 0) == 0
    assert schedule.progress(first, 999, first.share * 3600) == 1
    assert schedule.progress(last, 0, 3600) == 1
    assert schedule.progress(last, 0, 3600 * (1 - last.share) * 0.99) == pytest.approx(0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """One run without a break, and one that is stopped twice, in the middle of a stage, and goes on."""
    with pytest.MonkeyPatch.context() as patch:
        small = tuple(_small(stage) for stage in STAGES)
        for module in ("recipes.tiny.stages", "recipes.tiny.feed"):
            patch.setattr(f"{module}.ALL_STAGES", small)
        patch.setattr("recipes.tiny.stages.HELD_OUT_SCENES", 1)
        patch.setattr(train, "REPORT_STEPS", 2)
        folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "resumed")}
        Trainer(folders["whole"], BySteps(3), workers=0, stages=small).run()
        for stop_after in (1, 7, None):
            Trainer(folders["resumed"], BySteps(3), workers=0, stages=small).run(stop_after=stop_after)
    return folders


def _lines(log: Path) -> list[dict[str, str]]:
    with log.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _small(stage):
    return replace(stage, batch=2)


@pytest.mark.slow
def test_a_resumed_run_ends_where_the_whole_one_does(runs):
    whole, resumed = (torch.load(folder / "state.pt", weights_only=True) for folder in runs.values())
    assert whole["stage"] == resumed["stage"] == len(STAGES)
    assert whole["masters"].keys() == resumed["masters"].keys()
    for name, value in whole["masters"].items():
        assert torch.equal(value, resumed["masters"][name]), name
    tables = [_lines(folder / "log.csv") for folder in runs.values()]
    for table in tables:
        for line in table:
            del line["seconds"]
    held_out = [[line for line in table if line["kind"] == "held-out"] for table in tables]
    assert held_out[0] == held_out[1]
    assert {line["family"] for line in held_out[0]} == set(FAMILIES)


@pytest.mark.slow
def test_a_run_leaves_two_checkpoints_a_log_and_a_plot(runs):
    for folder in runs.values():
        assert {"si", "ov", "log.csv", "log.png", "state.pt"} <= {file.name for file in folder.iterdir()}
        assert not list(folder.glob("*.part"))
    weights = [(runs["whole"] / name / "model.safetensors").read_bytes() for name in ("si", "ov")]
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_each_stage_learns_its_parts(runs, vocabulary):
    """Nothing stays as it began but what no answer depends on."""
    masters = torch.load(runs["whole"] / "state.pt", weights_only=True)["masters"]
    started = dict(build_model(vocabulary, seed=1).named_parameters())
    untouched = [name for name, value in started.items() if torch.equal(value, masters[name])]
    assert all("post_layernorm" in name for name in untouched)
    assert untouched


@pytest.mark.slow
def test_another_seed_is_refused(runs):
    with pytest.raises(SystemExit, match="seed 1"):
        Trainer(runs["whole"], BySteps(3), seed=2, workers=0)


def test_a_finished_checkpoint_goes_further(tmp_path, monkeypatch):
    further = _small(FURTHER)
    for module in ("recipes.tiny.stages", "recipes.tiny.feed"):
        monkeypatch.setattr(f"{module}.ALL_STAGES", (further,))
    monkeypatch.setattr("recipes.tiny.stages.HELD_OUT_SCENES", 1)
    start = tmp_path / "start"
    shutil.copytree(SHIPPED["tiny", "ov"], start)
    # As if it had been trained elsewhere: two tokens of equal rank changed places.
    shipped = read_vocabulary(start)
    tokens = [*shipped.tokens[:-2], shipped.tokens[-1], shipped.tokens[-2]]
    replace(shipped, tokens=tuple(tokens)).write(start)
    trainer = Trainer(tmp_path, BySteps(1), workers=0, stages=(further,), start=start)
    assert trainer.vocabulary.tokens == tuple(tokens)
    assert trainer.vocabulary.merges == shipped.merges
    saved = dict(type(trainer.model).from_pretrained(start).named_parameters())
    for name, value in saved.items():
        assert torch.equal(trainer.masters[name], value.float()), name
    trainer.run()
    gone_on = dict(type(trainer.model).from_pretrained(tmp_path / "ov").named_parameters())
    moved = [name for name, value in saved.items() if not torch.equal(value, gone_on[name])]
    assert len(moved) > len(saved) // 2
    distances = [
        float(((gone_on[name] - value).norm() / value.norm()).detach()) for name, value in saved.items()
    ]
    assert max(distances) < 0.5, "it went on from there"


def test_a_stage_alone_has_all_the_time():
    schedule = ByTime(1, (FURTHER,))
    assert schedule.progress(FURTHER, 0, 0) == 0
    assert schedule.progress(FURTHER, 9, 0.99 * 1800) == pytest.approx(0.5)
    assert schedule.progress(FURTHER, 9, 3600) == 1


def test_loss_falls(vocabulary, encoder):
    model = build_model(vocabulary, seed=1).train()
    masters = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.to(torch.bfloat16)
    *data, _labelled = make_step(encoder, STAGES[6], 1, 0, StepSize())
    losses = []
    with ThreadPoolExecutor(1) as threads:
        optimiser = MasterOptimiser({"language": dict(model.named_parameters())}, masters, threads)
        for _ in range(8):
            learned = [learn(model, batch) for batch in data]
            loss = sum(part.loss for part in learned)
            loss.backward()
            optimiser.step({"language": 2e-3})
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_bundle_answers_as_the_torch_model(checkpoint, rounded, encoder, tmp_path):
    """Exported without a special case; greedy answers through the runtime, token for token."""
    bundle = make_bundle(checkpoint, tmp_path / "bundle", backbone="f32")
    families = ("colour", "small_print", "same", "which_has", "direction", "text_list")
    different = set()
    with OneVision.load(bundle, device="cpu", threads=2) as model:
        for sample in islice(iter_samples("test", 4, families), len(families)):
            got = model.generate(sample.prompt, images=sample.images, video=sample.video, max_tokens=8)
            expected = answer(rounded, encoder, sample, sample.prompt, most=8)
            assert list(got.token_ids) == expected, sample.family
            assert score(sample, got.text) is False
            different.add(got.text)
    assert len(different) > 1
