"""Ranked responses: draw several for each prompt and order them, as data for reward models and DPO."""

import random

from whet import config
from whet.data import preferences
from whet.errors import RecipeError
from whet.model.policy import Policy
from whet.rollout import dataset
from whet.rollout.context import Context
from whet.types import Group, Problem, Ranker, Ranking, Score, Task

Answers = dict[str, tuple[int, Score]]  # by text: its length in tokens, its score


def run(policy: Policy, stage: config.Rank, context: Context) -> None:
    """Writes rankings to STAGE/rankings.jsonl."""
    refuse(stage, context.task)
    rng = random.Random(context.seed)

    def select(group: Group) -> list[Ranking]:
        return ranked(group, stage, context.task, rng)

    dataset.draw(policy, stage, context, select, preferences.write, dataset.RANKINGS)


def refuse(stage: config.Rank, task: Task) -> None:
    """Raises RecipeError where the task cannot rank, or where a key would not be read."""
    if stage.by == "task" and not isinstance(task, Ranker):
        raise RecipeError(
            f"stage {stage.name}: task {task.name} ranks nothing; use by = 'reward' or 'length'"
        )
    if stage.by != "length" and stage.longer != type(stage).model_fields["longer"].default:
        raise RecipeError(
            f"stage {stage.name}: by = {stage.by!r} looks at no length, so longer = "
            f"{stage.longer:g} would not be read; drop it"
        )


def ranked(group: Group, stage: config.Rank, task: Task, rng: random.Random) -> list[Ranking]:
    """The group's finished, different responses in order; empty where no two can be told apart."""
    problem, usable = group.prompt.problem, group.usable
    rows = zip(usable.samples, usable.texts, usable.scores, strict=True)
    answers = {text: (s.length, score) for s, text, score in rows if s.finish == "stop"}
    if stage.by == "length":
        orders = by_length(answers, stage.longer)
    elif stage.by == "reward":
        orders = [by_reward(answers, rng)]
    else:
        orders = [by_task(answers, problem, task, rng)]
    return [Ranking(problem, order) for order in orders if len(order) > 1]


def by_length(answers: Answers, longer: float) -> list[tuple[str, str]]:
    """The shortest right answer before each wrong one that is longer, and each right one that is
    `longer` times as long (Kimi k1.5, arXiv:2501.12599, sec. 2.4).
    """
    right = {text: length for text, (length, score) in answers.items() if score.correct}
    if not right:
        return []
    best = min(right, key=right.__getitem__)
    least = right[best]
    return [
        (best, text)
        for text, (length, score) in answers.items()
        if text != best and (length >= longer * least or (not score.correct and length > least))
    ]


def by_reward(answers: Answers, rng: random.Random) -> tuple[str, ...]:
    """One answer for each different reward, the highest first: equal rewards order nothing."""
    values = sorted({score.value for _, score in answers.values()}, reverse=True)
    levels = [[text for text, (_, s) in answers.items() if s.value == value] for value in values]
    return tuple(rng.choice(level) for level in levels)


def by_task(answers: Answers, problem: Problem, task: Task, rng: random.Random) -> tuple[str, ...]:
    """All answers in the order of the task's own rule."""
    assert isinstance(task, Ranker)
    texts = list(answers)
    return tuple(texts[i] for i in task.rank(problem, texts, rng)) if len(texts) > 1 else ()
