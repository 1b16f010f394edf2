"""Data sets that one stage draws and a later stage learns from; the stage's folder keeps them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from whet import config
from whet.data import preferences, responses
from whet.errors import DataError
from whet.model.policy import Policy
from whet.rollout.context import Context
from whet.rollout.rollout import describe, rollout
from whet.types import Group, Problem, Ranking, Sampling, Update

RESPONSES, RANKINGS = "data.jsonl", "rankings.jsonl"
Item = TypeVar("Item")


def draw(
    policy: Policy,
    stage: config.Reject | config.Rank,
    context: Context,
    select: Callable[[Group], list[Item]],
    write: Callable[[list[Item], Path], None],
    file: str,
) -> None:
    """Draws a group for each of the stage's problems, and writes what `select` keeps of them.

    The items are in STAGE/file, written by `write`; the log has one step.
    """
    began = time.perf_counter()
    prompts = context.some("train", stage.problems, context.seed)
    sampling = Sampling(stage.samples, stage.temperature, stage.max_tokens, seed=context.seed)
    engine = context.engine(policy, context.chat)
    progress = context.checkpoints.raise_if_stopped
    groups = rollout(engine, context.reward, prompts, sampling, progress)
    items = [item for group in groups for item in select(group)]
    path = context.log.directory / stage.name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write(items, path)
    context.log.wrote(path)
    figures = describe(groups, context.task) | {"kept": float(len(items))}
    seconds = {"sample": time.perf_counter() - began}
    context.log.update(Update(stage.name, 1, figures, seconds), stage.kind)


def verified(stage: str, context: Context) -> list[tuple[Problem, str]]:
    """The (problem, response) pairs that a reject stage kept. Raises DataError for none."""
    path = context.log.directory / stage / RESPONSES
    if _empty(path):
        raise DataError(f"the reject stage {stage!r} kept no sample to train on")
    return responses.read(path)


def rankings(source: str, context: Context) -> list[Ranking]:
    """The rankings of a rank stage, a file or the Hub. Raises DataError for none."""
    path = context.log.directory / source / RANKINGS
    if _empty(path):
        raise DataError(f"the rank stage {source!r} found nothing to rank")
    return preferences.read(str(path) if path.is_file() else source)


def _empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0
