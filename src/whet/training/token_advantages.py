"""Turns the advantage of each answer into one for each of its tokens: KL, critic, token rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from whet.algorithms.advantages import whitened
from whet.algorithms.algorithm import Algorithm, Critic
from whet.algorithms.batch import LAYOUT, PolicyBatch, ValueBatch
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
from whet.training.learner import Learner, fixed_logprobs
from whet.types import Sample, Sampling

M = Float[Tensor, " m"]


@dataclass
class TokenAdvantages:
    """Computes the advantages of tokens, and trains the critic that it computes them with.

    The critic is asked about a rollout before it learns from it, so that no advantage has seen its
    own return. For a row with `token_reward` it is a token-level reward model.
    """

    row: Algorithm
    sampling: Sampling
    micro_tokens: int
    reference: Policy | None = None
    critic: Learner[ScalarModel] | None = None

    def compute(
        self, batch: PolicyBatch, samples: Sequence[Sample], right: Sequence[bool]
    ) -> tuple[PolicyBatch, dict[str, float]]:
        """Returns the batch with an advantage for each token, and the figures to log.

        The batch that is passed has one advantage for all tokens of an answer. `right` [S] says
        which answers are right.
        """
        row, figures = self.row, dict[str, float]()
        advantage = batch.advantage.double()
        rewards = torch.zeros_like(advantage)
        if row.rewards_kl:
            kl = self.kl(batch).double()
            rewards = -row.beta * kl
            figures["kl"] = float(kl.mean())
        if row.critic is not None:
            advantage, critic_figures = self._with_critic(row.critic, batch, rewards, samples)
            figures |= critic_figures
        elif row.token_reward:
            advantage, critic_figures = self._with_token_reward(batch, right)
            figures |= critic_figures
        elif row.rewards_kl:
            advantage = advantage + returns_to_go(rewards, batch.sequence, row.gamma)
        if row.normalise:
            advantage = whitened(advantage)
        return replace(batch, advantage=advantage.to(batch.advantage.dtype)), figures

    def kl(self, batch: PolicyBatch) -> M:
        """The KL estimate at each token, of the policy that sampled against the reference."""
        assert self.reference is not None  # every row that has a KL has one
        logp_ref = fixed_logprobs(self.reference, batch, self.sampling, self.micro_tokens)
        return KL[self.row.kl](batch.logp_old, logp_ref)

    def _with_critic(
        self, cells: Critic, batch: PolicyBatch, rewards: M, samples: Sequence[Sample]
    ) -> tuple[M, dict[str, float]]:
        """GAE from the critic's values; then the critic learns the returns.

        `rewards` [M] are those of the tokens; the answer's own is added at its last token.
        """
        cut_off = torch.tensor([s.finish == "length" for s in samples], device=batch.starts.device)
        bootstrapped = cut_off if cells.bootstrap else torch.zeros_like(cut_off)
        values, after = self.values(batch, bootstrapped)
        rewards = rewards + batch.advantage.double() * last_tokens(batch)
        gamma, ones = self.row.gamma, torch.ones_like(after)
        lam = cells.lam * ones
        if cells.stretch:
            lam = adaptive_lambda(batch.lengths, cells.stretch)
        advantage = gae(rewards, values, after, batch.sequence, gamma, lam)
        lam_critic = cells.lam_critic * ones
        target = values + gae(rewards, values, after, batch.sequence, gamma, lam_critic)
        figures = {"value": float(values.mean()), "explained": explained_variance(values, target)}
        return advantage, figures | self._train_critic(cells, _targets(batch, target, values))

    def values(
        self, batch: PolicyBatch, cut_off: Bool[Tensor, " s"]
    ) -> tuple[M, Float[Tensor, " s"]]:
        """The critic's values of the states before each chosen token, and behind each answer.

        The value behind an answer is 0 unless it was cut off.
        """
        assert self.critic is not None  # every row that has critic cells has one
        inner: list[Tensor] = []
        behind: list[Tensor] = []
        with torch.no_grad():
            for micro in batch.split(self.micro_tokens):
                states = self.critic.model(micro.tokens, micro.positions, micro.starts).double()
                inner.append(before(states, micro.chosen))
                behind.append(states[micro.starts[1:] - 1])
        return torch.cat(inner), torch.where(cut_off, torch.cat(behind), 0.0)

    def _train_critic(self, cells: Critic, batch: ValueBatch) -> dict[str, float]:
        """`updates` steps, each on a share of the rollout. Their mean loss, unless all were lost."""
        assert self.critic is not None
        losses: list[float] = []
        for share in shares(batch.sequences, cells.updates):
            mini = batch.take(share)
            weight = 1 / max(len(mini.chosen), 1)
            for micro in mini.split(self.micro_tokens):
                states = self.critic.model(micro.tokens, micro.positions, micro.starts)
                values = before(states, micro.chosen)
                loss = value_loss(values, micro.target, micro.value_old, cells.value_clip)
                self.critic.backward((loss * weight).sum())
            step = self.critic.step()
            losses += [] if step.lost else [step.loss]
        return {"value_loss": sum(losses) / len(losses)} if losses else {}

    def _with_token_reward(
        self, batch: PolicyBatch, right: Sequence[bool]
    ) -> tuple[M, dict[str, float]]:
        """Advantages times the weights of a token-level reward model; then that model learns."""
        assert self.critic is not None
        model = self.critic.model
        target = torch.tensor(right, device=batch.starts.device).to(batch.advantage.dtype)
        target = target[batch.sequence]
        with torch.no_grad():
            micros = batch.split(self.micro_tokens)
            w = torch.cat([model(m.tokens, m.positions, m.starts)[m.chosen] for m in micros])
        advantage = batch.advantage.double() * token_weights(w.double(), target)
        return advantage, self._train_token_reward(_targets(batch, target, w))

    def _train_token_reward(self, batch: ValueBatch) -> dict[str, float]:
        """One step on which answers were right. Its loss, unless it was lost."""
        assert self.critic is not None
        weight = 1 / batch.lengths[batch.sequence] / batch.sequences
        for micro in replace(batch, weight=weight).split(self.micro_tokens):
            w = self.critic.model(micro.tokens, micro.positions, micro.starts)[micro.chosen]
            loss = token_reward_loss(w, micro.sequence, micro.of_sequence(micro.target))
            self.critic.backward((loss[micro.sequence] * micro.weight).sum())
        step = self.critic.step()
        return {} if step.lost else {"token_reward_loss": step.loss}


def _targets(batch: PolicyBatch, target: Tensor, value_old: Tensor) -> ValueBatch:
    """The same sequences, with the numbers that a critic learns from."""
    layout = {name: getattr(batch, name) for name in (*LAYOUT, "weight")}
    dtype = batch.advantage.dtype
    return ValueBatch(**layout, target=target.to(dtype), value_old=value_old.to(dtype))


def last_tokens(batch: PolicyBatch) -> M:
    """1 at the last chosen token of each sequence, else 0."""
    last = torch.ones_like(batch.advantage, dtype=torch.float64)
    last[:-1] = (batch.sequence[1:] != batch.sequence[:-1]).double()
    return last


def shares(count: int, parts: int) -> list[range]:
    """0 .. count - 1 in `parts` stretches of nearly equal length, without empty ones.

    >>> shares(5, 2), shares(1, 2)
    ([range(0, 2), range(2, 5)], [range(0, 1)])
    """
    bounds = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(bounds) if b > a]
