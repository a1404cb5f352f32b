"""Who is asked: an engine that answers a scenario, and tells how long each stage took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from onevision.bench.result import Counts
from onevision.bench.scenarios import QUESTION, SECOND_QUESTION, SHORT
from onevision.runtime.prompt import ImagePart, Message, Part, VideoPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.bench.scenarios import Inputs, Scenario
    from onevision.runtime.answer import StageClock
    from onevision.runtime.engine import OneVision

#: Name of this package's own runtime.
OURS = "onevision"


@dataclass(frozen=True)
class Asked:
    """One answer. Times are in milliseconds, and the clock has the stages; without tokens, no ``ttft``."""

    counts: Counts
    token_ids: tuple[int, ...]
    clock: StageClock
    ttft: float | None
    total: float


class Subject(Protocol):
    """An engine to measure."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def resident(self) -> Callable[[], int] | None:
        """Reads the bytes of memory of its process; None: it is in this one."""

    def ask(self, scenario: Scenario, inputs: Inputs, new_clock: Callable[[], StageClock]) -> Asked:
        """Answer once. The answer is greedy, and as long as the scenario says.

        Args:
            scenario: What to ask.
            inputs: Its inputs.
            new_clock: Called when the time starts.

        Raises:
            OneVisionError: It cannot be asked that.
        """


class BundleSubject:
    """A bundle in this package's runtime."""

    resident = None

    def __init__(self, model: OneVision, name: str = OURS) -> None:
        self.name = name
        self._model = model

    def ask(self, scenario: Scenario, inputs: Inputs, new_clock: Callable[[], StageClock]) -> Asked:
        """See :class:`Subject`."""
        options: dict[str, Any] = {"frames": scenario.frames, "ignore_end": True}
        messages = question(inputs)
        if scenario.again:
            first = self._model.generate(messages=messages, max_tokens=SHORT, **options)
            messages += [Message("assistant", (first.text,)), Message("user", (SECOND_QUESTION,))]
        clock = new_clock()
        answer = self._model.generate(messages=messages, clock=clock, max_tokens=scenario.answer, **options)
        usage = answer.usage
        counts = Counts(usage.prompt_tokens, usage.image_tokens, usage.completion_tokens, usage.tiles)
        return Asked(counts, answer.token_ids, clock, answer.timings.ttft, answer.timings.total)


def question(inputs: Inputs) -> list[Message]:
    """What all engines are asked about some inputs."""
    visuals: list[Part] = [ImagePart(image) for image in inputs.images]
    if inputs.video is not None:
        visuals.append(VideoPart(inputs.video))
    return [Message("user", (*visuals, QUESTION))]
