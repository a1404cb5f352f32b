"""What of a prompt need not be read again: it is in the backbone's sequence, or its state is in the cache.

In: a prompt of known length. Out: the number of its tokens that the backbone now holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onevision.errors import GenerationError
from onevision.runtime.backbone import library_version
from onevision.runtime.cache import key_of

if TYPE_CHECKING:
    from onevision.runtime.backbone import Backbone
    from onevision.runtime.cache import Cache
    from onevision.runtime.prepare import PreparedPrompt

_COUNT = 8  # bytes before a state: the tokens in it


class Prefixes:
    """Beginnings of prompts, for one backbone.

    Args:
        backbone: What reads prompts.
        cache: Where states are kept; None: only what is in the sequence is used again.
        facts: All that keys and values depend on besides the prompt and the backbone's settings.
    """

    def __init__(self, backbone: Backbone, cache: Cache | None, facts: tuple[object, ...]) -> None:
        self._backbone, self._cache = backbone, cache
        self._facts = (*facts, backbone.cache_type, backbone.offloaded, library_version())
        self._held: list[tuple[int | str, int]] = []  # items of the sequence, as PreparedPrompt.items

    def resume(self, prepared: PreparedPrompt, *, room: int, go_on: bool) -> int:
        """Bring back as much of a prompt as is known, with room for the rest and ``room`` tokens more.

        Args:
            prepared: The prompt.
            room: Tokens of the answer.
            go_on: Keep what the sequence and the prompt have in common, as a conversation does. Otherwise
                only the prefix up to the last picture counts; what follows is computed as without a cache.

        Returns:
            Tokens of the prompt that need not be read; 0 if the sequence has yet to be started.
        """
        needed = prepared.tokens + room
        if go_on and (kept := self._common(prepared)):
            self._backbone.resume(kept, needed)
            return kept
        if self._cache is None or not prepared.prefix or not (data := self._cache.get(self._key(prepared))):
            return 0
        count = int.from_bytes(data[:_COUNT], "little")
        self._backbone.start(max(needed, count))
        try:
            self._backbone.restore(np.frombuffer(data, np.uint8, offset=_COUNT), count)
        except GenerationError:  # the prompt is then read as if there were no state
            return 0
        kept = sum(length for _, length in prepared.prefix)
        self._backbone.resume(kept, needed)
        return kept

    def remember(self, prepared: PreparedPrompt, *, known: bool) -> None:
        """The backbone has read the whole prompt. Its state is kept, unless it came from here."""
        self._held = list(prepared.items)
        if known or self._cache is None or not prepared.prefix:
            return
        # The few tokens after the last picture are saved with it, and dropped when it is restored.
        data = self._backbone.used.to_bytes(_COUNT, "little") + self._backbone.save()
        self._cache.put(self._key(prepared), data)

    def append(self, token: int) -> None:
        """The backbone has read one token of the answer."""
        self._held.append((token, 1))

    def forget(self) -> None:
        """The backbone's sequence is about to be another."""
        self._held = []

    def _key(self, prepared: PreparedPrompt) -> str:
        return key_of("prefix", self._facts, prepared.prefix)

    def _common(self, prepared: PreparedPrompt) -> int:
        """Tokens that the sequence and the prompt begin with; the last one is read again for its logits."""
        kept = 0
        for held, wanted in zip(self._held, prepared.items, strict=False):
            if held != wanted or kept + wanted[1] >= prepared.tokens:
                break
            kept += wanted[1]
        return kept if kept <= self._backbone.used else 0
