"""Direct preference optimization: the policy itself is the reward model, against a frozen reference
(DPO, arXiv:2305.18290).
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from whet import config
from whet.algorithms.batch import RankedBatch
from whet.algorithms.losses import bradley_terry, pairs
from whet.data import preferences
from whet.model.lora import adapt, frozen
from whet.model.policy import Policy
from whet.rollout.context import Context
from whet.storage.checkpoint import Counted, Holds
from whet.training.learner import Learner, policy_logprobs
from whet.types import Sampling, Update

PLAIN = Sampling(n=1, temperature=1.0)


def run(policy: Policy, stage: config.DPO, context: Context) -> None:
    """Trains `policy` in place for `stage.steps` steps."""
    adapt(policy, stage.lora, context.seed)
    reference = frozen(policy if stage.reference == "start" else context.policy(stage.reference))
    learner = Learner(policy, stage.optimizer, stage.steps)
    device = next(policy.parameters()).device
    batches = Counted(preferences.epochs(context.ranked(stage.data), stage.batch, context.seed))
    parts: dict[str, Holds] = {"policy": learner, "batches": batches}
    for step in range(context.resumed(stage.name, parts) + 1, stage.steps + 1):
        began = time.perf_counter()
        examples = [[context.example(r.problem, text) for text in r.texts] for r in next(batches)]
        batch = referred(
            preferences.ranked_batch(examples).to(device), reference, stage.micro_tokens
        )
        seen: list[tuple[Tensor, Tensor]] = []

        def loss_of(micro: RankedBatch, seen: list[tuple[Tensor, Tensor]] = seen) -> Tensor:
            earned = implicit(policy_logprobs(policy, micro, PLAIN)[0], micro, stage.beta)
            group, rank = micro.of_sequence(micro.group), micro.of_sequence(micro.rank)
            better, worse = pairs(group, rank)
            seen.append((earned[better].detach(), earned[worse].detach()))
            return bradley_terry(earned, group, rank)[micro.sequence]

        lr = stage.optimizer.lr * learner.lr_scale
        stepped = learner.step(batch, stage.micro_tokens, loss_of)
        better, worse = (torch.cat(side) for side in zip(*seen, strict=True))
        values = {
            **stepped.values,
            "pairs_right": float((better > worse).double().mean()),
            "reward_better": float(better.mean()),
            "reward_worse": float(worse.mean()),
            "lr": lr,
        }
        context.log.update(
            Update(stage.name, step, values, {"update": time.perf_counter() - began}), "dpo"
        )
        if stepped.lost:
            context.log.lost(stage.name, step, [s.text for row in examples for s in row])
        context.kept(step, stage.steps, parts)


def referred(batch: RankedBatch, reference: Policy, micro_tokens: int) -> RankedBatch:
    """The batch with the reference's log-probabilities."""
    with torch.no_grad():
        found = [policy_logprobs(reference, micro, PLAIN)[0] for micro in batch.split(micro_tokens)]
    return replace(batch, reference=torch.cat(found))


def implicit(logp: Tensor, batch: RankedBatch, beta: float) -> Tensor:
    """beta log pi(o) / pi_ref(o) [S], the reward that the policy stands for. DPO, arXiv:2305.18290,
    eq. 5 without its constant.
    """
    return beta * logp.new_zeros(batch.sequences).index_add(
        0, batch.sequence, logp - batch.reference
    )
