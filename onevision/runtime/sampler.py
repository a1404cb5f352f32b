"""Choice of the next token, by a sampler chain of llama.cpp.

In: the logits of the backbone's last position. Out: a token id.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import llama_cpp as api  # after native.llama, which sets its threads up

from onevision.native.llama import free_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onevision.runtime.backbone import Backbone
    from onevision.runtime.options import AnswerOptions

#: Tokens that the repetition penalty looks back at: as long as any answer.
_PENALTY_WINDOW = 2**15


class Sampler:
    """A sampler chain. Use it as a context manager, or ``close()`` it.

    Args:
        options: Temperature, top-k, top-p, min-p, repetition penalty and seed.
        size: Rows of the logits.
        banned: Tokens that are never chosen.
    """

    def __init__(self, options: AnswerOptions, size: int, banned: Sequence[int]) -> None:
        self._chain: Any = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        self._free = free_with(self, api.llama_sampler_free, self._chain)
        biases = (api.llama_logit_bias * len(banned))()
        for bias, token in zip(biases, banned, strict=True):
            bias.token, bias.bias = token, -float("inf")
        self._add(api.llama_sampler_init_logit_bias(size, len(banned), biases))
        if options.repetition_penalty != 1:
            penalty = options.repetition_penalty
            self._add(api.llama_sampler_init_penalties(size, _PENALTY_WINDOW, penalty, 0.0, 0.0))
        if options.temperature == 0:
            self._add(api.llama_sampler_init_greedy())
            return
        self._add(api.llama_sampler_init_temp(options.temperature))
        if options.top_k > 0:
            self._add(api.llama_sampler_init_top_k(options.top_k))
        if options.top_p < 1:
            self._add(api.llama_sampler_init_top_p(options.top_p, 1))
        if options.min_p > 0:
            self._add(api.llama_sampler_init_min_p(options.min_p, 1))
        seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed
        self._add(api.llama_sampler_init_dist(seed))

    def _add(self, sampler: int) -> None:
        api.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it now

    def sample(self, backbone: Backbone) -> int:
        """Choose a token from the logits of the last position, and remember it for the penalty."""
        return int(api.llama_sampler_sample(self._chain, backbone.context, -1))

    def close(self) -> None:
        """Free the native memory; calling it again does nothing."""
        self._free()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
