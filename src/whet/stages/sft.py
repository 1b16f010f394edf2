"""Supervised fine-tuning: next-token loss on the response only. It also trains a tiny base model
from nothing.
"""

import time
from collections.abc import Iterator, Mapping

import numpy as np

from whet import config
from whet.algorithms.batch import PolicyBatch, pack
from whet.algorithms.losses import policy_gradient
from whet.errors import DataError, GateError
from whet.evaluation.measure import accuracy_by_mode
from whet.model.lora import adapt
from whet.model.policy import Policy
from whet.rollout.context import Context
from whet.storage.checkpoint import Counted, Holds
from whet.training.learner import Learner, policy_logprobs
from whet.types import Problem, Sampling, Update

PLAIN = Sampling(n=1, temperature=1.0)
BLOCK = 4096  # responses that a corpus is asked for at a time


def run(policy: Policy, stage: config.SFT, context: Context) -> None:
    """Trains `policy` in place for `stage.steps` steps, or until its gate holds. Raises GateError
    if it never does.
    """
    adapt(policy, stage.lora, context.seed)
    learner = Learner(policy, stage.optimizer, stage.steps)
    device = next(policy.parameters()).device
    pairs = Counted(documents(stage, context))
    parts: dict[str, Holds] = {"policy": learner, "pairs": pairs}
    for step in range(context.resumed(stage.name, parts) + 1, stage.steps + 1):
        began = time.perf_counter()
        examples = [
            context.example(*next(pairs), context.seed * 1_000_003 + step)
            for _ in range(stage.batch)
        ]
        tokens = sum(e.length for e in examples)
        batch = pack(examples, [1.0] * len(examples), [1 / tokens] * len(examples)).to(device)

        def loss_of(micro: PolicyBatch):  # noqa: ANN202
            return policy_gradient(policy_logprobs(policy, micro, PLAIN)[0], micro.advantage)

        lr = stage.optimizer.lr * learner.lr_scale
        stepped = learner.step(batch, stage.micro_tokens, loss_of)
        values = {**stepped.values, "lr": lr, "tokens": float(tokens)}
        seconds = {"update": time.perf_counter() - began}
        reached, last = False, step == stage.steps
        if stage.gate is not None and (last or step % stage.gate.every == 0):
            told = accuracy_by_mode(policy, context, stage.gate, seed=context.seed * 7919 + step)
            reached = holds(stage.gate, told, step, last)
            values["gate"] = told.get(stage.gate.mode, (0.0, 0))[0]
            seconds["gate"] = time.perf_counter() - began - seconds["update"]
        context.log.update(Update(stage.name, step, values, seconds), "sft")
        if stepped.lost:
            context.log.lost(stage.name, step, [e.text for e in examples])
        if reached:
            return
        context.kept(step, stage.steps, parts)


def documents(stage: config.SFT, context: Context) -> Iterator[tuple[Problem, str]]:
    """(problem, response) without end: the task's corpus, new each block; a reject stage's samples,
    epoch by epoch; or both by their shares.
    """
    streams = {
        name: _stream(name, stage, context) for name, share in stage.shares.items() if share > 0
    }
    shares = np.array([stage.shares[name] for name in streams])
    rng = np.random.default_rng(context.seed)
    while True:
        for i in rng.choice(len(streams), size=1024, p=shares / shares.sum()):
            yield next(list(streams.values())[i])


def _stream(name: str, stage: config.SFT, context: Context) -> Iterator[tuple[Problem, str]]:
    if name == "corpus":
        block = 0
        while True:
            pairs = context.task.corpus(stage.mix, BLOCK, context.seed * 100_003 + block)
            if not pairs:
                raise DataError(f"task {context.task.name} has no corpus to train on")
            yield from pairs
            block += 1
    pairs = context.data[name]
    if not pairs:
        raise DataError(f"stage {stage.name}: the reject stage {name!r} kept no sample to train on")
    rng = np.random.default_rng(context.seed)
    while True:
        for i in rng.permutation(len(pairs)):
            yield pairs[i]


def holds(gate: config.Gate, told: Mapping[str, tuple[float, int]], step: int, last: bool) -> bool:
    """Whether the model answers well enough in the gate's mode; `told` gives (accuracy, answers) by
    mode.

    Raises GateError where it does not and no step is left.
    """
    right, n = told.get(gate.mode, (0.0, 0))
    rival, _ = told.get(gate.above, (0.0, 0)) if gate.above else (0.0, 0)
    if n and right >= gate.accuracy and (gate.above is None or right > rival):
        return True
    if last:
        above = f" and above {gate.above} ({rival:.2f})" if gate.above else ""
        raise GateError(
            f"the gate was not reached in {step} steps: accuracy given {gate.mode} is {right:.2f} of {n} answers; "
            f"it must be {gate.accuracy}{above}. Give the stage more steps"
        )
    return False
