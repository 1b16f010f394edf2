"""The second step of RLHF: a scalar head on the starting model, trained to score the better of two
responses higher.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from whet import config
from whet.algorithms.batch import RankedBatch
from whet.algorithms.losses import bradley_terry, pairs
from whet.data import preferences
from whet.evaluation import statistics
from whet.model import pretrained, value_head
from whet.model.policy import Policy
from whet.model.value_head import ScalarModel
from whet.rollout.context import Context
from whet.storage.checkpoint import Counted, Holds, committed
from whet.training.learner import Learner
from whet.types import Problem, Ranking, Sample, Update

CENTRED = 1024  # training responses whose mean score becomes 0


def run(policy: Policy, stage: config.RewardModel, context: Context) -> dict[str, Any]:
    """Trains a reward model, writes it to STAGE/model, and returns the accuracy on held-out pairs.
    The policy stays as it is.
    """
    training, held = preferences.split(context.ranked(stage.data), stage.held_out, context.seed)
    model = ScalarModel(policy, stage.lora)
    learner = Learner(model, stage.optimizer, stage.steps)
    device = next(model.parameters()).device
    batches = Counted(preferences.epochs(training, stage.batch, context.seed))
    parts: dict[str, Holds] = {"model": learner, "batches": batches}
    for step in range(context.resumed(stage.name, parts) + 1, stage.steps + 1):
        began = time.perf_counter()
        examples = [
            [last_token(r.problem, text, context) for text in r.texts] for r in next(batches)
        ]
        batch = preferences.ranked_batch(examples).to(device)
        right: list[Tensor] = []

        def loss_of(micro: RankedBatch, right: list[Tensor] = right) -> Tensor:
            score = model(micro.tokens, micro.positions, micro.starts)[micro.chosen]
            better, worse = pairs(micro.group, micro.rank)
            right.append((score[better] > score[worse]).detach())
            return bradley_terry(score, micro.group, micro.rank)

        lr = stage.optimizer.lr * learner.lr_scale
        stepped = learner.step(batch, stage.micro_tokens, loss_of)
        share = sum(int(r.sum()) for r in right) / max(sum(len(r) for r in right), 1)
        values = {**stepped.values, "pairs_right": share, "lr": lr}
        context.log.update(
            Update(stage.name, step, values, {"update": time.perf_counter() - began}),
            "reward_model",
        )
        if stepped.lost:
            context.log.lost(stage.name, step, [s.text for row in examples for s in row])
        context.kept(step, stage.steps, parts)
    centre(model, training, context)
    with committed(context.log.directory / stage.name / "model") as folder:
        pretrained.write(model.whole(), folder)
        context.chat.save(folder)
    return measured(model, held, context)


def last_token(problem: Problem, text: str, context: Context) -> Sample:
    """Prompt and response as a sample of which only the last token's state is read."""
    sample = context.example(problem, text)
    mask = sample.mask.copy()
    mask[:-1] = False
    return replace(sample, mask=mask)


def scores(model: ScalarModel, found: Sequence[Ranking], context: Context) -> list[list[float]]:
    """[R][K] scores of the responses, best-ranked first."""
    rows = [context.example(r.problem, text).tokens.tolist() for r in found for text in r.texts]
    values = iter(value_head.score(model, rows))
    return [[next(values) for _ in r.texts] for r in found]


def centre(model: ScalarModel, training: Sequence[Ranking], context: Context) -> None:
    """Pairs say nothing about a constant: the bias makes the mean score of training responses 0
    (InstructGPT, arXiv:2203.02155, sec. 3.5).
    """
    some: list[Ranking] = []
    for ranking in training:
        some.append(ranking)
        if sum(len(r.texts) for r in some) >= CENTRED:
            break
    given = [value for row in scores(model, some, context) for value in row]
    model.value_head.bias.data -= sum(given) / len(given)


def measured(model: ScalarModel, held: Sequence[Ranking], context: Context) -> dict[str, Any]:
    """Accuracy on all pairs of the held-out rankings, a tie half right, with its 95 % interval over
    prompts.
    """
    rows: dict[str, list[float]] = {}
    for ranking, given in zip(held, scores(model, held, context), strict=True):
        right = [
            1.0 if better > worse else 0.5 if better == worse else 0.0
            for i, better in enumerate(given)
            for worse in given[i + 1 :]
        ]
        rows.setdefault(str(ranking.problem.messages), []).extend(right)
    interval = statistics.mean_with_interval(list(rows.values()))
    count = sum(len(row) for row in rows.values())
    return {
        "pairs": {"accuracy": interval.mean, "low": interval.low, "high": interval.high, "n": count}
    }
