"""From one number for each answer to one advantage for each of its tokens: KL rewards, critic,
token-level reward model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from whet.algorithms.advantages import whitened
from whet.algorithms.algorithm import Algorithm, Critic
from whet.algorithms.batch import PolicyBatch, ValueBatch
from whet.algorithms.critic import (
    adaptive_lambda,
    explained_variance,
    gae,
    returns_to_go,
    token_reward_loss,
    token_weights,
    value_loss,
)
from whet.algorithms.kl import KL
from whet.model.logprobs import before
from whet.model.policy import Policy
from whet.model.value_head import ScalarModel
from whet.training.learner import Learner, policy_logprobs
from whet.types import Sample, Sampling


@dataclass
class Credit:
    row: Algorithm
    sampling: Sampling
    micro_tokens: int
    reference: Policy | None = None
    judge: Learner[ScalarModel] | None = None

    def give(
        self, batch: PolicyBatch, samples: Sequence[Sample], right: Sequence[bool]
    ) -> tuple[PolicyBatch, dict[str, float]]:
        """`batch` holds one advantage for all tokens of an answer; what comes back, one for each
        token, and figures.

        The critic judges first and learns from the same rollout after, so that no advantage has
        seen its own return.
        """
        figures: dict[str, float] = {}
        advantage = batch.advantage.double()
        earned = torch.zeros_like(advantage)
        if self.row.rewards_kl:
            kl = self.kl(batch).double()
            earned = -self.row.beta * kl
            figures["kl"] = float(kl.mean())
        if self.row.critic is not None:
            advantage, told = self._by_critic(self.row.critic, batch, earned, samples)
            figures |= told
        elif self.row.token_reward:
            advantage, told = self._by_token_reward(batch, right)
            figures |= told
        elif self.row.rewards_kl:
            advantage = advantage + returns_to_go(earned, batch.sequence, self.row.gamma)
        if self.row.normalise:
            advantage = whitened(advantage)
        return replace(batch, advantage=advantage.to(batch.advantage.dtype)), figures

    def kl(self, batch: PolicyBatch) -> Float[Tensor, " m"]:
        """The estimator at each token, of the policy that sampled against the reference."""
        assert self.reference is not None  # Trainer makes one for every row that has a KL
        parts: list[Tensor] = []
        with torch.no_grad():
            for micro in batch.split(self.micro_tokens):
                logp_ref = policy_logprobs(self.reference, micro, self.sampling)[0]
                parts.append(KL[self.row.kl](micro.logp_old, logp_ref))
        return torch.cat(parts)

    def _by_critic(
        self, cells: Critic, batch: PolicyBatch, earned: Tensor, samples: Sequence[Sample]
    ) -> tuple[Tensor, dict[str, float]]:
        cut_off = torch.tensor([s.finish == "length" for s in samples], device=batch.starts.device)
        values, after = self.values(
            batch, cut_off if cells.bootstrap else torch.zeros_like(cut_off)
        )
        rewards = earned + batch.advantage.double() * last_tokens(batch)
        lengths = batch.lengths
        flat = torch.ones_like(after)
        lam = adaptive_lambda(lengths, cells.stretch) if cells.stretch else cells.lam * flat
        advantage = gae(rewards, values, after, batch.sequence, self.row.gamma, lam)
        target = values + gae(
            rewards, values, after, batch.sequence, self.row.gamma, cells.lam_critic * flat
        )
        figures = {"value": float(values.mean()), "explained": explained_variance(values, target)}
        return advantage, figures | self._teach_critic(cells, batch, target, values)

    def values(
        self, batch: PolicyBatch, cut_off: Bool[Tensor, " s"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " s"]]:
        """The critic's value of the state before each chosen token, and of that behind each
        answer's end: 0 unless it was cut off.
        """
        assert self.judge is not None  # Trainer makes one for every row that has a critic
        inner: list[Tensor] = []
        behind: list[Tensor] = []
        with torch.no_grad():
            for micro in batch.split(self.micro_tokens):
                states = self.judge.model(micro.tokens, micro.positions, micro.starts).double()
                inner.append(before(states, micro.chosen))
                behind.append(states[micro.starts[1:] - 1])
        return torch.cat(inner), torch.where(cut_off, torch.cat(behind), 0.0)

    def _teach_critic(
        self, cells: Critic, batch: PolicyBatch, target: Tensor, values: Tensor
    ) -> dict[str, float]:
        """What it was taught, absent where every step was lost."""
        assert self.judge is not None
        judge, losses = self.judge, list[float]()
        dtype = batch.advantage.dtype
        layout = {
            name: getattr(batch, name)
            for name in ("tokens", "positions", "starts", "chosen", "sequence", "weight")
        }
        whole = ValueBatch(**layout, target=target.to(dtype), value_old=values.to(dtype))

        def loss_of(micro: ValueBatch) -> Tensor:
            states = judge.model(micro.tokens, micro.positions, micro.starts)
            return value_loss(
                before(states, micro.chosen), micro.target, micro.value_old, cells.value_clip
            )

        for share in shares(whole.sequences, cells.updates):
            mini = whole.take(share)
            mini = replace(mini, weight=torch.full_like(mini.weight, 1 / max(len(mini.chosen), 1)))
            stepped = judge.step(mini, self.micro_tokens, loss_of)
            losses += [] if stepped.lost else [stepped.loss]
        return {"value_loss": sum(losses) / len(losses)} if losses else {}

    def _by_token_reward(
        self, batch: PolicyBatch, right: Sequence[bool]
    ) -> tuple[Tensor, dict[str, float]]:
        """Advantages times what the token-level reward model says of each token; then the model
        learns which answers were right.
        """
        assert self.judge is not None
        judge = self.judge
        good = torch.tensor(right, device=batch.starts.device).to(batch.advantage.dtype)
        with torch.no_grad():
            w = torch.cat(
                [
                    judge.model(m.tokens, m.positions, m.starts)[m.chosen]
                    for m in batch.split(self.micro_tokens)
                ]
            )
        advantage = batch.advantage.double() * token_weights(w.double(), good[batch.sequence])
        marked = replace(
            batch,
            advantage=good[batch.sequence],
            weight=1 / batch.lengths[batch.sequence] / batch.sequences,
        )

        def loss_of(micro: PolicyBatch) -> Tensor:
            w = judge.model(micro.tokens, micro.positions, micro.starts)[micro.chosen]
            target = micro.advantage.new_zeros(micro.sequences).index_put(
                (micro.sequence,), micro.advantage
            )
            return token_reward_loss(w, micro.sequence, target)[micro.sequence]

        stepped = judge.step(marked, self.micro_tokens, loss_of)
        return advantage, {} if stepped.lost else {"token_reward_loss": stepped.loss}


def last_tokens(batch: PolicyBatch) -> Float[Tensor, " m"]:
    """1 at the last chosen token of each sequence, else 0."""
    last = torch.ones_like(batch.advantage, dtype=torch.float64)
    last[:-1] = (batch.sequence[1:] != batch.sequence[:-1]).double()
    return last


def shares(count: int, parts: int) -> list[range]:
    """0 .. count - 1 in `parts` stretches of nearly equal length, empty ones left out."""
    bounds = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(bounds) if b > a]
