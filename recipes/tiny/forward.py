"""The forward pass in torch: transformers' modules, joined over batches of many scenes.

``LlavaOnevisionForConditionalGeneration.forward`` packs one picture after the other; here all visual tokens
of a batch are one gather, which gives the same embeddings (tests compare them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recipes.tiny.data import IGNORED, Encoder, Turn, collate
from recipes.tiny.model import HIDDEN, VISION_HIDDEN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onevision.eval.suite import Sample, Scene
    from recipes.tiny.data import Batch
    from recipes.tiny.tiles import LabelledTiles


@dataclass(frozen=True, eq=False)
class Learned:
    """What a batch taught, by question."""

    loss: Tensor  # scalar
    families: tuple[str, ...]  # [Q]
    losses: Tensor  # [Q], mean over the answer's tokens
    right: Tensor | None  # [Q], whether greedy decoding would give the answer; None: there is none


def features(model: Any, tiles: NDArray[np.uint8]) -> Tensor:  # noqa: ANN401
    """The tower's features [T, P, V] of tiles uint8 [T, S, S, 3]."""
    dtype = model.dtype
    pixels = _beside(model, tiles).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
    tower = model.model.vision_tower.vision_model
    # Before the last norm. Asking for all hidden states instead is not safe with threads.
    hidden: Tensor = tower.encoder(inputs_embeds=tower.embeddings(pixels.to(dtype))).last_hidden_state
    return hidden


def embeddings(model: Any, batch: Batch) -> Tensor:  # noqa: ANN401
    """The language model's input [B, L, H]: text embedded, visual tokens in their places."""
    embedded: Tensor = model.get_input_embeddings()(_beside(model, batch.ids))
    if not len(batch.tiles):
        return embedded
    projected = model.model.multi_modal_projector(features(model, batch.tiles)).flatten(0, 1)
    rows = torch.cat([projected, model.model.image_newline[None]])
    weights = _beside(model, batch.weights).to(rows.dtype)
    visual = (rows[_beside(model, batch.taps)] * weights[..., None]).sum(1)
    flat = embedded.flatten(0, 1).index_copy(0, _beside(model, batch.places), visual)
    return flat.view(*batch.ids.shape, HIDDEN)


def hidden_states(model: Any, batch: Batch) -> Tensor:  # noqa: ANN401
    """The language model's last hidden states [B, L, H]. A question sees the common part and itself."""
    segments = _beside(model, batch.segments)
    seen = (segments[:, None] == 0) | (segments[:, None] == segments[:, :, None])
    seen &= torch.ones_like(seen[0]).tril()
    embedded = embeddings(model, batch)
    hidden = torch.finfo(embedded.dtype).min
    mask = torch.zeros_like(seen, dtype=embedded.dtype).masked_fill_(~seen, hidden)[:, None]
    states: Tensor = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=_beside(model, batch.positions),
        use_cache=False,
    ).last_hidden_state
    return states


def learn(model: Any, batch: Batch) -> Learned:  # noqa: ANN401
    """Loss of a batch. An answer of n tokens counts as √n: captions teach more than a letter, not n times."""
    # Found in NumPy: asking a GPU how many there are would wait for all that it has to do.
    answered = np.flatnonzero(batch.labels != IGNORED)
    wanted = _beside(model, batch.labels.flat[answered])
    states = hidden_states(model, batch).flatten(0, 1)[_beside(model, answered)]
    # A head on a round number of rows: see ``stages.LENGTH_STEP``.
    padded = functional.pad(states, (0, 0, 0, -len(states) % 64))
    logits = model.lm_head(padded)[: len(states)].float()
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    families = tuple(family for row in batch.families for family in row)
    question, none = _beside(model, _questions(batch, answered)), losses.new_zeros(len(families))
    lengths = none.index_add(0, question, torch.ones_like(losses))
    by_question = none.index_add(0, question, losses)
    wrong = none.index_add(0, question, (logits.argmax(-1) != wanted).float())
    weights = lengths.rsqrt()
    loss = (by_question * weights).sum() / (lengths * weights).sum()
    return Learned(loss, families, (by_question / lengths).detach(), wrong == 0)


def _questions(batch: Batch, answered: NDArray[np.int64]) -> NDArray[np.int64]:
    """The question that each answer token belongs to, counted over the batch."""
    before = np.cumsum([0, *(len(row) for row in batch.families)])[:-1]
    # The token that foretells the first of an answer may be common to all, when there is but one question.
    numbers: NDArray[np.int64] = (batch.segments.clip(min=1) - 1 + before[:, None]).flat[answered]
    return numbers


def _beside(model: Any, array: NDArray[Any]) -> Tensor:  # noqa: ANN401
    """An array as a tensor where the model is. A GPU fetches it while it works on what came before."""
    tensor = torch.from_numpy(array)
    if model.device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(model.device, non_blocking=True)


class LabelHead(torch.nn.Module):
    """What stage 0 reads labels with, and throws away: from the tower, and from the projector.

    The projector's output is compared with the language model's own embeddings of the labels, by SigLIP's
    loss (arXiv:2303.15343): a sigmoid for each pair, with a learned temperature and bias.

    Args:
        words: Token ids of each label, one row each; both spellings, with a space before it or without.
    """

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(VISION_HIDDEN, len(words))
        torch.nn.init.constant_(self.linear.bias, -3.0)  # a patch shows few of all things
        self.temperature = torch.nn.Parameter(torch.tensor([math.log(10.0)]))
        self.bias = torch.nn.Parameter(torch.tensor([-5.0]))
        self.register_buffer("words", words, persistent=False)

    def tower_loss(self, model: Any, batch: LabelledTiles) -> Learned:  # noqa: ANN401
        """How badly the tower's features tell what each patch shows."""
        return _named(_label_loss(model, self.linear(features(model, batch.tiles)), batch))

    def word_loss(self, model: Any, batch: LabelledTiles) -> Learned:  # noqa: ANN401
        """How far a projected patch is from the words for what it shows, in direction and in length."""
        projected = model.model.multi_modal_projector(features(model, batch.tiles)).float()
        words = model.get_input_embeddings().weight.detach().float()[self.words].mean(1)
        alike = functional.normalize(projected, dim=-1) @ functional.normalize(words, dim=-1).T
        length = projected.norm(dim=-1) / words.norm(dim=-1).mean()
        logits = alike * self.temperature.float().exp() + self.bias.float()
        return _named(_label_loss(model, logits, batch) + 0.1 * (length - 1).square().mean())


def _label_loss(model: Any, logits: Tensor, batch: LabelledTiles) -> Tensor:  # noqa: ANN401
    labels = _beside(model, batch.labels)
    return functional.binary_cross_entropy_with_logits(logits.float(), labels) * 10


def _named(loss: Tensor) -> Learned:
    return Learned(loss, ("labels",), loss.detach()[None], None)


@torch.no_grad()
def answer(model: Any, encoder: Encoder, scene: Scene | Sample, prompt: str, most: int = 32) -> list[int]:  # noqa: ANN401
    """Greedy answer of a torch model, token by token without a cache: for tests."""
    ids: list[int] = []
    row = encoder.row(scene, [Turn("", prompt, "")])
    while len(ids) < most:
        batch = collate([row.extended(ids)])
        logits = model.lm_head(hidden_states(model, batch)[0, -1])
        # Behind it are the places of pictures and videos, and rows without a token: never an answer.
        token = int(logits[: encoder.end + 1].argmax())
        if token == encoder.end:
            break
        ids.append(token)
    return ids
