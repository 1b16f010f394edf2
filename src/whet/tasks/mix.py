"""Several tasks as one: problems of each by its weight, judged by the task that posed them.

parts = [{ name = "chain", weight = 0.5, operations = 4 }, { name = "taste", weight = 0.5 }]
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from whet.errors import DataError, RecipeError, did_you_mean
from whet.tasks import load
from whet.tasks.split import Split
from whet.types import Problem, Ranker, Score, Task


class Mix:
    """`parts`: tables with a task's `name`, its `weight` (1 by default), `as` (a name of its own in
    the mix, where a task occurs twice) and the task's options. A part of weight 0 is there only for
    the stages that name it (`only`).

    `Problem.task` says which part posed a problem; an id starts with it where the task itself does
    not. Modes keep their names where one part alone has them, and are PART_MODE where several do. A
    mix can rank where a part can: responses to the other parts' problems it leaves unranked. Raises
    RecipeError for parts that cannot be mixed, and what `load` raises for a part.
    """

    name = "mix"

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        if not parts:
            raise RecipeError(
                'task mix: no parts; write parts = [ { name = "chain", weight = 0.5 }, … ]'
            )
        tasks: dict[str, Task] = {}
        weights: list[float] = []
        for given in parts:
            label, weight, task = _part(given)
            if label in tasks:
                raise RecipeError(
                    f"task mix: two parts are named {label!r}; give one of them another name: as = …"
                )
            tasks[label] = task
            weights.append(weight)
        if not any(weights):
            raise RecipeError(
                "task mix: every part has weight 0; give one that poses problems more"
            )
        self._hold(tasks, weights)

    def part(self, label: str) -> "Mix":
        """A mix of that part alone."""
        alone = object.__new__(Mix)
        alone._hold({label: self.parts[label]}, [1.0])
        return alone

    def _hold(self, parts: dict[str, Task], weights: list[float]) -> None:
        self.parts, self.weights, self.tasks = parts, weights, tuple(parts)
        self.posing = tuple(label for label, weight in zip(parts, weights, strict=True) if weight)
        told = Counter(mode for task in self.parts.values() for mode in task.modes)
        self._shown = {
            (label, mode): mode if told[mode] == 1 else f"{label}_{mode}"
            for label, task in self.parts.items()
            for mode in task.modes
        }
        self.modes: tuple[str, ...] = tuple(self._shown.values())
        self.note = "; ".join(
            note for task in self.parts.values() if (note := getattr(task, "note", ""))
        )
        if any(isinstance(task, Ranker) for task in self.parts.values()):
            self.rank: Callable[..., list[int]] = self._rank  # so that a mix of others is no Ranker

    def size(self, split: Split) -> int | None:
        return self._sizes[split]

    @cached_property
    def _sizes(self) -> dict[Split, int | None]:
        """None where no part runs out, else what can be served before the first one does."""
        splits: tuple[Split, Split] = ("train", "test")
        return {
            split: served(self.weights, [t.size(split) for t in self.parts.values()])
            for split in splits
        }

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        drawn = {
            label: iter(self.parts[label].problems(split, count, seed))
            for label, count in self._counts(n).items()
        }
        return [
            self._posed(label, next(drawn[label]))
            for label in self._order(n, f"mix {split} {seed}")
        ]

    def _counts(self, n: int) -> dict[str, int]:
        return {
            label: count
            for label, count in zip(self.tasks, shares(self.weights, n), strict=True)
            if count
        }

    def _order(self, n: int, seed: str) -> list[str]:
        """Whose turn it is, n times."""
        turns = [label for label, count in self._counts(n).items() for _ in range(count)]
        random.Random(seed).shuffle(turns)
        return turns

    def _posed(self, label: str, problem: Problem) -> Problem:
        prefix = "" if self.parts[label].name == label else f"{label}/"
        return replace(problem, id=prefix + problem.id, task=label)

    def _part(self, problem: Problem) -> Task:
        if problem.task not in self.parts:
            known = did_you_mean(problem.task, self.parts)
            raise DataError(
                f"task mix: problem {problem.id!r} is of task {problem.task!r}, which is no part{known}"
            )
        return self.parts[problem.task]

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """What each problem's own task says, each with a part `accuracy`, as some tasks give it and
        others do not.
        """
        rows: dict[str, list[int]] = {}
        for i, problem in enumerate(problems):
            self._part(problem)
            rows.setdefault(problem.task, []).append(i)
        scores: dict[int, Score] = {}
        for label, at in rows.items():
            found = self.parts[label].score([problems[i] for i in at], [texts[i] for i in at])
            scores |= dict(zip(at, map(_accurate, found), strict=True))
        return [scores[i] for i in range(len(texts))]

    def mode(self, problem: Problem, text: str) -> str:
        mode = self._part(problem).mode(problem, text)
        return self._shown.get((problem.task, mode), mode)

    def _rank(self, problem: Problem, texts: Sequence[str], rng: random.Random) -> list[int]:
        """As the problem's own task ranks; empty where that one has no taste."""
        part = self._part(problem)
        return part.rank(problem, texts, rng) if isinstance(part, Ranker) else []

    def alphabet(self) -> str:
        return "".join(dict.fromkeys("".join(task.alphabet() for task in self.parts.values())))

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        """By weight; `mix` gives the shares of the modes within each part that has any."""
        for mode in mix:
            if mode not in self.modes:
                known = (
                    did_you_mean(mode, self.modes) if self.modes else "; its parts tell none apart"
                )
                raise RecipeError(f"task mix: unknown mode {mode!r}{known}")
        drawn = {
            label: iter(self.parts[label].corpus(self._inner(label, mix), count, seed))
            for label, count in self._counts(n).items()
        }
        turns = ((label, *next(drawn[label])) for label in self._order(n, f"mix corpus {seed}"))
        return [(self._posed(label, problem), response) for label, problem, response in turns]

    def _inner(self, label: str, mix: Mapping[str, float]) -> dict[str, float]:
        """The part's own share of `mix`, under its own names."""
        shown = {mode: self._shown[label, mode] for mode in self.parts[label].modes}
        own = {mode: mix[name] for mode, name in shown.items() if name in mix}
        if shown and not sum(own.values()) > 0:
            raise RecipeError(
                f"task mix: its corpus needs the share of each mode of {label}: {', '.join(shown.values())}"
            )
        return own


def shares(weights: Sequence[float], n: int) -> list[int]:
    """How many of n problems each part poses: by turns, each to the part that is furthest behind
    its weight (Webster's method), so that more problems never mean fewer of a part.

    >>> shares([0.5, 0.3, 0.2], 7)
    [4, 2, 1]
    """
    counts = [0] * len(weights)
    for _ in range(n):
        counts[_next(weights, counts)] += 1
    return counts


def served(weights: Sequence[float], sizes: Iterable[int | None]) -> int | None:
    """The most problems that parts of these sizes can pose together at these weights; None: without
    end.

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


def _part(given: object) -> tuple[str, float, Task]:
    """(its name in the mix, weight, task) of one table."""
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise RecipeError(f"task mix: the part {given!r} must be a table with a task's name")
    name, weight, label = given["name"], given.get("weight", 1.0), given.get("as", given["name"])
    if name == Mix.name:
        raise RecipeError("task mix: a mix within a mix; list its parts in the outer one")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1e9:
        raise RecipeError(
            f"task mix: {name}: weight = {weight!r}; it must be a number from 0 to 1e9"
        )
    if not isinstance(label, str) or not label:
        raise RecipeError(f"task mix: {name}: as = {label!r}; it must be a name")
    options = {key: value for key, value in given.items() if key not in ("name", "weight", "as")}
    return label, float(weight), load(name, **options)
