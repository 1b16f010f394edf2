"""Supervised fine-tuning: next-token loss on the response only. It also trains tiny base models."""

from collections.abc import Iterator, Mapping

import numpy as np

from whet import config
from whet.algorithms.batch import pack
from whet.algorithms.losses import policy_gradient
from whet.errors import DataError, GateError
from whet.evaluation.measure import accuracy_by_mode
from whet.model.lora import adapt
from whet.model.policy import Policy
from whet.rollout import dataset
from whet.rollout.context import Context
from whet.storage.checkpoint import Counted
from whet.training.learner import Learner, policy_logprobs
from whet.training.loop import PLAIN, steps
from whet.types import Problem

BLOCK = 4096  # responses that a corpus is asked for at a time


def run(policy: Policy, stage: config.SFT, context: Context) -> None:
    """Trains `policy` in place for `stage.steps` steps, or until its gate opens.

    Raises GateError if the gate never opens.
    """
    adapt(policy, stage.lora, context.seed)
    learner = Learner(policy, stage.optimizer, stage.steps)
    device = next(policy.parameters()).device
    pairs = Counted(documents(stage, context))
    parts = {"policy": learner, "pairs": pairs}

    for step in steps(stage, parts, context.log, context.checkpoints):
        seed = context.seed * 1_000_003 + step.number
        examples = [context.example(*next(pairs), seed) for _ in range(stage.batch)]
        tokens = sum(e.length for e in examples)
        batch = pack(examples, [1.0] * len(examples), [1 / tokens] * len(examples)).to(device)
        for micro in batch.split(stage.micro_tokens):
            logp, _ = policy_logprobs(policy, micro, PLAIN)
            learner.backward((policy_gradient(logp, micro.advantage) * micro.weight).sum())
        update = learner.step()
        figures = {**update.figures, "lr": update.lr, "tokens": float(tokens)}
        step.end("update")
        opened, last = False, step.number == stage.steps
        if stage.gate is not None and (last or step.number % stage.gate.every == 0):
            seed = context.seed * 7919 + step.number
            accuracies = accuracy_by_mode(policy, context, stage.gate, seed)
            opened = opens(stage.gate, accuracies, step.number, last)
            figures["gate"] = accuracies.get(stage.gate.mode, (0.0, 0))[0]
            step.end("gate")
        step.write(figures, [e.text for e in examples])
        if opened:
            return


def documents(stage: config.SFT, context: Context) -> Iterator[tuple[Problem, str]]:
    """(problem, response) pairs without end, from each source of data by its share."""
    sources = {name: share for name, share in stage.shares.items() if share > 0}
    streams = [_stream(name, stage, context) for name in sources]
    shares = np.array(list(sources.values()))
    rng = np.random.default_rng(context.seed)
    while True:
        for i in rng.choice(len(streams), size=1024, p=shares / shares.sum()):
            yield next(streams[i])


def _stream(name: str, stage: config.SFT, context: Context) -> Iterator[tuple[Problem, str]]:
    """The task's corpus, new in each block; or the responses of a reject stage, epoch by epoch."""
    if name == "corpus":
        block = 0
        while True:
            pairs = context.task.corpus(stage.mix, BLOCK, context.seed * 100_003 + block)
            if not pairs:
                raise DataError(f"task {context.task.name} has no corpus to train on")
            yield from pairs
            block += 1
    pairs = dataset.verified(name, context)
    rng = np.random.default_rng(context.seed)
    while True:
        for i in rng.permutation(len(pairs)):
            yield pairs[i]


def opens(
    gate: config.Gate, accuracies: Mapping[str, tuple[float, int]], step: int, last: bool
) -> bool:
    """Whether the model answers well enough in the gate's mode.

    `accuracies` has (accuracy, number of answers) of each mode. Raises GateError where the gate
    stays shut after the last step.
    """
    right, n = accuracies.get(gate.mode, (0.0, 0))
    rival, _ = accuracies.get(gate.above, (0.0, 0)) if gate.above else (0.0, 0)
    if n and right >= gate.accuracy and (gate.above is None or right > rival):
        return True
    if last:
        above = f" and above {gate.above} ({rival:.2f})" if gate.above else ""
        raise GateError(
            f"the gate was not reached in {step} steps: accuracy given {gate.mode} is {right:.2f} "
            f"of {n} answers; "
            f"it must be {gate.accuracy}{above}. Give the stage more steps"
        )
    return False
