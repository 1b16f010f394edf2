"""Draws several responses to each prompt and puts them in order: data for reward models and for
direct preference optimization.
"""

import random
import time
from dataclasses import replace

from whet import config
from whet.data import preferences
from whet.errors import RecipeError
from whet.model.policy import Policy
from whet.rollout.context import Context
from whet.rollout.rollout import describe, rollout
from whet.types import Group, Ranker, Ranking, Sampling, Task, Update


def run(policy: Policy, stage: config.Rank, context: Context) -> None:
    """Fills context.rankings[stage.name], and writes them to STAGE/rankings.jsonl."""
    refuse(stage, context.task)
    began = time.perf_counter()
    prompts = context.some("train", stage.problems, context.seed)
    sampling = Sampling(stage.samples, stage.temperature, stage.max_tokens, seed=context.seed)
    engine = context.engine(policy, context.chat)
    groups = rollout(engine, context.reward, prompts, sampling, context.saves.drawing)
    rng = random.Random(context.seed)
    found = [ranking for group in groups for ranking in ranked(group, stage, context, rng)]
    context.rankings[stage.name] = found
    folder = context.log.directory / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    preferences.write(found, folder / "rankings.jsonl")
    context.log.wrote(folder / "rankings.jsonl")
    values = describe(groups, context.task) | {"kept": float(len(found))}
    context.log.update(
        Update(stage.name, 1, values, {"sample": time.perf_counter() - began}), "rank"
    )


def refuse(stage: config.Rank, task: Task) -> None:
    """Raises RecipeError where the task cannot rank, or where a key would not be read."""
    if stage.by == "task" and not isinstance(task, Ranker):
        raise RecipeError(
            f"stage {stage.name}: task {task.name} ranks nothing; use by = 'reward' or 'length'"
        )
    if stage.by != "length" and stage.longer != type(stage).model_fields["longer"].default:
        raise RecipeError(
            f"stage {stage.name}: by = {stage.by!r} looks at no length, so longer = {stage.longer:g} would not be read; drop it"
        )


def ranked(group: Group, stage: config.Rank, context: Context, rng: random.Random) -> list[Ranking]:
    """The group's finished, different responses in order; none where there is nothing to tell
    apart.
    """
    usable = group.usable
    rows = [
        (replace(s, text=text), c)
        for s, text, c in zip(usable.samples, usable.texts, usable.scores, strict=True)
        if s.finish == "stop"
    ]
    rows = list({s.text: (s, c) for s, c in rows}.values())
    problem = group.prompt.problem
    if stage.by == "length":
        right = sorted((s for s, c in rows if c.correct), key=lambda s: s.length)
        if not right:
            return []
        best = right[0]
        worse = [
            s
            for s, c in rows
            if s.length >= stage.longer * best.length or (not c.correct and s.length > best.length)
        ]
        return [Ranking(problem, (best.text, s.text)) for s in worse]
    if stage.by == "reward":
        values = sorted({c.value for _, c in rows}, reverse=True)
        levels = [[s.text for s, c in rows if c.value == value] for value in values]
        texts = tuple(
            rng.choice(level) for level in levels
        )  # equal rewards say nothing about one another
    else:
        assert isinstance(context.task, Ranker)
        given = [s.text for s, _ in rows]
        texts = (
            tuple(given[i] for i in context.task.rank(problem, given, rng))
            if len(given) > 1
            else ()
        )
    return [Ranking(problem, texts)] if len(texts) > 1 else []
