"""Several tasks as one: problems by weight, each judged by the task that posed it.

parts = [{ name = "chain", weight = 0.5, operations = 4 }, { name = "taste", weight = 0.5 }]
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from whet.errors import DataError, RecipeError, did_you_mean
from whet.tasks import load
from whet.tasks.base import TaskOptions
from whet.tasks.split import Split
from whet.types import Problem, Ranker, Score, Task


class Part(BaseModel):
    """One task of a mix. Every further key is an option of that task, which checks it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="a task's name, as `whet tasks` lists it")
    weight: float = Field(
        default=1.0,
        ge=0,
        le=1e9,
        allow_inf_nan=False,
        strict=True,
        description="its share of the problems is in proportion to it; 0: only for the stages that "
        "name the part (`only`)",
    )
    label: str | None = Field(
        default=None,
        alias="as",
        min_length=1,
        description="a name of its own in the mix, where a task occurs twice",
    )

    @property
    def called(self) -> str:
        return self.label or self.name

    @cached_property
    def task(self) -> Task:
        if self.name == "mix":
            raise RecipeError("task mix: a mix within a mix; list its parts in the outer one")
        return load(self.name, **(self.model_extra or {}))


class Mix(TaskOptions):
    """Several tasks as one.

    `Problem.task` says which part posed a problem; an id starts with the part's name where it is
    not the task's. Modes keep their names where one part alone has them, and are PART_MODE where
    several do. A mix can rank where a part can, and leaves responses to the other parts' problems
    unranked. Raises RecipeError for parts that cannot be mixed, and what `load` raises for a part.
    """

    owner = "task mix"
    parts: list[Part] = Field(description="the tasks, a table each")

    def model_post_init(self, context: Any) -> None:
        if not self.parts:
            raise ValueError('no parts; write parts = [ { name = "chain", weight = 0.5 }, … ]')
        for label, count in Counter(part.called for part in self.parts).items():
            if count > 1:
                raise ValueError(
                    f"two parts are named {label!r}; give one of them another name: as = …"
                )
        if not any(self._weights):
            raise ValueError("every part has weight 0; give one that poses problems more")
        if any(isinstance(task, Ranker) for task in self.members.values()):
            # on the mix itself, for a mix whose parts cannot rank is no Ranker
            object.__setattr__(self, "rank", self._rank)

    def part(self, label: str) -> "Mix":
        """A mix of that part alone."""
        part = next(part for part in self.parts if part.called == label)
        return Mix(parts=[part.model_copy(update={"weight": 1.0})])

    @cached_property
    def members(self) -> dict[str, Task]:
        return {part.called: part.task for part in self.parts}

    @cached_property
    def _weights(self) -> list[float]:
        return [part.weight for part in self.parts]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.members)

    @property
    def posing(self) -> tuple[str, ...]:
        """The parts that pose problems where a stage names none."""
        return tuple(part.called for part in self.parts if part.weight)

    @property
    def note(self) -> str:
        notes = (getattr(task, "note", "") for task in self.members.values())
        return "; ".join(filter(None, notes))

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self._modes.values())

    @cached_property
    def _modes(self) -> dict[tuple[str, str], str]:
        """The name in the mix of each (part, mode)."""
        counts = Counter(mode for task in self.members.values() for mode in task.modes)
        return {
            (label, mode): mode if counts[mode] == 1 else f"{label}_{mode}"
            for label, task in self.members.items()
            for mode in task.modes
        }

    def size(self, split: Split) -> int | None:
        return self._sizes[split]

    @cached_property
    def _sizes(self) -> dict[Split, int | None]:
        """The problems that can be posed before a part runs out; None where no part does."""
        splits: tuple[Split, Split] = ("train", "test")
        return {
            split: served(self._weights, [t.size(split) for t in self.members.values()])
            for split in splits
        }

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        drawn = {
            label: iter(self.members[label].problems(split, count, seed))
            for label, count in self._counts(n).items()
        }
        return [
            self._posed(label, next(drawn[label]))
            for label in self._order(n, f"mix {split} {seed}")
        ]

    def _counts(self, n: int) -> dict[str, int]:
        return {
            label: count
            for label, count in zip(self.tasks, shares(self._weights, n), strict=True)
            if count
        }

    def _order(self, n: int, seed: str) -> list[str]:
        """Whose turn it is, n times."""
        turns = [label for label, count in self._counts(n).items() for _ in range(count)]
        random.Random(seed).shuffle(turns)
        return turns

    def _posed(self, label: str, problem: Problem) -> Problem:
        prefix = "" if self.members[label].name == label else f"{label}/"
        return replace(problem, id=prefix + problem.id, task=label)

    def _part(self, problem: Problem) -> Task:
        if problem.task not in self.members:
            known = did_you_mean(problem.task, self.members)
            raise DataError(
                f"task mix: problem {problem.id!r} is of task {problem.task!r}, "
                f"which is no part{known}"
            )
        return self.members[problem.task]

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """The scores of each problem's own task; all have a part `accuracy`."""
        rows: dict[str, list[int]] = {}
        for i, problem in enumerate(problems):
            self._part(problem)
            rows.setdefault(problem.task, []).append(i)
        scores: dict[int, Score] = {}
        for label, at in rows.items():
            own = self.members[label].score([problems[i] for i in at], [texts[i] for i in at])
            scores |= dict(zip(at, map(_accurate, own), strict=True))
        return [scores[i] for i in range(len(texts))]

    def mode(self, problem: Problem, text: str) -> str:
        mode = self._part(problem).mode(problem, text)
        return self._modes.get((problem.task, mode), mode)

    def _rank(self, problem: Problem, texts: Sequence[str], rng: random.Random) -> list[int]:
        """The ranking of the problem's own task; empty where that task has no taste."""
        part = self._part(problem)
        return part.rank(problem, texts, rng) if isinstance(part, Ranker) else []

    def alphabet(self) -> str:
        return "".join(dict.fromkeys("".join(task.alphabet() for task in self.members.values())))

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        """By weight; `mix` gives the shares of the modes within each part that has any."""
        for mode in mix:
            if mode not in self.modes:
                known = (
                    did_you_mean(mode, self.modes) if self.modes else "; its parts tell none apart"
                )
                raise RecipeError(f"task mix: unknown mode {mode!r}{known}")
        drawn = {
            label: iter(self.members[label].corpus(self._inner(label, mix), count, seed))
            for label, count in self._counts(n).items()
        }
        turns = ((label, *next(drawn[label])) for label in self._order(n, f"mix corpus {seed}"))
        return [(self._posed(label, problem), response) for label, problem, response in turns]

    def _inner(self, label: str, mix: Mapping[str, float]) -> dict[str, float]:
        """The part's own share of `mix`, under its own names."""
        names = {mode: self._modes[label, mode] for mode in self.members[label].modes}
        own = {mode: mix[name] for mode, name in names.items() if name in mix}
        if names and not sum(own.values()) > 0:
            raise RecipeError(
                f"task mix: its corpus needs the share of each mode of {label}: "
                f"{', '.join(names.values())}"
            )
        return own


def shares(weights: Sequence[float], n: int) -> list[int]:
    """How many of n problems each part poses (Webster's method).

    Each turn goes to the part that is furthest behind its weight, so that more problems never mean
    fewer of a part.

    >>> shares([0.5, 0.3, 0.2], 7)
    [4, 2, 1]
    """
    counts = [0] * len(weights)
    for _ in range(n):
        counts[_next(weights, counts)] += 1
    return counts


def served(weights: Sequence[float], sizes: Iterable[int | None]) -> int | None:
    """The most problems that parts of these sizes can pose together at these weights.

    None: without end.

    >>> served([0.5, 0.5], [10, None]), served([0.9, 0.1], [90, 10]), served([1, 1], [None, None])
    (20, 100, None)
    """
    left = [math.inf if size is None else size for size in sizes]
    if min(left) == math.inf:
        return None
    counts = [0] * len(weights)
    while counts[turn := _next(weights, counts)] < left[turn]:
        counts[turn] += 1
    return sum(counts)


def _next(weights: Sequence[float], counts: Sequence[int]) -> int:
    return max(range(len(weights)), key=lambda i: weights[i] / (2 * counts[i] + 1))


def _accurate(score: Score) -> Score:
    if not score.usable or "accuracy" in score.parts:
        return score
    return replace(score, parts={**score.parts, "accuracy": score.value})
