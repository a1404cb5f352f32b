"""Bytes of tokens to text that is safe to show."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Bytes of tokens to text: whole characters only, and nothing of a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""  # what was given out
        self.stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, data: bytes) -> str:
        """Text that is now certain; empty while a character or a possible stop string is incomplete."""
        return self._release(self._held + self._decoder.decode(data))

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        out = self._release(self._held + self._decoder.decode(b"", final=True))
        if self.stopped:
            return out
        rest, self._held = self._held, ""
        self.text += rest
        return out + rest

    def _release(self, pending: str) -> str:
        found = [(at + len(stop), at) for stop in self._stop if (at := pending.find(stop)) >= 0]
        if found:
            # The one that is complete first, so that the text does not depend on how the bytes were cut.
            self.stopped = True
            out, self._held = pending[: min(found)[1]], ""
        else:
            keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
            out, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += out
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next(
        (size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0
    )
