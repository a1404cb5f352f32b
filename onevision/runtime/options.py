"""Options of an answer: one dataclass for Python, ``run``, ``chat``, ``eval`` and ``plan``.

A field's metadata hold its valid values and what the command line shows: a new option is one new field.
"""

# ruff: noqa: RUF009 - _option is a field()

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from math import inf
from typing import TYPE_CHECKING, Any, Literal, get_args

from onevision.errors import UsageError, suggest
from onevision.runtime.forms import check_choices, grammar_text, parse_choices
from onevision.runtime.grammar import compile_grammar
from onevision.runtime.schema import schema_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: ``auto`` is the reference's choice. ``low`` is one tile, as for each of several images. ``high`` enlarges a
#: small image first, to the pixels of the most tiles whose tokens the model takes.
Detail = Literal["low", "auto", "high"]

#: How frames of a video are spread: evenly by their number, as the reference does, or by time.
FramesBy = Literal["number", "time"]

#: Prompt formats, see :func:`onevision.runtime.prompt.render`; ``own`` is the checkpoint's own chat template.
Template = Literal["training", "hf", "own"]
TEMPLATES: tuple[Template, ...] = get_args(Template)
#: Prompt format of an export; ``auto`` is that of the checkpoint's chat template.
TemplateChoice = Literal["auto", "training", "hf"]

#: Prefill backends. ``auto`` takes the bundle's graph for a long prompt, where the backbone runs on the CPU.
Prefill = Literal["auto", "onnx", "llama"]

DEFAULT_MAX_TOKENS = 512


def _option(
    default: Any,  # noqa: ANN401
    help: str,  # noqa: A002 - typer's word
    valid: Callable[[Any], bool] = lambda _: True,
    wanted: str = "",
    *,
    metavar: str | None = "N",
    flags: tuple[str, ...] = (),
    panel: str = "Sampling",
) -> Any:  # noqa: ANN401
    """Field of an option.

    Args:
        default: None also allows None as a value.
        help: Text for the command line.
        valid: Test of a value.
        wanted: Valid values in words, for the error.
        metavar: Name of the value on the command line; None: the names of a Literal.
        flags: Flags on the command line, if not ``--name`` alone.
        panel: Group of the option in the help.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "valid": valid,
            "wanted": wanted,
            "metavar": metavar,
            "flags": flags,
            "panel": panel,
        },
    )


def _integer(least: int, most: float = inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_selection(value: str) -> bool:
    """Test for ``all``, or numbers from 1 and ranges."""
    ranges = [part.split("-") for part in value.split(",")]
    return value == "all" or all(
        len(ends) <= 2
        and all(re.fullmatch("[1-9][0-9]{0,8}", end) for end in ends)
        and int(ends[0]) <= int(ends[-1])
        for ends in ranges
    )


def _number(least: float, most: float, *, above: bool = False) -> Callable[[Any], bool]:
    """Test for a number from ``least`` to ``most``; ``above``: more than ``least``."""
    return lambda value: (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and least <= value <= most
        and not (above and value == least)
    )


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer: everything besides the messages. The default is greedy, on the reference's input.

    Tokens are chosen in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p.
    The penalty counts generated tokens only, as transformers does for a prompt given as embeddings.

    Raises:
        UsageError: A value is not valid, or two options exclude each other.
    """

    max_tokens: int = _option(
        DEFAULT_MAX_TOKENS,
        "Maximum number of tokens in the answer.",
        _integer(1),
        "1 or more",
        flags=("-n", "--max-tokens"),
    )
    # Beyond these bounds, llama.cpp's float32 would overflow.
    temperature: float = _option(
        0.0,
        "0 is greedy: the same answer every time.",
        _number(0, 1000),
        "from 0 (greedy) to 1000",
        metavar="X",
    )
    top_k: int = _option(
        0, "Sample from the N most likely tokens; 0 is off.", _integer(0, 2**31 - 1), "0 (off) or more"
    )
    top_p: float = _option(
        1.0,
        "Sample from the most likely tokens that add up to this probability.",
        _number(0, 1, above=True),
        "more than 0 and at most 1",
        metavar="X",
    )
    min_p: float = _option(
        0.0,
        "Drop tokens below this fraction of the most likely token's probability.",
        _number(0, 1),
        "from 0 to 1",
        metavar="X",
    )
    repetition_penalty: float = _option(
        1.0,
        "Above 1 discourages repetition.",
        _number(0.001, 1000),
        "from 0.001 to 1000 (1 is off)",
        metavar="X",
    )
    seed: int | None = _option(
        None,
        "Seed of the sampling.  [default: random]",
        _integer(0, 2**32 - 1),
        "a whole number from 0 to 4294967295",
    )
    stop: tuple[str, ...] = _option((), "End the answer before this text; repeatable.", metavar="TEXT")
    frames: int | None = _option(
        None,
        "Frames taken from a video.  [default: the model's]",
        _integer(1),
        "1 or more",
        panel="Budget",
    )
    fps: float | None = _option(
        None,
        "Frames taken from each second of a video, at most --frames of them.",
        _number(0, 1000, above=True),
        "more than 0 and at most 1000",
        metavar="X",
        panel="Budget",
    )
    from_time: float | None = _option(
        None,
        "Take frames of a video from TIME on: seconds, mm:ss or hh:mm:ss.",
        _number(0, 1e6),
        "a time of 0 s or more",
        metavar="TIME",
        flags=("--from",),
        panel="Budget",
    )
    to_time: float | None = _option(
        None,
        "Take frames of a video up to TIME.",
        _number(0, 1e6),
        "a time of 0 s or more",
        metavar="TIME",
        flags=("--to",),
        panel="Budget",
    )
    frames_by: FramesBy = _option(
        "number",
        "Spread frames evenly by number, as in training, or by time, which differs where the rate is uneven.",
        metavar=None,
        flags=("--by",),
        panel="Budget",
    )
    max_tiles: int | None = _option(
        None,
        "Cut a single image into at most N tiles, base view included: fewer are faster and show less. "
        "`onevision plan` lists the costs.  [default: no limit]",
        _integer(1),
        "1 or more",
        panel="Budget",
    )
    detail: Detail = _option(
        "auto",
        "For a single image: low is one tile, auto is as in training, high enlarges a small image until it "
        "fills all tiles that the model takes.",
        metavar=None,
        panel="Budget",
    )
    dedup: float | None = _option(
        None,
        "Encode video frames that differ by at most T of 255 levels on average only once; 0 for identical "
        "frames.  [default: off]",
        _number(0, 255),
        "from 0 to 255",
        metavar="T",
        panel="Budget",
    )
    #: Seconds. Resolved by :mod:`onevision.planning.budget` before the engine is called.
    ttft_target: float | None = _option(
        None,
        "Choose the largest budget whose first token comes within TIME: 5s, 800ms or 1.5. Needs the speed "
        "profile that `onevision bench --quick` measures.",
        _number(0, 1e6, above=True),
        "a number of seconds, more than 0",
        metavar="TIME",
        panel="Budget",
    )
    json_schema: str | None = _option(
        None,
        "Answer with JSON of this schema; a keyword that cannot be kept to is refused. Needs "
        "onevision[schema].",
        _is_text,
        "an object, or JSON text or a file of one",
        metavar="FILE|JSON",
        panel="Form of the answer",
    )
    regex: str | None = _option(
        None,
        "Answer with a text that this regular expression matches as a whole. Needs onevision[schema].",
        _is_text,
        "a text",
        metavar="REGEX",
        panel="Form of the answer",
    )
    grammar: str | None = _option(
        None,
        "Answer with a text of this grammar, GBNF or Lark. Needs onevision[schema].",
        _is_text,
        "a text, or a file of one",
        metavar="FILE|TEXT",
        panel="Form of the answer",
    )
    choices: tuple[str, ...] = _option(
        (),
        'Answer with one of these, "yes,no" or a JSON list; each gets a probability.',
        metavar="LIST",
        panel="Form of the answer",
    )
    letters: bool = _option(
        False,
        "List the choices after the question, and score a letter for each, as in training.",
        lambda value: isinstance(value, bool),
        "true or false",
        metavar=None,
        flags=("--letters",),
        panel="Form of the answer",
    )
    logprobs: bool = _option(
        False,
        "Give the logarithm of each token's probability.",
        lambda value: isinstance(value, bool),
        "true or false",
        metavar=None,
        flags=("--logprobs",),
        panel="Form of the answer",
    )
    top_logprobs: int = _option(
        0,
        "And those of the N most likely tokens in its place.",
        _integer(0, 100),
        "from 0 to 100",
        panel="Form of the answer",
    )
    exif: bool = _option(True, "Turn images as their EXIF data say.", metavar=None, panel="Input")
    page: str | None = _option(
        None,
        "Pages of a TIFF, PDF or animation, each as an image: 2, 1,3-5 or all.  [default: the first]",
        lambda value: isinstance(value, str) and _is_selection(value),
        "a number from 1, numbers and ranges such as 1,3-5, or all",
        metavar="PAGES",
        panel="Input",
    )
    stretch: bool = _option(
        False,
        "Map the levels that a 16-bit or floating-point image uses to the whole range from black to white.",
        lambda value: isinstance(value, bool),
        "True or False",
        metavar=None,
        flags=("--stretch",),
        panel="Input",
    )
    template: Template | None = _option(
        None,
        "Prompt format: that of training, the Hub's (hf), or the checkpoint's own.  [default: the bundle's]",
        metavar=None,
        panel="Input",
    )
    system: str | None = _option(
        None, "System prompt.  [default: the bundle's]", metavar="TEXT", panel="Input"
    )
    #: Go on after the end of the answer, so that its length is known beforehand.
    ignore_end: bool = False

    def __post_init__(self) -> None:
        for name, value, wanted in self._invalid():
            hint = "a number, without quotes" if isinstance(value, str) and value[:1].isdigit() else None
            raise UsageError(f"{name} is {value!r}, it must be {wanted}", hint=hint)
        for name, value, known in (
            ("detail", self.detail, get_args(Detail)),
            ("frames_by", self.frames_by, get_args(FramesBy)),
            ("template", self.template, (None, *TEMPLATES)),
        ):
            if value not in known:
                names = ", ".join(filter(None, known))
                raise UsageError(f"{name} is {value!r}, it must be one of {names}")
        if self.detail != "auto" and self.max_tiles is not None:
            raise UsageError(
                f"detail {self.detail} and max_tiles {self.max_tiles} exclude each other",
                hint="low is the same as max_tiles 1; leave one of them out",
            )
        if self.from_time is not None and self.to_time is not None and self.from_time > self.to_time:
            raise UsageError(f"from_time is {self.from_time:g} s, after to_time, {self.to_time:g} s")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UsageError("a stop string is empty, or not a string")
        self._check_form()

    @property
    def form(self) -> tuple[str, str] | None:
        """Kind and text of the form that tokens are held to; None for a free answer or choices."""
        kinds: tuple[str, ...] = ("json_schema", "regex", "grammar")
        return next(((kind, text) for kind in kinds if (text := getattr(self, kind)) is not None), None)

    def _check_form(self) -> None:
        kinds = ("json_schema", "regex", "grammar", "choices")
        given = [kind for kind in kinds if getattr(self, kind) not in (None, ())]
        if given and self.stop:
            given.append("stop")
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other", hint="leave one of them out")
        if self.choices:
            check_choices(self.choices, letters=self.letters)
        elif self.letters:
            raise UsageError("letters are for choices, and there are none")
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs")
        if self.form:
            compile_grammar(*self.form)

    def budget(self, predicted_ttft: float | None = None) -> dict[str, Any]:
        """The budget for images and videos, in the form of the JSON output.

        Args:
            predicted_ttft: Seconds to the first token with it.
        """
        budget = {name: getattr(self, name) for name in ("max_tiles", "detail", "frames", "dedup")}
        times = {"ttft_target_ms": self.ttft_target, "predicted_ttft_ms": predicted_ttft}
        return budget | {
            name: None if value is None else round(value * 1e3, 3) for name, value in times.items()
        }

    def _invalid(self) -> list[tuple[str, Any, str]]:
        """Name, value and valid values of each option that is not valid."""
        return [
            (item.name, value, item.metadata["wanted"])
            for item in fields(self)
            if item.metadata
            and not ((value := getattr(self, item.name)) is None and item.default is None)
            and not item.metadata["valid"](value)
        ]


def make_options(options: Mapping[str, Any]) -> AnswerOptions:
    """Options from keyword arguments.

    ``stop`` may be one string, ``page`` a number, times ``mm:ss``, ``choices`` a text as on the command line,
    ``json_schema`` an object, and it or ``grammar`` a file.

    Raises:
        UsageError: An unknown name, or a value that is not valid.
    """
    known = AnswerOptions.__dataclass_fields__
    if unknown := set(options) - set(known):
        name = sorted(unknown)[0]
        names = ("images", "video", "videos", "messages", *known)
        raise UsageError(f"unknown option {name!r}", hint=suggest(name, names))
    stop, page = options.get("stop"), options.get("page")
    given: dict[str, Any] = {
        name: _seconds(name, options[name])
        for name in ("from_time", "to_time")
        if isinstance(options.get(name), str)
    }
    given["stop"] = () if stop is None else tuple(stop) if isinstance(stop, (list, tuple)) else (stop,)
    if isinstance(page, int) and not isinstance(page, bool):
        given["page"] = str(page)
    for name, parse in (("json_schema", schema_text), ("grammar", grammar_text), ("choices", parse_choices)):
        value = options.get(name)
        given[name] = known[name].default if value is None else parse(value)
    return AnswerOptions(**{**options, **given})


def _seconds(name: str, text: str) -> float:
    """Seconds of ``ss``, ``mm:ss`` or ``hh:mm:ss``.

    Raises:
        UsageError: Another form.
    """
    if not re.fullmatch(r"((\d+:)?[0-5]?\d:[0-5]?\d|\d+)(\.\d*)?", text.strip(), re.ASCII):
        raise UsageError(f"{name} is {text!r}, it must be a time: 90, 1:30 or 0:01:30")
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return total
