"""How to answer: lengths, sampling, stop strings, frames, prompt format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onevision.errors import UsageError
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
        checks = (
            (0 <= self.temperature < float("inf"), "temperature", "0 (greedy) or more"),
            (self.top_k >= 0, "top-k", "0 (off) or more"),
            (0 < self.top_p <= 1, "top-p", "more than 0 and at most 1"),
            (0 <= self.min_p <= 1, "min-p", "from 0 to 1"),
            (0 < self.repetition_penalty < float("inf"), "repetition-penalty", "more than 0 (1 is off)"),
            (self.seed is None or 0 <= self.seed < 2**32, "seed", "from 0 to 4294967295"),
        )
        for good, name, wanted in checks:
            if not good:
                value = getattr(self, name.replace("-", "_"))
                raise UsageError(f"{name} is {value}, it must be {wanted}")


@dataclass(frozen=True)
class Options:
    """How to answer: everything besides the messages."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    frames: int | None = None  # None: the bundle's default
    exif: bool = True
    template: Template | None = None  # None: the bundle's default
    system: str | None = None  # None: the bundle's default

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max-tokens is {self.max_tokens}, it must be 1 or more")
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"frames is {self.frames}, it must be 1 or more")
        if self.template is not None and self.template not in TEMPLATES:
            raise UsageError(f"unknown template {self.template!r}", hint=f"one of {', '.join(TEMPLATES)}")
        if "" in self.stop:
            raise UsageError("a stop string is empty")


def make_options(options: Mapping[str, Any]) -> Options:
    """Options of keyword arguments, those of :class:`Sampling` included."""
    sampling_names = Sampling.__dataclass_fields__
    known = set(sampling_names) | set(Options.__dataclass_fields__) - {"sampling"}
    if unknown := set(options) - known:
        raise UsageError(f"unknown option {sorted(unknown)[0]!r}", hint=f"known: {', '.join(sorted(known))}")
    sampling = Sampling(**{name: value for name, value in options.items() if name in sampling_names})
    rest = {name: value for name, value in options.items() if name not in sampling_names}
    if "stop" in rest:
        rest["stop"] = (rest["stop"],) if isinstance(rest["stop"], str) else tuple(rest["stop"])
    return Options(sampling=sampling, **rest)
