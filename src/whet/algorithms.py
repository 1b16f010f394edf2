"""ONE TABLE: every algorithm a row of choices, so that how they differ is read at a glance.

A row decides: where the advantage comes from, whether and how the importance ratio is clipped, how tokens are weighted
against one another, which KL holds the policy near its reference, and which groups are trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from whet.advantages import ADVANTAGES
from whet.batch import PolicyBatch
from whet.errors import RecipeError, did_you_mean
from whet.kl import KL
from whet.losses import clip_acts, clipped, policy_gradient

Aggregation = Literal["sequence_mean", "token_mean", "sum_over_limit", "sum"]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row. A recipe may override any cell but the name and the source."""

    name: str
    source: str
    advantage: str  # a key of ADVANTAGES
    ratio: Literal["token", "none"] = "token"  # none: plain policy gradient
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "sequence_mean"
    kl: str = "none"  # a key of KL, as a term of the loss
    beta: float = 0.0  # of the KL
    entropy: float = 0.0  # coefficient of the entropy bonus
    sampling: Literal["all", "dynamic"] = "all"  # dynamic: draw again until each group has signal
    updates: int = 1  # optimizer steps a rollout

    def advantages(self, rewards: Sequence[Sequence[float]]) -> list[Float[Tensor, " g"]]:
        """Per group, in float64."""
        return ADVANTAGES[self.advantage]([torch.tensor(r, dtype=torch.float64) for r in rewards])

    def weights(self, lengths: Sequence[int], limit: int) -> list[float]:
        """The weight of each token of a sequence in the loss, for the `lengths` of ALL sequences of one update.

        sequence_mean   1 / (S |o_i|)     mean over tokens, then over sequences          GRPO, arXiv:2402.03300, eq. 3
        token_mean      1 / sum_j |o_j|   every token alike                              DAPO, arXiv:2503.14476, eq. 8
        sum_over_limit  1 / (S limit)     a constant, so length is not rewarded           Dr. GRPO, arXiv:2503.20783, sec. 3.2
        sum             1 / S             the log-probability of the whole answer         RLOO, arXiv:2402.14740
        """
        count, total = len(lengths), sum(lengths)
        match self.aggregation:
            case "sequence_mean":
                return [1 / (count * max(n, 1)) for n in lengths]
            case "token_mean":
                return [1 / max(total, 1)] * count
            case "sum_over_limit":
                return [1 / (count * limit)] * count
            case "sum":
                return [1 / count] * count

    @property
    def needs_reference(self) -> bool:
        return self.kl != "none" and self.beta != 0

    @property
    def only_advantage(self) -> bool:
        """Whether a sample with advantage 0 adds nothing to the gradient, so that it need not reach the model."""
        return not self.needs_reference and self.entropy == 0

    def loss(
        self,
        logp: Float[Tensor, " m"],
        entropy: Float[Tensor, " m"],
        batch: PolicyBatch,
        logp_ref: Tensor | None = None,
    ) -> Float[Tensor, " m"]:
        """Per token [M]; the batch's weights, and nothing else, reduce it. Raises ValueError where a reference is missing."""
        if self.ratio == "none":
            loss = policy_gradient(logp, batch.advantage)
        else:
            loss = clipped(logp, batch.logp_old, batch.advantage, self.clip_low, self.clip_high)
        if self.needs_reference:
            if logp_ref is None:
                raise ValueError(f"{self.name}: beta = {self.beta} needs the reference's log-probabilities")
            loss = loss + self.beta * KL[self.kl](logp, logp_ref)
        return loss - self.entropy * entropy if self.entropy else loss

    def clipped(self, logp: Tensor, batch: PolicyBatch) -> Tensor:
        """True [M] where the clip removes the gradient; never without a ratio."""
        if self.ratio == "none":
            return torch.zeros_like(logp, dtype=torch.bool)
        return clip_acts(logp, batch.logp_old, batch.advantage, self.clip_low, self.clip_high)

    def override(self, cells: Mapping[str, Any]) -> "Algorithm":
        """This row with some cells changed. Raises RecipeError for an unknown cell or value."""
        known = {f.name: f for f in fields(self) if f.name not in ("name", "source")}
        for key in cells:
            if key not in known:
                raise RecipeError(f"algorithm {self.name}: unknown key {key!r}{did_you_mean(key, known)}")
        return replace(self, **cells).validated()

    def validated(self) -> "Algorithm":
        choices = {
            "advantage": tuple(ADVANTAGES),
            "ratio": ("token", "none"),
            "aggregation": ("sequence_mean", "token_mean", "sum_over_limit", "sum"),
            "kl": ("none", *KL),
            "sampling": ("all", "dynamic"),
        }
        for cell, allowed in choices.items():
            value = getattr(self, cell)
            if value not in allowed:
                raise RecipeError(f"algorithm {self.name}: {cell} = {value!r}{did_you_mean(str(value), allowed)}")
        for cell in ("clip_low", "clip_high", "beta", "entropy"):
            value = getattr(self, cell)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise RecipeError(f"algorithm {self.name}: {cell} = {value!r}; it must be a number, 0 or more")
        if type(self.updates) is not int or self.updates < 1:
            raise RecipeError(
                f"algorithm {self.name}: updates = {self.updates!r}; it must be a whole number, 1 or more"
            )
        if self.beta and self.kl == "none":
            raise RecipeError(f"algorithm {self.name}: beta = {self.beta} without kl; name one: {', '.join(KL)}")
        return self


TABLE: dict[str, Algorithm] = {
    row.name: row.validated()
    for row in (
        Algorithm("reinforce", "Williams 1992", "batch_centred", ratio="none", aggregation="sum"),
        Algorithm("rloo", "arXiv:2402.14740", "leave_one_out", ratio="none", aggregation="sum"),
        Algorithm("grpo", "arXiv:2402.03300", "zscored", kl="k3", beta=0.04),
        Algorithm("dr_grpo", "arXiv:2503.20783", "centred", aggregation="sum_over_limit"),
        Algorithm("dapo", "arXiv:2503.14476", "zscored", clip_high=0.28, aggregation="token_mean", sampling="dynamic"),
    )
}


def algorithm(name: str, cells: Mapping[str, Any] | None = None) -> Algorithm:
    """The row `name` with a recipe's cells. Raises RecipeError for an unknown row, cell or value."""
    if name not in TABLE:
        raise RecipeError(f"unknown algorithm {name!r}{did_you_mean(name, TABLE)}")
    return TABLE[name].override(cells or {})
