"""How to answer: lengths, sampling, stop strings, budgets, prompt format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any, get_args

from onevision.errors import UsageError
from onevision.runtime.budget import Budget, Detail
from onevision.runtime.prompt import TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onevision.runtime.prompt import Template

DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is greedy.

    The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p.
    The penalty counts generated tokens only, as transformers does for a prompt given as embeddings.
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # None: another one every time

    def __post_init__(self) -> None:
        # Far beyond any use, llama.cpp's float32 would overflow.
        _check(
            (_real(self.temperature, 0, 1000), "temperature", self.temperature, "from 0 (greedy) to 1000"),
            (_whole(self.top_k, 0, 2**31 - 1), "top-k", self.top_k, "0 (off) or more"),
            (_real(self.top_p, 0, 1) and self.top_p > 0, "top-p", self.top_p, "more than 0 and at most 1"),
            (_real(self.min_p, 0, 1), "min-p", self.min_p, "from 0 to 1"),
            (
                _real(self.repetition_penalty, 0.001, 1000),
                "repetition-penalty",
                self.repetition_penalty,
                "from 0.001 to 1000 (1 is off)",
            ),
            (
                self.seed is None or _whole(self.seed, 0, 2**32 - 1),
                "seed",
                self.seed,
                "a whole number from 0 to 4294967295",
            ),
        )


@dataclass(frozen=True)
class Options:
    """How to answer: everything besides the messages."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    ignore_end: bool = False  # go on after the end of the answer, so that its length is known beforehand
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    frames: int | None = None  # None: the bundle's default
    max_tiles: int | None = None  # of a single picture, base view included; None: no limit
    detail: Detail = "auto"
    dedup: float | None = None  # mean difference, in levels, of frames that count as one; None: off
    ttft_target: float | None = None  # seconds until the first token: the largest budget that keeps to it
    exif: bool = True
    template: Template | None = None  # None: the bundle's default
    system: str | None = None  # None: the bundle's default

    def __post_init__(self) -> None:
        _check(
            (_whole(self.max_tokens, 1), "max-tokens", self.max_tokens, "1 or more"),
            (self.frames is None or _whole(self.frames, 1), "frames", self.frames, "1 or more"),
            (self.max_tiles is None or _whole(self.max_tiles, 1), "max-tiles", self.max_tiles, "1 or more"),
            (self.dedup is None or _real(self.dedup, 0, 255), "dedup", self.dedup, "from 0 to 255"),
            (
                self.ttft_target is None or (_real(self.ttft_target, 0, 1e6) and self.ttft_target > 0),
                "ttft-target",
                self.ttft_target,
                "a number of seconds, more than 0",
            ),
        )
        if self.detail not in get_args(Detail):
            raise UsageError(f"unknown detail {self.detail!r}", hint=f"one of {', '.join(get_args(Detail))}")
        if self.detail != "auto" and self.max_tiles is not None:
            raise UsageError(
                f"detail {self.detail} and max-tiles {self.max_tiles} exclude each other",
                hint="low is the same as max-tiles 1; leave one of them out",
            )
        if self.template is not None and self.template not in TEMPLATES:
            raise UsageError(f"unknown template {self.template!r}", hint=f"one of {', '.join(TEMPLATES)}")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UsageError("a stop string is empty, or no string")

    @property
    def budget(self) -> Budget:
        """What may be spent on pictures and videos."""
        return Budget(self.max_tiles, self.detail, self.frames)

    def within(self, budget: Budget) -> Options:
        """The same with another budget."""
        return replace(self, max_tiles=budget.max_tiles, detail=budget.detail, frames=budget.frames)


def _whole(value: object, least: int, most: float = inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _real(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _check(*rules: tuple[bool, str, object, str]) -> None:
    """Raise for the first rule that does not hold: it, and the option's name, value and wanted values."""
    for holds, name, value, wanted in rules:
        if not holds:
            raise UsageError(f"{name} is {value!r}, it must be {wanted}")


def make_options(options: Mapping[str, Any]) -> Options:
    """Options of keyword arguments, those of :class:`Sampling` included. ``stop`` may be one string."""
    sampling_names = Sampling.__dataclass_fields__
    known = set(sampling_names) | set(Options.__dataclass_fields__) - {"sampling"}
    if unknown := set(options) - known:
        raise UsageError(f"unknown option {sorted(unknown)[0]!r}", hint=f"known: {', '.join(sorted(known))}")
    sampling = Sampling(**{name: value for name, value in options.items() if name in sampling_names})
    rest = {name: value for name, value in options.items() if name not in sampling_names}
    stop = rest.pop("stop", None)
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return Options(sampling=sampling, stop=stops, **rest)
