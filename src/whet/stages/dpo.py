"""Direct preference optimization (DPO, arXiv:2305.18290): the policy is its own reward model."""

from dataclasses import replace

from torch import Tensor

from whet import config
from whet.algorithms.batch import RankedBatch
from whet.data import preferences
from whet.model.lora import adapt, frozen
from whet.model.policy import Policy
from whet.rollout import dataset
from whet.rollout.context import Context
from whet.storage.checkpoint import Counted
from whet.training.learner import Learner, fixed_logprobs, policy_logprobs
from whet.training.loop import PLAIN, steps
from whet.training.rankings import learn_rankings


def run(policy: Policy, stage: config.DPO, context: Context) -> None:
    """Trains `policy` in place for `stage.steps` steps, against a frozen reference."""
    adapt(policy, stage.lora, context.seed)
    reference = frozen(policy if stage.reference == "start" else context.policy(stage.reference))
    learner = Learner(policy, stage.optimizer, stage.steps)
    device = next(policy.parameters()).device
    rankings = dataset.rankings(stage.data, context)
    batches = Counted(preferences.epochs(rankings, stage.batch, context.seed))
    parts = {"policy": learner, "batches": batches}

    def reward(micro: RankedBatch) -> Tensor:
        return implicit(policy_logprobs(policy, micro, PLAIN)[0], micro, stage.beta)

    for step in steps(stage, parts, context.log, context.checkpoints):
        examples = [[context.example(r.problem, text) for text in r.texts] for r in next(batches)]
        batch = preferences.ranked_batch(examples).to(device)
        logp = fixed_logprobs(reference, batch, PLAIN, stage.micro_tokens)
        batch = replace(batch, reference=logp)
        figures, better, worse = learn_rankings(learner, batch, stage.micro_tokens, reward)
        figures |= {"reward_better": float(better.mean()), "reward_worse": float(worse.mean())}
        step.end("update")
        step.write(figures, [s.text for row in examples for s in row])


def implicit(logp: Tensor, batch: RankedBatch, beta: float) -> Tensor:
    """beta log pi(o) / pi_ref(o) [S], the reward that the policy stands for.

    DPO, arXiv:2305.18290, eq. 5 without its constant.
    """
    return beta * batch.sums(logp - batch.reference)
