"""Progress of long work: named steps with the fraction done, and notes for the user."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

#: Receiver of the fraction that is done, 0 to 1.
Advance = Callable[[float], None]

_LOG = logging.getLogger("onevision")


class StepProgress(Protocol):
    """An :data:`Advance` that also takes a text to show, such as ``3/12``."""

    def __call__(self, fraction: float | None, text: str = "") -> None:
        """Report the fraction that is done, if it is known."""
        ...


class Progress(Protocol):
    """Receiver of the progress of an export, a quantization or an evaluation."""

    def step(self, name: str) -> AbstractContextManager[StepProgress]:
        """Enter a step; the value takes the fraction that is done, and the step ends with the body."""
        ...

    def note(self, text: str) -> None:
        """Show something that the user should know."""
        ...


class LogProgress:
    """Progress written to the log ``onevision`` at level INFO."""

    @contextmanager
    def step(self, name: str) -> Iterator[StepProgress]:
        """Log the step's name."""
        _LOG.info(name)
        yield lambda _fraction, _text="": None

    def note(self, text: str) -> None:
        """Log the note."""
        _LOG.info(text)
