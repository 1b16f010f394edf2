"""A decoder with one number for each state in place of a vocabulary: critics, reward models,
token-level reward models.
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

TOKENS = 16384  # of one forward pass that needs no gradient
BIAS = "score_bias"  # the key of config.json that holds what Hugging Face's head has no place for


class ScalarModel(nn.Module):
    """A copy of a policy's body and a head of its own, which starts at 0 so that nothing is claimed
    before anything was learnt.

    Of a model that is one already (`config.scalar`), the head is copied too. With `lora` the body
    has adapters to train, and shares the frozen weights of a policy that has adapters. Raises
    ModelError as `lora.adapt` does.
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
        """One number for each of the N tokens of a pack, of the state in which the token has been
        read.
        """
        hidden = self.body.packed(tokens, positions, starts)
        return self.value_head(hidden).squeeze(-1)

    def whole(self) -> Transformer:
        """As one decoder whose head is a single row: what is kept on disk. Shares its weights.
        Raises ModelError for an adapted model.
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


def _bias(held: object) -> float:
    if isinstance(held, bool) or not isinstance(held, int | float) or not math.isfinite(held):
        raise ModelError(f"{BIAS} is {held!r} in config.json; it must be a finite number")
    return float(held)


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> ScalarModel:
    """A reward model's directory or Hub id. Raises ModelError, also where it holds a policy."""
    held = pretrained.load(name, dtype, device)
    if not held.config.scalar:
        raise ModelError(
            f"{name} holds a policy, not a reward model (a sequence classifier with one label)"
        )
    return ScalarModel(held)


def score(model: ScalarModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """The number of the state behind the last token of each of the S rows (ragged lists of token
    ids).
    """
    device = next(model.parameters()).device
    found = [0.0] * len(rows)
    waiting = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while waiting:
        taken = [waiting.pop(0)]
        room = TOKENS - len(rows[taken[0]])
        while waiting and len(rows[waiting[0]]) <= room:
            room -= len(rows[waiting[0]])
            taken.append(waiting.pop(0))
        lengths = torch.tensor([len(rows[i]) for i in taken])
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        tokens = torch.tensor([t for i in taken for t in rows[i]])
        positions = torch.arange(len(tokens)) - starts[:-1].repeat_interleave(lengths)
        with torch.no_grad():
            states = model(tokens.to(device), positions.to(device), starts.to(device)).cpu()
        for i, at in zip(taken, starts[1:] - 1, strict=True):
            found[i] = float(states[at])
    return found
