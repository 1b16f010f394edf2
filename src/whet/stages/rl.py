"""Reinforcement learning: sample groups, score, turn rewards into advantages, step."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import torch

from whet import config
from whet.algorithms import Algorithm, algorithm
from whet.batch import PolicyBatch, pack
from whet.context import Context
from whet.errors import RewardError
from whet.kl import k3
from whet.learner import Learner, policy_logprobs
from whet.model.policy import Policy
from whet.rollout import describe, mean, rollout
from whet.types import Engine, Group, Problem, Sampling, Update
from whet.watch import concerns


def run(policy: Policy, stage: config.RL, context: Context) -> None:
    """Trains `policy` in place for `stage.steps` steps."""
    row = algorithm(stage.algorithm, stage.override)
    learner = Learner(policy, stage.optimizer, stage.steps * row.updates)
    reference = copy.deepcopy(policy).eval().requires_grad_(False) if row.needs_reference else None
    sampling = Sampling(stage.samples, stage.temperature, stage.max_tokens, stage.top_p, stage.top_k)
    trainer = Trainer(learner, reference, row, sampling, stage.micro_tokens)
    engine = context.engine(policy, context.chat)
    problems = context.stream("train")
    history: list[dict[str, float]] = []
    for step in range(1, stage.steps + 1):
        engine.version = learner.done
        if (step - 1) % stage.probe_every == 0:
            probe(engine, stage, context, step - 1)
        began = time.perf_counter()
        fresh = replace(sampling, seed=context.seed * 1_000_003 + step)
        groups, trained = collect(engine, problems, fresh, stage, context, row.sampling == "dynamic")
        sampled = time.perf_counter()
        usable = [g.usable for g in trained]
        advantages = row.advantages([g.rewards for g in usable])
        values = describe(groups, context.task) | trainer.update(usable, advantages)
        seconds = {"sample": sampled - began, "update": time.perf_counter() - sampled}
        history.append(values)
        context.log.samples(stage.name, step, trained, context.chat, context.task, _aligned(trained, advantages))
        context.log.update(Update(stage.name, step, values, seconds), "rl")
        for text in concerns(history):
            context.log.warn(stage.name, step, text)
    engine.version = learner.done
    probe(engine, stage, context, stage.steps)


def probe(engine: Engine, stage: config.RL, context: Context, step: int) -> None:
    """The same few test problems, with the same random numbers, after `step` steps: what changes is the policy. Never trained on."""
    prompts = context.some("test", stage.probe, context.seed) if stage.probe else []
    if prompts:
        sampling = Sampling(4, stage.temperature, stage.max_tokens, stage.top_p, stage.top_k, context.seed)
        groups = rollout(engine, context.reward, prompts, sampling)
        context.log.samples(f"{stage.name}-probe", step, groups, context.chat, context.task)


def collect(
    engine: Engine, problems: Iterator[Problem], sampling: Sampling, stage: config.RL, context: Context, dynamic: bool
) -> tuple[list[Group], list[Group]]:  # fmt: skip
    """All groups drawn for one step, and those to train on.

    Dynamic sampling (DAPO, arXiv:2503.14476, sec. 3.2) draws again until `stage.prompts` groups have signal, at most
    `stage.draws` times; what has none is left out.
    """
    groups: list[Group] = []
    trained: list[Group] = []
    for _ in range(stage.draws if dynamic else 1):
        fresh = rollout(engine, context.reward, context.prompts(list(islice(problems, stage.prompts))), sampling)
        _refuse_errors(fresh, stage.max_errors)
        groups += fresh
        trained += [g for g in fresh if g.usable.has_signal] if dynamic else fresh
        if len(trained) >= stage.prompts:
            break
    return groups, trained[: stage.prompts]


def _refuse_errors(groups: Sequence[Group], most: float) -> None:
    failed = [c for g in groups for c in g.scores if not c.usable]
    share = len(failed) / sum(len(g.scores) for g in groups)
    if share > most:
        raise RewardError(
            f"the verifier failed on {share:.0%} of a step's answers ({failed[0].status}); more than max_errors = {most:.0%} would mislead the update"
        )


def _aligned(groups: Sequence[Group], advantages: Sequence[torch.Tensor]) -> list[list[float | None]]:
    """Advantages [G] per group, None for samples whose verifier failed."""
    rows: list[list[float | None]] = []
    for group, values in zip(groups, advantages, strict=True):
        given = iter(values.tolist())
        rows.append([next(given) if score.usable else None for score in group.scores])
    return rows


@dataclass
class Trainer:
    """What turns groups and advantages into optimizer steps."""

    learner: Learner
    reference: Policy | None
    row: Algorithm
    sampling: Sampling
    micro_tokens: int

    def update(self, groups: Sequence[Group], advantages: Sequence[torch.Tensor]) -> dict[str, float]:
        """`row.updates` optimizer steps, each on its share of the groups; the figures are means over them."""
        bounds = [len(groups) * i // self.row.updates for i in range(self.row.updates + 1)]
        steps = [self._minibatch(groups[a:b], advantages[a:b]) for a, b in pairwise(bounds) if b > a]
        made = [s for s in steps if s]
        figures = {key: mean([s[key] for s in made]) for key in made[0]} if made else {"grad_norm": 0.0, "tokens": 0.0}
        if made:
            figures["gap"] = made[0]["gap"]
            figures["tokens"] = sum(s["tokens"] for s in made)
        return figures

    def _minibatch(self, groups: Sequence[Group], advantages: Sequence[torch.Tensor]) -> dict[str, float]:
        """One step. Weights count every sample; only those that can move the policy reach the model."""
        samples = [s for g in groups for s in g.samples]
        given = [a for values in advantages for a in values.tolist()]
        weights = self.row.weights([s.length for s in samples], self.sampling.max_tokens)
        keep = [i for i, a in enumerate(given) if a != 0 or not self.row.only_advantage]
        if not keep:
            return {}
        batch = pack([samples[i] for i in keep], [given[i] for i in keep], [weights[i] for i in keep])
        batch = batch.to(next(self.learner.policy.parameters()).device)
        sums: dict[str, float] = {}

        def loss_of(micro: PolicyBatch) -> torch.Tensor:
            logp, entropy = policy_logprobs(self.learner.policy, micro, self.sampling, self.row.entropy != 0)
            logp_ref = self._reference(micro)
            for key, value in self._figures(logp.detach(), entropy.detach(), logp_ref, micro).items():
                sums[key] = sums.get(key, 0.0) + value if key != "gap" else max(sums.get(key, 0.0), value)
            return self.row.loss(logp, entropy, micro, logp_ref)

        stepped = self.learner.step(batch, self.micro_tokens, loss_of)
        tokens = len(batch.chosen)
        figures = {key: value if key == "gap" else value / tokens for key, value in sums.items()}
        return {"loss": stepped.loss, "grad_norm": stepped.grad_norm, "tokens": float(tokens), **figures}

    def _reference(self, micro: PolicyBatch) -> torch.Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return policy_logprobs(self.reference, micro, self.sampling)[0]

    def _figures(
        self, logp: torch.Tensor, entropy: torch.Tensor, logp_ref: torch.Tensor | None, micro: PolicyBatch
    ) -> dict[str, float]:  # fmt: skip
        """Sums over chosen tokens; `gap` is the largest difference between trainer and sampler."""
        found = {
            "entropy": float(entropy.sum()),
            "clipped": float(self.row.clipped(logp, micro).sum()),
            "gap": float((logp - micro.logp_old).abs().max()),
        }
        if logp_ref is not None:
            found["kl"] = float(k3(logp, logp_ref).sum())
        return found
