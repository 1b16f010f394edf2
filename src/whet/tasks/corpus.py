"""What corpora share: the mode of each response, and problems for any number of pairs."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from whet.errors import DataError, RecipeError, did_you_mean
from whet.types import Problem

if TYPE_CHECKING:
    from whet.types import Task


def draw_modes(task: "Task", mix: Mapping[str, float], n: int, rng: random.Random) -> list[str]:
    """n modes, each drawn with its share; empty words for a task that tells no modes apart.

    Raises RecipeError where the mix is empty, or names a mode that the task does not have.
    """
    if not task.modes:
        refuse_mix(task, mix)
        return [""] * n
    for mode in mix:
        if mode not in task.modes:
            raise RecipeError(
                f"task {task.name}: unknown mode {mode!r}{did_you_mean(mode, task.modes)}"
            )
    shares = list(mix.values())
    if not sum(shares) > 0 or min(shares) < 0:
        example = ", ".join(f"{mode} = {1 / len(task.modes):.2g}" for mode in task.modes)
        raise RecipeError(
            f"task {task.name}: its corpus needs the share of each mode, "
            f"such as mix = {{ {example} }}"
        )
    return rng.choices(list(mix), weights=shares, k=n)


def refuse_mix(task: "Task", mix: Mapping[str, float]) -> None:
    """For a task that tells no modes apart. Raises RecipeError."""
    if mix:
        raise RecipeError(
            f"task {task.name}: it has no modes, so leave mix out (given: {', '.join(mix)})"
        )


def training_problems(task: "Task", n: int, seed: int) -> list[Problem]:
    """n training problems: all different where there are enough.

    Where there are fewer, they are whole passes, each in an order of its own.
    """
    size = task.size("train")
    if size is None or n <= size:
        return task.problems("train", n, seed)
    if size == 0:
        raise DataError(f"task {task.name}: its train split is empty")
    problems: list[Problem] = []
    for epoch in range(-(-n // size)):
        count = min(size, n - len(problems))
        problems += task.problems("train", count, seed + 1_000_003 * epoch)
    return problems
