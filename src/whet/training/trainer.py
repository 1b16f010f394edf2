"""The update of RL: scored groups in, optimizer steps out.

The path of a sample: `Group` -> advantage of the answer -> `PolicyBatch` of the whole rollout ->
advantage of each token -> correction of the sampler -> mini-batches -> micro-batches -> step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from whet.algorithms import objective
from whet.algorithms.algorithm import Algorithm
from whet.algorithms.batch import PolicyBatch, pack
from whet.algorithms.kl import k3
from whet.algorithms.off_policy import masked, truncated
from whet.model.policy import Policy
from whet.model.value_head import ScalarModel
from whet.storage.checkpoint import State, Stateful
from whet.training.learner import Learner, fixed_logprobs, policy_logprobs
from whet.training.token_advantages import TokenAdvantages, shares
from whet.types import Group, Sampling

Figures = dict[str, float]
NOTHING: Figures = {"grad_norm": 0.0, "tokens": 0.0}  # of an update without a step


@dataclass
class Trainer:
    """The models of a row and its update. The reference is frozen, the critic learns.

    For a row with `token_reward` the critic is a token-level reward model.
    """

    learner: Learner[Policy]
    row: Algorithm
    sampling: Sampling
    micro_tokens: int
    reference: Policy | None = None
    critic: Learner[ScalarModel] | None = None
    rollouts: int = 0  # seen so far

    def state(self) -> State:
        return State(data=self.rollouts)

    def restore(self, state: State) -> None:
        self.rollouts = state.data

    @property
    def parts(self) -> dict[str, Stateful]:
        """The parts that change from step to step, for checkpoints."""
        critic: dict[str, Stateful] = {} if self.critic is None else {"critic": self.critic}
        return {"policy": self.learner, "trainer": self, **critic}

    def update(self, groups: Sequence[Group]) -> tuple[Figures, list[list[float | None]]]:
        """`row.updates` optimizer steps, each on its share of the groups.

        Returns the figures to log, means over the steps, and the advantage of each sample, group by
        group: the mean over its tokens, None where the verifier failed and it is left out.
        """
        self.rollouts += 1
        usable = [g.usable for g in groups]
        ends = [0, *accumulate(len(g.samples) for g in usable)]
        if not ends[-1]:
            return dict(NOTHING), _by_group([], groups)
        parts = [range(ends[s.start], ends[s.stop]) for s in shares(len(usable), self.row.updates)]
        batch, figures = self._batch(usable, [part for part in parts if part])
        advantages = batch.sums(batch.advantage) / batch.lengths.clamp(min=1)
        if self.rollouts <= self.row.warmup:
            return figures | {"warmup": 1.0}, _by_group(advantages.tolist(), groups)
        batch, correction = self._corrected(batch)
        if self.row.fresh_optimizer:
            self.learner.fresh()
        steps = [step for part in parts if (step := self._step(batch, part))]
        return figures | correction | _mean(steps), _by_group(advantages.tolist(), groups)

    def _batch(
        self, groups: Sequence[Group], parts: Sequence[range]
    ) -> tuple[PolicyBatch, Figures]:
        """The whole rollout, with an advantage for each token.

        `parts` are the samples of each mini-batch. Weights count every sample of a mini-batch, also
        those that will not reach the model.
        """
        row = self.row
        samples = [s for g in groups for s in g.samples]
        right = [c.correct for g in groups for c in g.scores]
        advantages = torch.cat(objective.advantages(row, [g.rewards for g in groups]))
        weights: list[float] = []
        clones: list[float] = []
        for part in parts:
            lengths = [samples[i].length for i in part]
            weights += objective.weights(row, lengths, self.sampling.max_tokens)
            clones += objective.clone_weights(row, lengths, [right[i] for i in part])
        batch = pack(samples, advantages.tolist(), weights, clones=clones)
        batch = batch.to(next(self.learner.model.parameters()).device)
        if not (row.per_token or row.normalise):
            return batch, {}
        tokens = TokenAdvantages(row, self.sampling, self.micro_tokens, self.reference, self.critic)
        return tokens.compute(batch, samples, right)

    def _corrected(self, batch: PolicyBatch) -> tuple[PolicyBatch, Figures]:
        """The batch with the row's correction of a sampler that differs from the trainer.

        Ratios then start from the trainer's own log-probabilities, and weights carry the
        difference.
        """
        row = self.row
        if row.correction == "none" or not len(batch.chosen):
            return batch, {}
        logp = fixed_logprobs(self.learner.model, batch, self.sampling, self.micro_tokens)
        moved = logp - batch.logp_old
        if row.correction == "token":
            factor = truncated(moved, row.cap)
            corrected = factor >= row.cap
        else:
            factor = masked(moved, batch.sequence, row.cap)
            corrected = factor == 0
        figures = {
            "sampler_gap": float(moved.abs().max()),
            "corrected": float(corrected.double().mean()),
        }
        weight, clone = batch.weight * factor, batch.clone * factor
        return replace(batch, logp_old=logp, weight=weight, clone=clone), figures

    def _step(self, batch: PolicyBatch, part: range) -> Figures:
        """One optimizer step on the sequences of `part`; no figures where none can move the policy."""
        mini = batch.take(self._moving(batch, part))
        if not len(mini.chosen):
            return {}
        row, micros = self.row, list[Figures]()
        for micro in mini.split(self.micro_tokens):
            logp, entropy = policy_logprobs(
                self.learner.model, micro, self.sampling, row.entropy != 0
            )
            logp_ref = self._reference_logprobs(micro)
            self.learner.backward(objective.loss(row, logp, entropy, micro, logp_ref).sum())
            micros.append(self._sums(logp.detach(), entropy.detach(), logp_ref, micro))
        step, tokens = self.learner.step(), len(mini.chosen)
        if step.lost:
            return step.figures
        figures = {key: sum(m[key] for m in micros) / tokens for key in micros[0]}
        figures["gap"] = max(m["gap"] for m in micros)
        return {**step.figures, "tokens": float(tokens), **figures}

    def _moving(self, batch: PolicyBatch, part: range) -> Sequence[int]:
        """The sequences of `part` that can move the policy; the model need not read the others."""
        if not self.row.only_advantage:
            return part
        moves = set(batch.sequence[(batch.advantage != 0) & (batch.weight != 0)].unique().tolist())
        return [i for i in part if i in moves]

    def _reference_logprobs(self, micro: PolicyBatch) -> Tensor | None:
        if not self.row.needs_reference:
            return None
        assert self.reference is not None  # every row that has a KL has one
        return fixed_logprobs(self.reference, micro, self.sampling, self.micro_tokens)

    def _sums(
        self, logp: Tensor, entropy: Tensor, logp_ref: Tensor | None, micro: PolicyBatch
    ) -> Figures:
        """Sums over chosen tokens, and `gap`, the largest difference of trainer and sampler."""
        sums = {
            "entropy": float(entropy.sum()),
            "clipped": float(objective.bounded(self.row, logp, micro).sum()),
            "gap": float((logp - micro.logp_old).abs().max()) if len(logp) else 0.0,
        }
        if logp_ref is not None:
            sums["kl"] = float(k3(logp, logp_ref).sum())
        return sums


def _by_group(advantages: Sequence[float], groups: Sequence[Group]) -> list[list[float | None]]:
    """The advantages of usable samples, group by group, with None for the others."""
    each = iter(advantages)
    return [[next(each) if score.usable else None for score in g.scores] for g in groups]


def _mean(steps: Sequence[Figures]) -> Figures:
    """The mean of each figure over steps; of tokens the sum, of `gap` that of the first step."""
    made = [s for s in steps if "lost" not in s]
    lost = {"lost": float(len(steps) - len(made))} if len(made) < len(steps) else {}
    if not made:
        return NOTHING | lost
    figures = {key: sum(s[key] for s in made) / len(made) for key in made[0]}
    return figures | {"gap": made[0]["gap"], "tokens": sum(s["tokens"] for s in made)} | lost
