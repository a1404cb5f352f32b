"""Endless scenes and samples from a seed. Each is drawn from its own number, so any can be drawn alone."""

# ruff: noqa: S311  # samples are drawn, not secrets
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from random import Random

from onevision.errors import UsageError, suggest
from onevision.eval.suite import documents, general, reading, several, video
from onevision.eval.suite.sample import Sample, Scene, Split, pose

#: Builders of scenes by name, with the families of questions about them.
BUILDERS: dict[str, tuple[Callable[[Random, Split], Scene], tuple[str, ...]]] = {
    "objects": (general.objects, ("colour", "shape", "position")),
    "pair": (general.pair, ("relation",)),
    "crowd": (general.crowd, ("count", "compare_counts")),
    "sign": (reading.sign, ("word", "number")),
    "small_print": (reading.small_print, ("small_print",)),
    "form": (documents.form, ("field",)),
    "bars": (documents.bars, ("highest_bar", "bar_value")),
    "table": (documents.table, ("cell",)),
    "screen": (documents.screen, ("button",)),
    "sum": (reading.sum_in_image, ("sum",)),
    "text": (reading.text, ("text_sum", "text_list", "text_fact")),
    "same": (several.same, ("same",)),
    "difference": (several.difference, ("difference",)),
    "which_has": (several.which_has, ("which_has",)),
    "more": (several.more, ("which_more",)),
    "moving": (video.moving, ("direction",)),
    "order": (video.order, ("order",)),
    "flashing": (video.flashing, ("flashes",)),
    "changing": (video.changing, ("change",)),
}

#: Families of questions, with the name of their scenes.
FAMILIES: dict[str, str] = {family: name for name, (_, families) in BUILDERS.items() for family in families}


def build_scene(name: str, split: Split, seed: int, number: int) -> Scene:
    """Draw scene ``number`` of a kind. The same arguments give the same scene."""
    build, _ = BUILDERS[name]
    return build(Random(f"{split} {seed} {name} {number}"), split)


def iter_scenes(split: Split, seed: int, names: Sequence[str] | None = None) -> Iterator[Scene]:
    """Draw scenes of all kinds in turn, or of those named, without end."""
    chosen = tuple(names or BUILDERS)
    for number in count():
        yield build_scene(chosen[number % len(chosen)], split, seed, number)


def iter_samples(split: Split, seed: int, families: Sequence[str] | None = None) -> Iterator[Sample]:
    """Draw samples of all families in turn, or of those named, without end; each has a scene of its own.

    Raises:
        UsageError: Unknown family.
    """
    chosen = tuple(families or FAMILIES)
    if unknown := [family for family in chosen if family not in FAMILIES]:
        raise UsageError(
            f"the tiny suite has no family {', '.join(unknown)}", hint=suggest(unknown[0], FAMILIES)
        )
    for number in count():
        yield build_sample(chosen[number % len(chosen)], split, seed, number)


def build_sample(family: str, split: Split, seed: int, number: int) -> Sample:
    """Draw sample ``number`` of a family. The same arguments give the same sample."""
    name = f"{split} {seed} {family} {number}"
    scene = BUILDERS[FAMILIES[family]][0](Random(name), split)
    random = Random(f"{name} question")
    posed = pose(random.choice([asked for asked in scene.questions if asked.family == family]), random)
    return posed.sample(f"{family}-{split}-{seed}-{number}", family, scene, split)
