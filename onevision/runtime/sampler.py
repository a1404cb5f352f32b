"""Choice of the next token, by a sampler chain of llama.cpp.

In: the logits of the backbone's last position, and what a form allows. Out: a token id.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp as api  # after native.llama, which sets its threads up
import numpy as np
import numpy.typing as npt

from onevision.native.llama import free_with
from onevision.runtime.backbone import Backbone
from onevision.runtime.grammar import Constraint
from onevision.runtime.options import AnswerOptions

#: Tokens that the repetition penalty looks back at: as long as any answer.
_PENALTY_WINDOW = 2**15
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Sampler:
    """A sampler chain. Use it as a context manager, or ``close()`` it.

    Args:
        options: Temperature, top-k, top-p, min-p, repetition penalty and seed.
        size: Rows of the logits.
        banned: Tokens that are never chosen.
        constraint: The form of the answer; it allows none of ``banned``.
    """

    def __init__(
        self,
        options: AnswerOptions,
        size: int,
        banned: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self._constraint = constraint
        banned = () if constraint else banned  # llama.cpp would look for each of them in every list
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
        """Choose a token from the logits of the last position, and remember it for penalty and form."""
        if self._constraint is None:
            return int(api.llama_sampler_sample(self._chain, backbone.context, -1))
        allowed = self._constraint.allowed()
        token = self.choose(allowed, backbone.logits()[allowed])
        self._constraint.accept(token)
        return token

    @property
    def complete(self) -> bool:
        """Whether the form lets nothing follow."""
        return self._constraint is not None and self._constraint.complete

    def choose(self, ids: npt.NDArray[np.intp], logits: npt.NDArray[np.float32]) -> int:
        """Choose one of some ids, by their logits [n]."""
        candidates = np.zeros(len(ids), _CANDIDATE)
        candidates["id"], candidates["logit"] = ids, logits
        data = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(api.llama_token_data))
        array = api.llama_token_data_array(data=data, size=len(ids), selected=-1, sorted=False)
        api.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = int(array.data[array.selected].id)
        api.llama_sampler_accept(self._chain, chosen)
        return chosen

    def close(self) -> None:
        """Free the native memory; calling it again does nothing."""
        self._free()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
