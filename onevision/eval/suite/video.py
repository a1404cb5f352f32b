"""Videos of eight frames: direction, order of appearance, number of flashes, what changes."""

from __future__ import annotations

from random import Random

import numpy as np

from onevision.eval.suite.draw import Canvas, shade, tilt
from onevision.eval.suite.sample import Scene, Split, ask
from onevision.eval.suite.vocabulary import COLORS, Thing, a_thing, draw_speed, draw_things, things

FRAMES = 8
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CHANGES = ("colour", "shape", "size", "position")
FLASHES = ("1", "2", "3", "4")


def moving(random: Random, split: Split) -> Scene:
    """A thing crosses the image; its place alone does not give the direction away."""
    canvas, side = _stage(random)
    color, shape = random.choice(things(split))
    direction = random.choice(sorted(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    speed, size = draw_speed(random, split), random.uniform(0.26, 0.34)
    middle = [random.uniform(0.5 - (0.33 - speed / 2), 0.5 + (0.33 - speed / 2)) for _ in range(2)]
    across = [random.uniform(0.3, 0.7) for _ in range(2)]
    rgb, angle = shade(random, color), tilt(random, shape)
    frames = []
    for at in range(FRAMES):
        step = speed * (at / (FRAMES - 1) - 0.5)
        x = middle[0] + dx * step if dx else across[0]
        y = middle[1] + dy * step if dy else across[1]
        frame = canvas.copy()
        frame.shape(shape, rgb, (x * side, y * side), size * side, angle)
        frames.append(frame)
    question = ask(random, "direction", direction, DIRECTIONS, aliases=(f"to the {direction}",), shape=shape)
    facts = {"thing": (color, shape), "direction": direction, "speed": speed}
    caption = f"There is {a_thing((color, shape))} that moves {direction}."
    return Scene.of(_film(frames), caption, [question], facts)


def order(random: Random, split: Split) -> Scene:
    """Three things appear one after the other, and stay."""
    canvas, side = _stage(random)
    drawn = draw_things(random, split, 3)
    starts = [0, random.randint(2, 3), random.randint(5, 6)]
    places = random.sample(((0.25, 0.27), (0.75, 0.27), (0.25, 0.73), (0.75, 0.73), (0.5, 0.5)), 3)
    frames = []
    for at in range(FRAMES):
        for (color, shape), start, (x, y) in zip(drawn, starts, places, strict=True):
            if at == start:
                canvas.shape(
                    shape, shade(random, color), (x * side, y * side), side * 0.32, tilt(random, shape)
                )
        frames.append(canvas.copy())
    colors = [color for color, _ in drawn]
    questions = [
        ask(random, "order", color, colors, len(COLORS), when=when)
        for when, color in zip(("first", "second", "last"), colors, strict=True)
    ]
    caption = "First " + ", then ".join(map(a_thing, drawn)) + " appears."
    return Scene.of(_film(frames), caption, questions, {"things": drawn, "starts": starts})


def flashing(random: Random, split: Split) -> Scene:
    """A thing lights up one to four times, for one frame each."""
    canvas, side = _stage(random)
    count = random.choice(FLASHES)
    lit = _apart(random, int(count))
    color, shape = random.choice(things(split))
    place = random.uniform(0.3, 0.7) * side, random.uniform(0.3, 0.7) * side
    size, angle, rgb = side * random.uniform(0.4, 0.55), tilt(random, shape), shade(random, color)
    off = (120, 120, 120)
    frames = []
    for at in range(FRAMES):
        frame = canvas.copy()
        frame.shape(shape, rgb if at in lit else off, place, size, angle)
        frames.append(frame)
    times = "once" if count == "1" else f"{count} times"
    question = ask(random, "flashes", count, FLASHES, shape=shape, times=times)
    caption = f"There is {a_thing((color, shape))} that lights up {times}."
    return Scene.of(_film(frames), caption, [question], {"lit": lit})


def changing(random: Random, split: Split) -> Scene:
    """A thing changes its color, shape, size or position, at a frame in the middle."""
    canvas, side = _stage(random)
    kind, turn = random.choice(CHANGES), random.randint(3, 5)
    before = random.choice(things(split))
    after = _changed(before, kind, random, split)
    sizes = [random.uniform(0.3, 0.42)] * 2
    if kind == "size":
        sizes = random.sample((random.uniform(0.2, 0.24), random.uniform(0.46, 0.52)), 2)
    spots = ((0.32, 0.32), (0.68, 0.32), (0.32, 0.68), (0.68, 0.68))
    places = random.sample(spots, 2) if kind == "position" else [random.choice(spots)] * 2
    looks = [shade(random, color) for color, _ in (before, after)]
    rgbs = looks if kind == "colour" else looks[:1] * 2
    frames = []
    for at in range(FRAMES):
        now = int(at >= turn)
        x, y = places[now]
        frame = canvas.copy()
        frame.shape((before, after)[now][1], rgbs[now], (x * side, y * side), sizes[now] * side)
        frames.append(frame)
    question = ask(random, "change", kind, CHANGES)
    facts = {"before": before, "after": after, "sizes": sizes, "places": places}
    return Scene.of(_film(frames), f"The {kind} changes.", [question], facts)


def _stage(random: Random) -> tuple[Canvas, int]:
    """An empty square canvas, and its side."""
    side = random.randint(66, 84)
    return Canvas(random, (side, side)), side


def _film(frames: list[Canvas]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """All frames with the same grain, uint8 [FRAMES, side, side, 3]."""
    grain = frames[0].random.choice((0.0, 2.0, 4.0))
    return np.stack([frame.finish(grain) for frame in frames])


def _changed(thing: Thing, kind: str, random: Random, split: Split) -> Thing:
    """The thing after a change of its color or shape, itself after any other."""
    if kind not in ("colour", "shape"):
        return thing
    stays = 1 if kind == "colour" else 0
    return random.choice(
        [other for other in things(split) if other[stays] == thing[stays] and other != thing]
    )


def _apart(random: Random, count: int) -> list[int]:
    """Frames without neighbors, all sets equally likely."""
    gaps = sorted(random.sample(range(FRAMES - count + 1), count))
    return [gap + at for at, gap in enumerate(gaps)]
