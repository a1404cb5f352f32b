"""KV prefix reuse: a prompt's beginning that is in the backbone's sequence, or whose state is in the cache.

In: a prompt of known length. Out: the number of its tokens that the backbone now holds.
"""

from __future__ import annotations

import numpy as np

from onevision.errors import GenerationError
from onevision.runtime.backbone import Backbone, library_version
from onevision.runtime.cache import Cache, entry_key
from onevision.runtime.prepare import PreparedPrompt

_COUNT = 8  # bytes before a state: the tokens in it


class PrefixReuse:
    """Reuse of prompt beginnings, for one backbone.

    Args:
        backbone: Holds the sequence.
        cache: Keeps states; None: only the sequence is reused.
        facts: All that keys and values depend on besides the prompt and the backbone's settings.
    """

    def __init__(self, backbone: Backbone, cache: Cache | None, facts: tuple[object, ...]) -> None:
        self._backbone, self._cache = backbone, cache
        self._facts = (
            *facts,
            backbone.cache_type,
            backbone.flash_attention,
            backbone.offloaded,
            library_version(),
        )
        self._held: list[tuple[int | str, int]] = []  # items of the sequence, as PreparedPrompt.items

    def resume(self, prepared: PreparedPrompt, *, room: int, in_sequence: bool) -> int:
        """Restore as much of a prompt as is known, with room for the rest and ``room`` tokens more.

        Args:
            prepared: The prompt.
            room: Tokens of the answer.
            in_sequence: Keep what the sequence and the prompt have in common, as a conversation does.
                Otherwise only the prefix up to the last image counts: the rest is computed as without a
                cache.

        Returns:
            Tokens of the prompt that are known; 0 if the sequence has yet to be started.
        """
        needed = prepared.tokens + room
        if in_sequence and (known := self._common(prepared)):
            self._backbone.resume(known, needed)
            return known
        if self._cache is None or not prepared.prefix or not (data := self._cache.get(self._key(prepared))):
            return 0
        count = int.from_bytes(data[:_COUNT], "little")
        self._backbone.start(max(needed, count))
        try:
            self._backbone.restore(np.frombuffer(data, np.uint8, offset=_COUNT), count)
        except GenerationError:
            self._cache.remove(self._key(prepared))  # the prompt is computed as if there were no state
            return 0
        known = sum(length for _, length in prepared.prefix)
        self._backbone.resume(known, needed)
        return known

    def hold(self, prepared: PreparedPrompt) -> None:
        """Note that the sequence is this whole prompt."""
        self._held = list(prepared.items)

    def append(self, token: int) -> None:
        """Note that the sequence has one more token."""
        self._held.append((token, 1))

    def forget(self) -> None:
        """Note that the sequence is about to be replaced."""
        self._held = []

    def save(self, prepared: PreparedPrompt) -> None:
        """Keep the state of the sequence, which begins with this prompt, in the cache.

        The tokens after the last image are saved with it and dropped when it is restored.
        """
        if self._cache is not None and prepared.prefix:
            data = self._backbone.save(before=_COUNT)
            data[:_COUNT] = self._backbone.used.to_bytes(_COUNT, "little")
            self._cache.put(self._key(prepared), data)

    def _key(self, prepared: PreparedPrompt) -> str:
        return entry_key("prefix", self._facts, prepared.prefix)

    def _common(self, prepared: PreparedPrompt) -> int:
        """Tokens that the sequence and the prompt begin with; the last one is left, for its logits."""
        known = 0
        for held, wanted in zip(self._held, prepared.items, strict=False):
            if held != wanted or known + wanted[1] >= prepared.tokens:
                break
            known += wanted[1]
        return known if known <= self._backbone.used else 0
