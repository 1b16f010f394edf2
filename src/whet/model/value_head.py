"""The value head: a decoder that gives one number per token, not logits over a vocabulary.

Critics, reward models and token-level reward models are such models.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.config.tables import Lora
from whet.errors import ModelError
from whet.model import lora as adapters
from whet.model import pretrained
from whet.model.policy import Policy
from whet.model.transformer import Transformer

TOKENS = 16384  # in one forward pass of `score`
BIAS = "score_bias"  # a key of config.json, for Hugging Face's score head has no bias


class ScalarModel(nn.Module):
    """A copy of a policy's body with a linear head from each state to one number.

    The head starts at 0, or as a copy where the policy has such a head already (`config.scalar`).
    With `lora` only adapters of the body and the head are trained, and the body shares the frozen
    weights of a policy that has adapters. Raises ModelError as `lora.adapt` does.
    """

    def __init__(self, policy: Policy, lora: Lora | None = None) -> None:
        super().__init__()
        self.body = (
            copy.deepcopy(policy).requires_grad_(True) if lora is None else adapters.copied(policy)
        )
        adapters.adapt(self.body, lora)
        self.value_head = nn.Linear(policy.config.hidden, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if isinstance(self.body, Transformer):
            if policy.config.scalar:
                self.value_head.weight.data.copy_(self.body.head.weight)
                self.value_head.bias.data.fill_(_bias(policy.config.extra.get(BIAS, 0.0)))
            del self.body.head  # the vocabulary is not read
        first = next(policy.parameters())
        self.value_head.to(first.device, first.dtype)

    def forward(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], starts: Int[Tensor, " s1"]
    ) -> Float[Tensor, " n"]:
        """Returns one number per token of a pack, from the state after that token."""
        hidden = self.body.packed(tokens, positions, starts)
        return self.value_head(hidden).squeeze(-1)

    def whole(self) -> Transformer:
        """Returns the model as one decoder with a head of one row, to be saved; weights are shared.

        Raises ModelError for a model of transformers.
        """
        if not isinstance(self.body, Transformer):
            raise ModelError(
                "reward models are kept for whet's own decoder only (llama, qwen2, qwen3, smollm3)"
            )
        c = self.body.config
        config = replace(
            c, scalar=True, tied=False, extra={**c.extra, BIAS: self.value_head.bias.item()}
        )
        with torch.device("meta"):
            model = Transformer(config)
        model.embed, model.layers, model.norm, model.rotary = (
            self.body.embed, self.body.layers, self.body.norm, self.body.rotary,
        )  # fmt: skip
        model.head.weight = self.value_head.weight
        return model


def _bias(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"{BIAS} is {value!r} in config.json; it must be a finite number")
    return float(value)


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> ScalarModel:
    """Loads a reward model's directory or Hub id. Raises ModelError, also for a policy's."""
    model = pretrained.load(name, dtype, device)
    if not model.config.scalar:
        raise ModelError(
            f"{name} holds a policy, not a reward model (a sequence classifier with one label)"
        )
    return ScalarModel(model)


def score(model: ScalarModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """Returns the model's number after the last token of each of S rows of token ids."""
    device = next(model.parameters()).device
    scores = [0.0] * len(rows)
    waiting = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while waiting:
        pack = [waiting.pop(0)]
        room = TOKENS - len(rows[pack[0]])
        while waiting and len(rows[waiting[0]]) <= room:
            room -= len(rows[waiting[0]])
            pack.append(waiting.pop(0))
        lengths = torch.tensor([len(rows[i]) for i in pack])
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        tokens = torch.tensor([t for i in pack for t in rows[i]])
        positions = torch.arange(len(tokens)) - starts[:-1].repeat_interleave(lengths)
        with torch.no_grad():
            values = model(tokens.to(device), positions.to(device), starts.to(device)).cpu()
        for i, last in zip(pack, starts[1:] - 1, strict=True):
            scores[i] = float(values[last])
    return scores
