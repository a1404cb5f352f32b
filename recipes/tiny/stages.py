"""The curriculum: reference stages 1, 1.5, 2-SI and 2-OV, and before them a stage 0 in four parts.

Stage 0 stands for what the published model starts from: the tower learns to name what patches show
(:mod:`recipes.tiny.tiles`; SigLIP's pretraining on pictures), the language model to look things up
(:mod:`recipes.tiny.lookup`) and to answer questions about captions that it is told (Qwen2's), the projector
to name patches in the language model's own words (SigLIP's pretraining on pairs). Data of a step comes from
the step's number alone, whatever came before: it can be made ahead, in other processes, and a run that was
cut off goes on with the very next batch.

A stage of its own, :data:`FURTHER`, takes a finished checkpoint further.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from onevision.eval.suite import FAMILIES, build_scene
from recipes.tiny.brief import brief_pairs
from recipes.tiny.data import MOST_QUESTIONS, Encoder, collate, turns_of
from recipes.tiny.lookup import lookup
from recipes.tiny.tiles import LabelledTiles, labelled_tiles

if TYPE_CHECKING:
    from recipes.tiny.data import Batch, Row

Part = Literal["tower", "projector", "language", "head"]

_READ = {"sign": 2.0, "small_print": 1.5, "form": 1.5, "bars": 1.5, "table": 1.5, "screen": 2.0}
_SEE = {"objects": 2.0, "pair": 1.0, "crowd": 1.5, "sum": 1.0}
LOOKUP = "lookup"  # instead of a scene: a list, and what it says
_SEVERAL = {"same": 1.0, "difference": 1.5, "which_has": 1.0, "more": 1.0}
_VIDEO = {"moving": 1.0, "order": 1.0, "flashing": 1.0, "changing": 1.0}
_TEXT = {"text": 0.7}
_SINGLE = _READ | _SEE
# Few things and few tiles first: what is seen and what is asked are joined sooner.
_PLAIN = {
    "objects": 3.0,
    "pair": 2.0,
    "crowd": 1.5,
    "sign": 3.0,
    "sum": 1.5,
    "bars": 1.0,
    "screen": 1.0,
    "form": 0.5,
}


def _weighted(parts: dict[str, float], share: float) -> dict[str, float]:
    total = sum(parts.values())
    return {name: weight * share / total for name, weight in parts.items()}


@dataclass(frozen=True)
class Stage:
    """One stage. Learning rates are peaks; a part that is not named is frozen."""

    name: str
    share: float  # of the whole time
    rates: dict[Part, float]
    scenes: dict[str, float]  # kinds, LOOKUP among them, with their weights; none: labelled tiles
    caption: bool = False
    questions: int = MOST_QUESTIONS  # of a scene, at most
    brief: int = 0  # brief lessons of a scene, at most
    told: bool = False  # captions instead of pictures
    batch: int = 16  # scenes of a step, or canvases of labelled tiles
    tiles: int = 0  # canvases of labelled tiles besides the scenes


_LM = 2.5e-3


def _full(language: float) -> dict[Part, float]:
    return {"tower": language / 5, "projector": language, "language": language, "head": 1e-3}


STAGES: tuple[Stage, ...] = (
    Stage("0-tower", 0.18, {"tower": 2.5e-3, "head": 1e-3}, {}, batch=8),
    Stage("0-lookup", 0.025, {"language": _LM}, {LOOKUP: 1.0}, batch=32),
    Stage(
        "0-language",
        0.035,
        {"language": _LM},
        _SINGLE | _TEXT | _SEVERAL | _VIDEO | {LOOKUP: 6.0},
        caption=True,
        told=True,
    ),
    Stage("0-projector", 0.015, {"projector": 4e-3, "head": 1e-3}, {}, batch=4),
    Stage("1", 0.01, {"projector": 4e-3}, _SINGLE, caption=True, questions=0),
    Stage("1.5", 0.165, _full(2e-3), _PLAIN | {"text": 0.5}, caption=True, questions=3, brief=8, tiles=2),
    Stage("2-si", 0.22, _full(1.2e-3), _SINGLE | _TEXT, questions=4, brief=6, tiles=2),
    # The paper's pie of the last stage: 31 % single image, 43 % several, 26 % video.
    Stage(
        "2-ov",
        0.35,
        _full(1e-3),
        _weighted(_SINGLE | _TEXT, 0.31) | _weighted(_SEVERAL, 0.43) | _weighted(_VIDEO, 0.26),
        questions=4,
        brief=4,
        tiles=2,
    ),
)

#: Most of it what a finished checkpoint is weak at: small things and reading, a tower that is not sure.
FURTHER = Stage(
    "further",
    1.0,
    _full(1e-3) | {"tower": 4e-4},
    _weighted(
        _SINGLE | {"objects": 2.5, "crowd": 3.5, "sum": 2.5, "table": 2.0, "small_print": 2.0, "text": 1.0},
        0.6,
    )
    | _weighted(_SEVERAL, 0.22)
    | _weighted(_VIDEO, 0.18),
    questions=4,
    brief=6,
    tiles=3,
)
ALL_STAGES = (*STAGES, FURTHER)

HELD_OUT_SCENES = 12  # of each kind
# Few different shapes: oneDNN makes a kernel for each, and remembers about a thousand.
LENGTH_STEP, TILE_STEP = 32, 4


@dataclass(frozen=True)
class StepSize:
    """How large a step is.

    A few small micro-batches suit the cores of a CPU, two large ones a GPU.
    """

    times: int = 1  # as much data as the stage says
    parts: int = 4  # rows are sorted by length and cut into so many, so that little is padding

    def rates(self, stage: Stage) -> dict[Part, float]:
        """The stage's peak rates. Where all parts learn, larger steps allow higher ones."""
        scale = self.times**0.25 if {"tower", "language"} <= stage.rates.keys() else 1.0
        return {part: rate * scale for part, rate in stage.rates.items()}


def make_step(
    encoder: Encoder, stage: Stage, seed: int, step: int, size: StepSize
) -> list[Batch | LabelledTiles]:
    """The data of one step, in parts of equal weight. The same arguments give the same data."""
    batch = stage.batch * size.times
    number = ALL_STAGES.index(stage) * 10**9 + step * batch
    if not stage.scenes:
        half = batch // 2
        return [labelled_tiles(seed, number + at, half) for at in (0, half)]
    rows = []
    for at in range(batch):
        random = Random(f"step {seed} {number + at}")  # noqa: S311
        name = random.choices(list(stage.scenes), list(stage.scenes.values()))[0]
        if name == LOOKUP:
            text, found = lookup(random)
            rows.append(encoder.text_row(text, LOOKUP, found))
            continue
        scene = build_scene(name, "train", seed, number + at)
        brief = brief_pairs(name, scene, random, stage.brief)
        turns = turns_of(
            scene,
            random,
            caption=stage.caption,
            questions=stage.questions,
            brief=brief,
            told=stage.told,
        )
        rows.append(encoder.row(scene, turns, blind=stage.told))
    besides = [labelled_tiles(seed, number, stage.tiles * size.times)] if stage.tiles else []
    return [*_micro_batches(rows, size.parts), *besides]


def held_out_batches(encoder: Encoder) -> list[Batch]:
    """Test scenes of all kinds with their questions, always the same."""
    batches = []
    for name in dict.fromkeys(FAMILIES.values()):
        rows = []
        for number in range(HELD_OUT_SCENES):
            scene, random = build_scene(name, "test", 0, number), Random(f"held out {name} {number}")  # noqa: S311
            rows.append(encoder.row(scene, turns_of(scene, random, caption=False)))
        batches.append(collate(rows, length_step=LENGTH_STEP, tile_step=TILE_STEP))
    return batches


def _micro_batches(rows: list[Row], count: int) -> list[Batch]:
    rows = sorted(rows, key=lambda row: len(row.ids))
    size = -(-len(rows) // count)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [collate(part, length_step=LENGTH_STEP, tile_step=TILE_STEP) for part in reversed(parts)]
