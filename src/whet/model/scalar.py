"""A decoder with one number for each state in place of a vocabulary: critics and token-level reward models."""

import copy

from jaxtyping import Float, Int
from torch import Tensor, nn

from whet.model.policy import Policy
from whet.model.transformer import Transformer


class ScalarModel(nn.Module):
    """A copy of a policy's body and a head of its own, which starts at 0 so that nothing is claimed before anything was learnt."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy).requires_grad_(True)
        if isinstance(self.body, Transformer):
            del self.body.head  # the vocabulary is not read
        self.value_head = nn.Linear(policy.config.hidden, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        first = next(policy.parameters())
        self.value_head.to(first.device, first.dtype)

    def forward(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], starts: Int[Tensor, " s1"]
    ) -> Float[Tensor, " n"]:
        """One number for each of the N tokens of a pack, of the state in which the token has been read."""
        hidden = self.body.packed(tokens, positions, starts)
        return self.value_head(hidden).squeeze(-1)


def parameters_of(*models: nn.Module | Policy | None) -> int:
    """Numbers held by all of them together."""
    return sum(p.numel() for m in models if m is not None for p in m.parameters())


def frozen(policy: Policy) -> Policy:
    """A copy that no optimizer will move."""
    return copy.deepcopy(policy).eval().requires_grad_(False)
