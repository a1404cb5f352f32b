"""Muon and AdamW over float32 copies of bfloat16 weights: passes in bfloat16, and small updates are not lost.

Hidden matrices learn by Muon (https://kellerjordan.github.io/posts/muon/), with step sizes matched to AdamW's
(arXiv:2502.16982) so that one rate serves both; embeddings, convolutions, norms and biases by AdamW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from torch.nn import Parameter

    from recipes.tiny.stages import Part

CLIP = 1.0  # norm of the gradient
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
EMBEDDINGS = ("embed_tokens", "position_embedding", "head.")  # matrices that are tables or a classifier


class MasterOptimiser:
    """Muon and AdamW for a stage.

    Args:
        parameters: Those that learn, by part; of any dtype.
        masters: Their float32 values, by name; what was learned so far.
        threads: Take a step side by side.
    """

    def __init__(
        self,
        parameters: Mapping[Part, Mapping[str, Parameter]],
        masters: Mapping[str, torch.Tensor],
        threads: Executor,
    ) -> None:
        self._named = {name: parameter for part in parameters.values() for name, parameter in part.items()}
        self.masters = {name: masters[name].requires_grad_() for name in self._named}
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for part, named in parameters.items():
            hidden = [name for name in named if _is_hidden_matrix(name, self.masters[name])]
            tables = [name for name in named if name not in hidden and self.masters[name].ndim > 1]
            vectors = [name for name in named if self.masters[name].ndim == 1]
            for groups, names, decay in (
                (matrices, hidden[::2], WEIGHT_DECAY),
                (matrices, hidden[1::2], WEIGHT_DECAY),
                (others, tables, WEIGHT_DECAY),
                (others, vectors, 0.0),
            ):
                if names:
                    values = [self.masters[name] for name in names]
                    groups.append({"params": values, "weight_decay": decay, "part": part})
        self._threads = threads
        # Muon takes one matrix after the other: each group on its own has work for a thread.
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon([group], adjust_lr_fn="match_rms_adamw") for group in matrices
        ]
        if others:
            self._optimisers.append(torch.optim.AdamW(others, betas=BETAS, fused=True))

    def step(self, rates: Mapping[Part, float]) -> None:
        """Take a step at these learning rates, and clear the gradients."""
        for name, parameter in self._named.items():
            grad = parameter.grad
            self.masters[name].grad = None if grad is None else grad.float().contiguous()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters.values(), CLIP)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rates[group["part"]]
        list(self._threads.map(lambda optimiser: optimiser.step(), self._optimisers))
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(self.masters[name])

    def state_dict(self) -> list[dict[str, Any]]:
        """The moments."""
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Put back what :meth:`state_dict` gave."""
        for optimiser, state in zip(self._optimisers, states, strict=True):
            optimiser.load_state_dict(state)


def _is_hidden_matrix(name: str, value: torch.Tensor) -> bool:
    return value.ndim == 2 and not any(part in name for part in EMBEDDINGS)
