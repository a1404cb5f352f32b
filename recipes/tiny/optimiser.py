"""AdamW over float32 copies of bfloat16 weights: the passes run in bfloat16, small updates are not lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.nn import Parameter

    from recipes.tiny.stages import Part

CLIP = 1.0  # norm of the gradient
BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01


class MasterAdamW:
    """AdamW for a stage.

    Args:
        parameters: Those that learn, by part; of any dtype.
        masters: Their float32 values, by name; what was learned so far.
    """

    def __init__(
        self, parameters: Mapping[Part, Mapping[str, Parameter]], masters: Mapping[str, torch.Tensor]
    ) -> None:
        self._named = {name: parameter for part in parameters.values() for name, parameter in part.items()}
        self.masters = {name: masters[name].requires_grad_() for name in self._named}
        groups: list[dict[str, Any]] = [
            {
                "params": [
                    self.masters[name] for name, parameter in named.items() if (parameter.ndim > 1) == decays
                ],
                "weight_decay": WEIGHT_DECAY if decays else 0.0,
                "part": part,
            }
            for part, named in parameters.items()
            for decays in (True, False)
        ]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=BETAS, fused=True
        )

    def step(self, rates: Mapping[Part, float]) -> float:
        """Take a step at these learning rates, clear the gradients, and return the gradient's norm."""
        for name, parameter in self._named.items():
            grad = parameter.grad
            self.masters[name].grad = None if grad is None else grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), CLIP)
        for group in self._adam.param_groups:
            group["lr"] = rates[group["part"]]
        self._adam.step()
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(self.masters[name])
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's moments."""
        return self._adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""
        self._adam.load_state_dict(state)
