r"""Questions to ask: the tiny suite, or a user's file. Both have a length and can be iterated again.

A user's file is JSON Lines; relative paths start at the folder of the file::

    {"prompt": "What color is the door?", "image": "door.jpg", "answers": ["red", "dark red"]}
    {"prompt": "Which is newer?\nA. the first\nB. the second", "images": ["a.png", "b.png"],
     "answer": "B", "form": "letter", "family": "age", "id": "age-1"}

``form`` says how an answer is scored, see :func:`onevision.eval.suite.score`: ``short`` (the default),
``letter``, or ``sentence``, where the first answer is the full sentence and the others are phrases that are
accepted as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

from onevision.errors import ImageError, InputError, UsageError, VideoError, suggest
from onevision.eval.jsonl import read_objects
from onevision.eval.suite import FAMILIES, Sample, iter_samples
from onevision.eval.suite.sample import Form, normalize
from onevision.runtime.kinds import existing_file

SUITES = ("tiny",)
#: Name of the questions file in a folder.
QUESTIONS = "questions.jsonl"
#: Samples of each family of the tiny suite, unless a limit is given.
SAMPLES_EACH = 100
#: Family of a question that names none.
DEFAULT_FAMILY = "all"

#: What LLaVA's data sets put before a question; images and videos come first here, too.
_PLACEHOLDERS = re.compile(r"\A(?:\s*(<image>|<video>)\s*)+")

_KEYS = ("prompt", "image", "images", "video", "answer", "answers", "form", "family", "id")


@dataclass(frozen=True)
class TinySuite:
    """Samples of the suite's test split, families in turn; generated again at each iteration.

    Sample k of a family does not depend on the other families.
    """

    families: tuple[str, ...]
    limit: int
    seed: int

    def __len__(self) -> int:
        return self.limit

    def __iter__(self) -> Iterator[Sample]:
        streams = [iter_samples("test", self.seed, (family,)) for family in self.families]
        return islice(chain.from_iterable(zip(*streams, strict=True)), self.limit)


#: Questions of a run: they have a length, and can be iterated again.
Questions = TinySuite | tuple[Sample, ...]


def choose_questions(
    suite: str | None = None,
    file: Path | None = None,
    *,
    families: Sequence[str] = (),
    limit: int | None = None,
    seed: int | None = None,
) -> tuple[Questions, dict[str, Any]]:
    """Questions of a suite, or of a user's file.

    Args:
        suite: Name of a suite, one of :data:`SUITES`; None for ``tiny``.
        file: Instead of a suite: a JSONL file, or a folder with ``questions.jsonl``.
        families: Families to ask; empty for all.
        limit: Number of questions; None for 100 of each family of a suite, or the whole file.
        seed: Seed of a suite; None for 0.

    Returns:
        The questions, and where they come from, as in the JSON of ``onevision eval``.

    Raises:
        UsageError: Unknown suite or family, or options that exclude each other.
        InputError: The file cannot be read, or has something wrong in it.
    """
    if file is not None:
        if suite is not None or seed is not None:
            raise UsageError("--questions cannot be combined with --suite or --seed")
        return read_questions(file, families, limit=limit), {"questions": str(file)}
    if suite not in (None, *SUITES):
        raise UsageError(f"unknown suite {suite!r}", hint=suggest(suite, SUITES))
    samples = tiny_suite(families, limit=limit, seed=seed or 0)
    return samples, {"suite": SUITES[0], "seed": samples.seed}


def tiny_suite(families: Sequence[str] = (), *, limit: int | None = None, seed: int = 0) -> TinySuite:
    """Choose questions of the generated suite.

    Args:
        families: Names from :data:`onevision.eval.suite.FAMILIES`; empty for all.
        limit: Number of samples; None for :data:`SAMPLES_EACH` of each family.
        seed: Seed of the samples.

    Raises:
        UsageError: Unknown family.
    """
    chosen = _chosen(families, FAMILIES)
    return TinySuite(chosen, SAMPLES_EACH * len(chosen) if limit is None else limit, seed)


def read_questions(
    place: Path, families: Sequence[str] = (), *, limit: int | None = None
) -> tuple[Sample, ...]:
    """Read and check a user's questions. Images are decoded only when their question is asked.

    Args:
        place: The file, or a folder with a file :data:`QUESTIONS`.
        families: Families to keep; empty for all.
        limit: Number of questions to keep; None for all.

    Raises:
        InputError: No such file, no question in it, or a line that is wrong.
        UsageError: Unknown family, or a video without PyAV.
    """
    path = place / QUESTIONS if place.is_dir() else place
    samples: list[Sample] = []
    line_of: dict[str, int] = {}
    for number, data in read_objects(path).items():
        try:
            sample = _sample(data, number, path.parent)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error.message}", hint=error.hint) from error
        if (first := line_of.setdefault(sample.id, number)) != number:
            raise InputError(
                f"{path}, line {number}: the id {sample.id!r} is that of line {first}",
                hint="a question without an id gets the number of its line",
            )
        samples.append(sample)
    if not samples:
        raise InputError(f"{path} has no questions", hint='{"prompt": "…", "image": "a.png", "answer": "…"}')
    chosen = _chosen(families, dict.fromkeys(sample.family for sample in samples))
    kept = tuple(sample for sample in samples if sample.family in chosen)[:limit]
    if any(sample.video is not None for sample in kept) and find_spec("av") is None:
        raise UsageError(f"{path} asks about videos, which need PyAV", hint="pip install 'onevision[video]'")
    return kept


def _chosen(wanted: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """The wanted families without repetition, or all."""
    names = tuple(known)
    if unknown := [name for name in wanted if name not in names]:
        raise UsageError(f"there is no family {unknown[0]!r}", hint=suggest(unknown[0], names))
    return tuple(dict.fromkeys(wanted)) or names


def _sample(data: dict[str, Any], number: int, folder: Path) -> Sample:
    """Convert one line. A key whose value is null counts as left out."""
    given = {key: value for key, value in data.items() if value is not None}
    if unknown := [key for key in given if key not in _KEYS]:
        raise InputError(f"unknown key {unknown[0]!r}", hint=f"known: {', '.join(_KEYS)}")
    if "prompt" not in given:
        raise InputError("there is no prompt")
    form = given.get("form", "short")
    if form not in get_args(Form):
        raise InputError(f"form is {form!r}", hint=f"one of {', '.join(get_args(Form))}")
    images = tuple(_file(name, folder, ImageError) for name in _texts(given, "image", "images"))
    video = _file(_text(given["video"], "video"), folder, VideoError) if "video" in given else None
    if images and video:
        raise InputError("a question has images or a video, not both")
    prompt = _text(given["prompt"], "prompt")
    if place := _PLACEHOLDERS.match(prompt):
        if not images and not video:
            raise InputError(f"the prompt has {place[1]}, and there is no image or video")
        prompt = _text(prompt[place.end() :], "prompt")
    return Sample(
        id=_text(given.get("id", number), "id"),
        family=_text(given.get("family", DEFAULT_FAMILY), "family"),
        kind="video" if video else ("text", "image", "images")[min(len(images), 2)],
        form=form,
        prompt=prompt,
        images=images,
        video=video,
        answers=_answers(given, form),
        chance=None,
    )


def _answers(given: dict[str, Any], form: Form) -> tuple[str, ...]:
    answers = _texts(given, "answer", "answers")
    if not answers:
        raise InputError("there is no answer", hint='"answer": "red", or "answers": ["red", "dark red"]')
    for answer in answers:
        if form == "letter" and not re.fullmatch("[A-Z]", answer):
            raise InputError(f"the answer {answer!r} is not a letter from A to Z")
        if not normalize(answer):
            raise InputError(f"the answer {answer!r} has no letter or digit")
    return answers


def _texts(given: dict[str, Any], one: str, many: str) -> tuple[str, ...]:
    """Texts under either of two keys: a text under ``one``, or a list under ``many``."""
    if one in given and many in given:
        raise InputError(f"there are both {one} and {many}")
    if one in given:
        return (_text(given[one], one),)
    values = given.get(many, [])
    if not isinstance(values, list):
        raise InputError(f"{many} is not a list")
    return tuple(_text(value, f"{many}[{at}]") for at, value in enumerate(values))


def _text(value: object, key: str) -> str:
    """Check a text, which must not be blank; a whole number is converted."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{key} is not a text")
    if not value.strip():
        raise InputError(f"{key} is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{key} is not valid Unicode")
    return value


def _file(name: str, folder: Path, error: type[InputError]) -> Path:
    """Path of an existing file; a relative name starts at ``folder``."""
    place = name if "://" in name else folder / name
    try:
        return existing_file(place, error)
    except error as missing:
        raise error(missing.message, hint=f"relative paths start at {folder.absolute()}") from missing
