"""How the language model starts: random weights of a form from which looking things up is soon learned.

Mimetic initialisation (Trockman and Kolter 2023, arXiv:2305.09828): queries and keys of a head begin alike,
so that a token looks for others like it, and values come back as what they were. Some heads of the first
layers begin by looking at the token before, or the one before that. From independent random weights the same
model was not yet looking anything up after 900 steps of stage 0; from these it is after 150.
"""

from __future__ import annotations

from typing import Any

import torch

QUERY_KEY = 0.047  # standard deviation: a token's logit for its like is 4 to 5
VALUE_OUT = 0.04  # what a head adds to a token is then about half as large as the token
APART = 0.2  # how far the queries of a group are from its keys
NEIGHBOUR_LAYERS = 2  # the first group of heads in each of these looks at neighbours
NEIGHBOUR_LOGIT = 12.0
ROTATIONS = 4  # the fastest of RoPE, which tell neighbours apart


@torch.no_grad()
def start_language_model(model: Any, seed: int) -> None:  # noqa: ANN401
    """Set the attention of a model's language model, in place."""
    random = torch.Generator().manual_seed(seed)
    config = model.config.text_config
    hidden, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    width, each = hidden // heads, heads // groups

    def normal(deviation: float, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * deviation

    def per_head(group: torch.Tensor) -> torch.Tensor:
        """[groups * width, hidden] -> [heads * width, hidden]."""
        return group.view(groups, width, hidden).repeat_interleave(each, 0).reshape(-1, hidden)

    for number, layer in enumerate(model.model.language_model.layers):
        attention = layer.self_attn
        keys = normal(QUERY_KEY, groups * width, hidden)
        queries = per_head(keys) + normal(APART * QUERY_KEY, hidden, hidden)
        values = normal(hidden**-0.5, groups * width, hidden)
        if number < NEIGHBOUR_LAYERS:
            queries[: each * width] *= 0.1  # these look at places, whatever stands there
            keys[:width] *= 0.1
            query_bias, key_bias = _neighbours(width, each, config.rope_theta)
            attention.q_proj.bias[: each * width] = query_bias
            attention.k_proj.bias[:width] = key_bias
        attention.q_proj.weight.copy_(queries)
        attention.k_proj.weight.copy_(keys)
        attention.v_proj.weight.copy_(values)
        attention.o_proj.weight.copy_(VALUE_OUT * per_head(values).T)


def _neighbours(width: int, each: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Biases of a group with which head h looks h + 1 tokens back.

    RoPE turns key j against query i by (j - i) θ: a query that is the key, turned by -(h + 1) θ, likes best
    the key at j = i - (h + 1).
    """
    angles = theta ** (-torch.arange(0, width, 2) / width)[:ROTATIONS]
    size = (NEIGHBOUR_LOGIT * width**0.5 / ROTATIONS) ** 0.5
    key = torch.zeros(width)
    key[:ROTATIONS] = size
    queries = torch.zeros(each, width)
    for head in range(each):
        turn = -(head + 1) * angles
        queries[head, :ROTATIONS] = size * turn.cos()
        queries[head, width // 2 : width // 2 + ROTATIONS] = size * turn.sin()
    return queries.flatten(), key
