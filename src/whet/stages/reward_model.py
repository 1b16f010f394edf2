"""Reward model, the second step of RLHF: a scalar head trained to score the better of two responses
higher.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from whet import config
from whet.algorithms.batch import RankedBatch
from whet.data import preferences
from whet.evaluation import statistics
from whet.model import pretrained, value_head
from whet.model.policy import Policy
from whet.model.value_head import ScalarModel
from whet.rollout import dataset
from whet.rollout.context import Context
from whet.storage.atomic import committed
from whet.storage.checkpoint import Counted
from whet.training.learner import Learner
from whet.training.loop import steps
from whet.training.rankings import learn_rankings
from whet.types import Problem, Ranking, Sample

CENTRED = 1024  # training responses whose mean score becomes 0


def run(policy: Policy, stage: config.RewardModel, context: Context) -> dict[str, Any]:
    """Trains a reward model, writes it to STAGE/model, and returns the accuracy on held-out pairs.

    The policy stays as it is.
    """
    rankings = dataset.rankings(stage.data, context)
    training, testing = preferences.split(rankings, stage.held_out, context.seed)
    model = ScalarModel(policy, stage.lora)
    learner = Learner(model, stage.optimizer, stage.steps)
    device = next(model.parameters()).device
    batches = Counted(preferences.epochs(training, stage.batch, context.seed))
    parts = {"model": learner, "batches": batches}

    def reward(micro: RankedBatch) -> Tensor:
        return model(micro.tokens, micro.positions, micro.starts)[micro.chosen]

    for step in steps(stage, parts, context.log, context.checkpoints):
        examples = [
            [last_token(r.problem, text, context) for text in r.texts] for r in next(batches)
        ]
        batch = preferences.ranked_batch(examples).to(device)
        figures, _, _ = learn_rankings(learner, batch, stage.micro_tokens, reward)
        step.end("update")
        step.write(figures, [s.text for row in examples for s in row])
    centre(model, training, context)
    with committed(context.log.directory / stage.name / "model") as folder:
        pretrained.write(model.whole(), folder)
        context.chat.save(folder)
    return accuracy(model, testing, context)


def last_token(problem: Problem, text: str, context: Context) -> Sample:
    """Prompt and response as a sample of which only the last token's state is read."""
    sample = context.example(problem, text)
    mask = sample.mask.copy()
    mask[:-1] = False
    return replace(sample, mask=mask)


def scores(model: ScalarModel, rankings: Sequence[Ranking], context: Context) -> list[list[float]]:
    """[R][K] scores of the responses, best-ranked first."""
    rows = [context.example(r.problem, text).tokens.tolist() for r in rankings for text in r.texts]
    values = iter(value_head.score(model, rows))
    return [[next(values) for _ in r.texts] for r in rankings]


def centre(model: ScalarModel, training: Sequence[Ranking], context: Context) -> None:
    """Sets the head's bias so that the mean score of training responses is 0.

    Pairs say nothing about a constant (InstructGPT, arXiv:2203.02155, sec. 3.5).
    """
    some: list[Ranking] = []
    for ranking in training:
        some.append(ranking)
        if sum(len(r.texts) for r in some) >= CENTRED:
            break
    values = [value for row in scores(model, some, context) for value in row]
    model.value_head.bias.data -= sum(values) / len(values)


def accuracy(model: ScalarModel, testing: Sequence[Ranking], context: Context) -> dict[str, Any]:
    """The accuracy on all pairs of the rankings, with its 95 % interval over prompts.

    A tie is half right.
    """
    rows: dict[str, list[float]] = {}
    for ranking, row in zip(testing, scores(model, testing, context), strict=True):
        right = [
            1.0 if better > worse else 0.5 if better == worse else 0.0
            for i, better in enumerate(row)
            for worse in row[i + 1 :]
        ]
        rows.setdefault(str(ranking.problem.messages), []).extend(right)
    interval = statistics.mean_with_interval(list(rows.values()))
    count = sum(len(row) for row in rows.values())
    return {
        "pairs": {"accuracy": interval.mean, "low": interval.low, "high": interval.high, "n": count}
    }
