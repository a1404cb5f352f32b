"""Scenes to batches: tokenised, cut, and laid out so that all questions about a scene share its pictures.

A scene is one row: what its conversations have in common (system prompt, pictures), and behind it one segment
for each question. A segment sees the common part and itself, at the positions it would have alone, so that
each question is answered as if it had been the only one. NumPy alone; this runs in worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from onevision.eval.suite.sample import pose
from onevision.runtime import anyres, pack
from onevision.runtime.messages import conversation_of
from onevision.runtime.prompt import Control, Visual, render
from recipes.tiny.model import PATCHES, SIDE, SPEC, TILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from numpy.typing import NDArray

    from onevision.eval.suite import Sample, Scene

CAPTION_PROMPT = "Describe what is shown."
CAPTION = "caption"  # the family of such a turn
BRIEF = "brief"  # the family of a brief lesson
MOST_QUESTIONS = 5  # of one scene
TAPS = 4  # features that a bilinear resample mixes at most
IGNORED = -100  # label of a position that is not learned
_VISUAL = -1


@dataclass(frozen=True)
class Turn:
    """A prompt and the answer that it is to get."""

    family: str
    prompt: str
    answer: str


@dataclass(frozen=True, eq=False)
class Row:
    """A scene, laid out. The arrays have one entry per position."""

    tiles: NDArray[np.uint8]  # [T, S, S, 3]
    taps: NDArray[np.int64]  # [n, TAPS]: rows of this scene's features; T·P is the newline
    weights: NDArray[np.float32]  # [n, TAPS]
    ids: NDArray[np.int64]  # -1 where a visual token stands
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]  # 0 the common part, then 1, 2, …
    labels: NDArray[np.int64]  # the next token where it is an answer's
    families: tuple[str, ...]  # of segments 1, 2, …

    def extended(self, ids: Sequence[int]) -> Row:
        """This row of one question with more tokens behind it."""
        more = np.arange(1, len(ids) + 1)
        return replace(
            self,
            ids=np.append(self.ids, ids).astype(np.int64),
            positions=np.append(self.positions, self.positions[-1] + more),
            segments=np.append(self.segments, np.full_like(more, self.segments[-1])),
            labels=np.append(self.labels, np.full_like(more, IGNORED)),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of about one length, padded."""

    tiles: NDArray[np.uint8]  # [T, S, S, 3]
    taps: NDArray[np.int64]  # [n, TAPS]: rows of all features [T·P], then the newline
    weights: NDArray[np.float32]  # [n, TAPS]
    places: NDArray[np.int64]  # [n]: where the visual tokens go in the flattened batch
    ids: NDArray[np.int64]  # [B, L]
    positions: NDArray[np.int64]  # [B, L]
    segments: NDArray[np.int64]  # [B, L], -1 is padding
    labels: NDArray[np.int64]  # [B, L]
    families: tuple[tuple[str, ...], ...]  # of each row's segments


def turns_of(
    scene: Scene,
    random: Random,
    *,
    caption: bool,
    questions: int = MOST_QUESTIONS,
    brief: Sequence[tuple[str, str]] = (),
    told: bool = False,
) -> list[Turn]:
    """What is asked about a scene in training.

    Args:
        scene: The scene.
        random: Draws questions and forms.
        caption: Ask for the caption.
        questions: Ask so many of its questions at most.
        brief: Brief lessons besides, see :mod:`recipes.tiny.brief`.
        told: Begin each prompt with the caption, for a language model that cannot see yet.
    """
    turns = [Turn(CAPTION, CAPTION_PROMPT, scene.caption)] if caption and scene.caption else []
    for question in random.sample(scene.questions, min(questions, len(scene.questions))):
        posed = pose(question, random)
        turns.append(Turn(question.family, posed.prompt, posed.answers[0]))
    turns += [Turn(BRIEF, key, value) for key, value in brief]
    if told and scene.caption:
        return [Turn(turn.family, f"{scene.caption}\n{turn.prompt}", turn.answer) for turn in turns]
    return turns


class Encoder:
    """Lays out scenes.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self.end: int = tokenizer.token_to_id("<|im_end|>")

    def row(self, scene: Scene | Sample, turns: Sequence[Turn], *, blind: bool = False) -> Row:
        """Lay out a scene and what is asked about it; ``blind`` leaves its pictures out."""
        images, video = ((), None) if blind else (scene.images, scene.video)
        tiles, taps, weights, counts = _cut(images, video)
        prompts = [self.prompt(turn.prompt, images, video, counts) for turn in turns]
        common = _common(prompts)
        ids, segments, labels = prompts[0][:common], [0] * common, [IGNORED] * common
        positions = list(range(common))
        for number, (turn, prompt) in enumerate(zip(turns, prompts, strict=True), start=1):
            own, answer = prompt[common:], [*self.encode(turn.answer), self.end]
            new = own + answer[:-1]
            ids += new
            segments += [number] * len(new)
            positions += range(common, common + len(new))
            labels += [IGNORED] * (len(own) - 1) + answer
        return Row(
            tiles,
            taps,
            weights,
            ids=np.array(ids, np.int64),
            positions=np.array(positions, np.int64),
            segments=np.array(segments, np.int64),
            labels=np.array(labels, np.int64),
            families=tuple(turn.family for turn in turns),
        )

    def text_row(self, text: str, family: str, found: Sequence[tuple[str, str]]) -> Row:
        """Lay out a text, no conversation, and what follows from it: beginnings and how they go on."""
        ids = self.encode(text)
        common = len(ids)
        segments, labels, positions = [0] * common, [IGNORED] * common, list(range(common))
        for number, (beginning, rest) in enumerate(found, start=1):
            own, answer = self.encode(beginning), [*self.encode(rest), self.end]
            new = own + answer[:-1]
            ids += new
            segments += [number] * len(new)
            positions += range(common, common + len(new))
            labels += [IGNORED] * (len(own) - 1) + answer
        return Row(
            *_cut((), None)[:3],
            ids=np.array(ids, np.int64),
            positions=np.array(positions, np.int64),
            segments=np.array(segments, np.int64),
            labels=np.array(labels, np.int64),
            families=(family,) * len(found),
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without control tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(
        self,
        text: str,
        images: Sequence[NDArray[np.uint8]],
        video: NDArray[np.uint8] | None,
        counts: Sequence[int],
    ) -> list[int]:
        """Ids of a whole prompt, -1 for each visual token; ``counts`` has those of each picture or video."""
        ids: list[int] = []
        left = iter(counts)
        for segment in render(conversation_of(text, images, video, None)):
            if isinstance(segment, Control):
                ids.append(self._tokenizer.token_to_id(segment.token))
            elif isinstance(segment, Visual):
                ids += [_VISUAL] * next(left)
            else:
                ids += self.encode(segment)
        return ids


def collate(rows: Sequence[Row], *, length_step: int = 1, tile_step: int = 1) -> Batch:
    """Put rows together. Padding sees only itself and what pads before it.

    Args:
        rows: Of about one length.
        length_step: Pad to a multiple of this.
        tile_step: Pad with blank tiles to a multiple of this.
    """
    longest = _rounded(max(len(row.ids) for row in rows), length_step)

    def padded(name: str, fill: int) -> NDArray[np.int64]:
        out = np.full((len(rows), longest), fill, np.int64)
        for line, row in zip(out, rows, strict=True):
            values = getattr(row, name)
            line[: len(values)] = values
        return out

    count = sum(len(row.tiles) for row in rows)
    blank = np.zeros((_rounded(count, tile_step) - count, TILE, TILE, 3), np.uint8)
    tiles = np.concatenate([*(row.tiles for row in rows), blank])
    newline, taps, before = len(tiles) * PATCHES, [], 0
    for row in rows:
        own = len(row.tiles) * PATCHES
        taps.append(np.where(row.taps == own, newline, row.taps + before))
        before += own
    ids = padded("ids", 0)
    return Batch(
        tiles=tiles,
        taps=np.concatenate(taps),
        weights=np.concatenate([row.weights for row in rows]),
        places=np.flatnonzero(ids == _VISUAL),
        ids=np.maximum(ids, 0),
        positions=padded("positions", 0),
        segments=padded("segments", -1),
        labels=padded("labels", IGNORED),
        families=tuple(row.families for row in rows),
    )


def _rounded(count: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-count // step) * step


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with. Their last foretells the answer's first, and stays out of it."""
    most = min(map(len, prompts)) - 1
    return next((at for at in range(most) if len({prompt[at] for prompt in prompts}) > 1), most)


def _cut(
    images: Sequence[NDArray[np.uint8]], video: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32], list[int]]:
    """Tiles, taps, weights and the count of visual tokens of each input, as the runtime would have them."""
    parts: list[tuple[NDArray[np.uint8], tuple[NDArray[np.int64], NDArray[np.float32]]]] = []
    if video is not None:
        frames = np.stack([anyres.squash(Image.fromarray(frame), TILE) for frame in video])
        parts.append((frames, _video_taps(len(frames))))
    elif len(images) == 1:
        tiles = anyres.split(Image.fromarray(images[0]), SPEC)
        parts.append((tiles.pixels, _image_taps(tiles.size)))
    else:
        parts += [
            (anyres.pad_square(Image.fromarray(image), TILE).pixels, _square_taps()) for image in images
        ]
    if not parts:
        return (
            np.empty((0, TILE, TILE, 3), np.uint8),
            np.empty((0, TAPS), np.int64),
            np.empty((0, TAPS), np.float32),
            [],
        )
    newline, before, taps = sum(len(pixels) for pixels, _ in parts) * PATCHES, 0, []
    for pixels, (own, _) in parts:
        features = len(pixels) * PATCHES
        taps.append(np.where(own == features, newline, own + before))
        before += features
    return (
        np.concatenate([pixels for pixels, _ in parts]),
        np.concatenate(taps),
        np.concatenate([weights for _, (_, weights) in parts]),
        [len(weights) for _, (_, weights) in parts],
    )


@lru_cache(maxsize=4096)
def _image_taps(size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rows, cols = SPEC.grid_shape(size)
    features, newline = _identity(1 + rows * cols)
    return _taps(pack.pack_image(features, size, SPEC, newline))


@lru_cache(maxsize=1)
def _square_taps() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return _taps(pack.pack_square(*_identity(1)))


@lru_cache(maxsize=16)
def _video_taps(frames: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    features, newline = _identity(frames)
    return _taps(pack.pack_video(features, SIDE, newline))


def _identity(tiles: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features that name themselves: packing is linear, so that packing these gives its matrix."""
    identity = np.eye(tiles * PATCHES + 1, dtype=np.float32)
    return identity[:-1].reshape(tiles, PATCHES, -1), identity[-1]


def _taps(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The few columns of each row that are not zero, and their values."""
    taps = np.argsort(-matrix, axis=1, kind="stable")[:, :TAPS].astype(np.int64)
    return taps, np.take_along_axis(matrix, taps, axis=1)
