"""Scored groups -> optimizer steps. What a row of the table asks for happens here, in this order:
credit, correction, mini-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from whet.algorithms.algorithm import Algorithm
from whet.algorithms.batch import PolicyBatch, pack
from whet.algorithms.kl import k3
from whet.algorithms.off_policy import masked, truncated
from whet.model.policy import Policy
from whet.model.value_head import ScalarModel
from whet.storage.checkpoint import State, Stateful
from whet.training.learner import Learner, policy_logprobs
from whet.training.token_advantages import Credit, shares
from whet.types import Group, Sample, Sampling


@dataclass
class Trainer:
    """What turns groups into optimizer steps. The reference is frozen; the judge is a critic or a
    token-level reward model.
    """

    learner: Learner[Policy]
    row: Algorithm
    sampling: Sampling
    micro_tokens: int
    reference: Policy | None = None
    judge: Learner[ScalarModel] | None = None
    rollouts: int = 0  # seen so far

    def state(self) -> State:
        return State(data=self.rollouts)

    def restore(self, state: State) -> None:
        self.rollouts = state.data

    @property
    def parts(self) -> dict[str, Stateful]:
        """What changes from step to step."""
        judge: dict[str, Stateful] = {} if self.judge is None else {"judge": self.judge}
        return {"policy": self.learner, "trainer": self, **judge}

    def update(self, groups: Sequence[Group]) -> tuple[dict[str, float], list[list[float]]]:
        """`row.updates` optimizer steps, each on its share of the groups.

        Returns figures, means over the steps, and the mean advantage of each sample's tokens, group
        by group.
        """
        outcome = self.row.advantages([g.rewards for g in groups])
        given = [a for values in outcome for a in values.tolist()]
        samples = [s for g in groups for s in g.samples]
        self.rollouts += 1
        if not samples:
            return {"grad_norm": 0.0, "tokens": 0.0}, [[] for _ in groups]
        ends = torch.tensor([0, *(len(g.samples) for g in groups)]).cumsum(0).tolist()
        parts = [range(ends[s.start], ends[s.stop]) for s in shares(len(groups), self.row.updates)]
        batch, figures = self._judged(groups, samples, given, [p for p in parts if p])
        told = batch.advantage.new_zeros(len(samples)).index_add(
            0, batch.sequence, batch.advantage
        ) / batch.lengths.clamp(min=1)
        means = [told[a:b].tolist() for a, b in pairwise(ends)]
        if self.rollouts <= self.row.warmup:
            return figures | {"warmup": 1.0}, means
        batch, corrected = self._corrected(batch)
        if self.row.fresh_optimizer:
            self.learner.fresh()
        made = [s for part in parts if (s := self._minibatch(batch, part))]
        return figures | corrected | _over_steps(made), means

    def _judged(
        self,
        groups: Sequence[Group],
        samples: Sequence[Sample],
        given: Sequence[float],
        parts: Sequence[range],
    ) -> tuple[PolicyBatch, dict[str, float]]:
        """All samples in one batch with an advantage for each token. Weights count every sample of
        its mini-batch.
        """
        right = [c.correct for g in groups for c in g.scores]
        weights, clones = list[float](), list[float]()
        for part in parts:
            lengths = [samples[i].length for i in part]
            weights += self.row.weights(lengths, self.sampling.max_tokens)
            clones += self.row.clones(lengths, [right[i] for i in part], self.sampling.max_tokens)
        batch = pack(samples, given, weights, clones=clones).to(
            next(self.learner.model.parameters()).device
        )
        if not (self.row.per_token or self.row.normalise):
            return batch, {}
        credit = Credit(self.row, self.sampling, self.micro_tokens, self.reference, self.judge)
        return credit.give(batch, samples, right)

    def _corrected(self, batch: PolicyBatch) -> tuple[PolicyBatch, dict[str, float]]:
        """Where the row corrects for its sampler: ratios start from the trainer's own
        log-probabilities, and weights carry the difference.
        """
        if self.row.correction == "none" or not len(batch.chosen):
            return batch, {}
        with torch.no_grad():
            micros = batch.split(self.micro_tokens)
            logp = torch.cat(
                [policy_logprobs(self.learner.model, m, self.sampling)[0] for m in micros]
            )
        moved = logp - batch.logp_old
        if self.row.correction == "token":
            factor = truncated(moved, self.row.cap)
            share = (factor >= self.row.cap).double().mean()
        else:
            factor = masked(moved, batch.sequence, self.row.cap)
            share = (factor == 0).double().mean()
        figures = {"sampler_gap": float(moved.abs().max()), "corrected": float(share)}
        return replace(batch, logp_old=logp, weight=batch.weight * factor), figures

    def _minibatch(self, batch: PolicyBatch, part: range) -> dict[str, float]:
        """One step on the sequences of `part`; only those that can move the policy reach the model."""
        if self.row.only_advantage:
            moves = torch.zeros(batch.sequences, dtype=torch.bool, device=batch.starts.device)
            moves[batch.sequence[(batch.advantage != 0) & (batch.weight != 0)]] = True
            keep = [
                i for i, m in zip(part, moves[part.start : part.stop].tolist(), strict=True) if m
            ]
        else:
            keep = list(part)
        mini = batch.take(keep)
        if not len(mini.chosen):
            return {}
        sums: dict[str, float] = {}

        def loss_of(micro: PolicyBatch) -> Tensor:
            logp, entropy = policy_logprobs(
                self.learner.model, micro, self.sampling, self.row.entropy != 0
            )
            logp_ref = self._reference(micro)
            for key, value in self._figures(
                logp.detach(), entropy.detach(), logp_ref, micro
            ).items():
                sums[key] = (
                    sums.get(key, 0.0) + value if key != "gap" else max(sums.get(key, 0.0), value)
                )
            return self.row.loss(logp, entropy, micro, logp_ref)

        stepped = self.learner.step(mini, self.micro_tokens, loss_of)
        tokens = len(mini.chosen)
        figures = {key: value if key == "gap" else value / tokens for key, value in sums.items()}
        return (
            stepped.values
            if stepped.lost
            else {**stepped.values, "tokens": float(tokens), **figures}
        )

    def _reference(self, micro: PolicyBatch) -> Tensor | None:
        if not self.row.needs_reference:
            return None
        assert self.reference is not None
        with torch.no_grad():
            return policy_logprobs(self.reference, micro, self.sampling)[0]

    def _figures(
        self, logp: Tensor, entropy: Tensor, logp_ref: Tensor | None, micro: PolicyBatch
    ) -> dict[str, float]:
        """Sums over chosen tokens; `gap` is the largest difference between trainer and sampler."""
        found = {
            "entropy": float(entropy.sum()),
            "clipped": float(self.row.clipped(logp, micro).sum()),
            "gap": float((logp - micro.logp_old).abs().max()) if len(logp) else 0.0,
        }
        if logp_ref is not None:
            found["kl"] = float(k3(logp, logp_ref).sum())
        return found


def _over_steps(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    made = [s for s in steps if "lost" not in s]
    if len(made) < len(steps):
        return _over_steps(made) | {"lost": float(len(steps) - len(made))}
    if not made:
        return {"grad_norm": 0.0, "tokens": 0.0}
    figures = {key: sum(s[key] for s in made) / len(made) for key in made[0]}
    return figures | {"gap": made[0]["gap"], "tokens": sum(s["tokens"] for s in made)}
