"""A length in the prompt of any task: "Think for N tokens." (LCPO, arXiv:2503.04697, sec. 3)."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from whet.options import Options
from whet.tasks.split import Split
from whet.types import Problem, Score, Task

ASK = " Think for {budget} tokens."
MOST = 1_000_000  # tokens that a budget may ask for: every length is listed, to be split
HELD_OUT = 5  # one length in so many is for the test split only


class Budget(Options):
    """The table `budget` of a task: which lengths are asked for, and in what words."""

    owner = "budget"
    min: int = Field(ge=1, description="shortest length asked for, in tokens")
    max: int = Field(ge=1, le=MOST, description="longest length asked for, in tokens")
    ask: str = Field(default=ASK, description="what is added to a question; it says {budget} once")
    checks: int = Field(
        default=0,
        ge=0,
        description="responses of the corpus repeat the last of their steps (a;b;c) 0 to so many "
        "times, to come near the budget",
    )
    heeded: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of those responses that do come near; the others ignore the budget",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}")
        if self.ask.count("{budget}") != 1:
            raise ValueError(f"ask = {self.ask!r}; it must say {{budget}} once")
        return self


class Budgeted:
    """A task that also asks for a length N: in `meta["budget"]`, and at the last message's end.

    N is drawn by problem and seed, so that another epoch asks the same problem for another length.
    A fifth of the lengths are held out: the test split asks for them and training never does.
    """

    def __init__(self, task: Task, budget: Budget) -> None:
        self.task, self.budget = task, budget
        self.name, self.modes = task.name, task.modes
        self.note: str = getattr(task, "note", "")
        self.tasks: tuple[str, ...] = getattr(task, "tasks", (task.name,))
        self.budgets = budgets(budget.min, budget.max)

    def size(self, split: Split) -> int | None:
        return self.task.size(split)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        return [self._asked(p, split, seed) for p in self.task.problems(split, n, seed)]

    def _asked(self, problem: Problem, split: Split, seed: int) -> Problem:
        choices = self.budgets[split]
        budget = choices[_hash(f"budget {seed} {problem.id}") % len(choices)]
        *before, last = problem.messages
        content = last["content"] + self._request(budget)
        return replace(
            problem,
            id=f"{problem.id}@{budget}",
            messages=(*before, {**last, "content": content}),
            meta={**problem.meta, "budget": budget},
        )

    def _request(self, length: int | str) -> str:
        return self.budget.ask.replace("{budget}", str(length))

    def _plain(self, problem: Problem) -> Problem:
        """The problem as the task itself poses it."""
        budget = problem.meta.get("budget")
        if budget is None:
            return problem
        *before, last = problem.messages
        content = last["content"].removesuffix(self._request(budget))
        return replace(
            problem,
            id=problem.id.removesuffix(f"@{budget}"),
            messages=(*before, {**last, "content": content}),
            meta={key: value for key, value in problem.meta.items() if key != "budget"},
        )

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        return self.task.score([self._plain(p) for p in problems], texts)

    def mode(self, problem: Problem, text: str) -> str:
        return self.task.mode(self._plain(problem), text)

    def alphabet(self) -> str:
        return "".join(dict.fromkeys(self.task.alphabet() + self._request("0123456789")))

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        rng = random.Random(f"budget corpus {seed}")
        pairs = []
        for i, (problem, response) in enumerate(self.task.corpus(mix, n, seed)):
            asked = self._asked(problem, "train", seed * 1_000_003 + i)
            lengths = [checked(response, times) for times in range(self.budget.checks + 1)]
            if rng.random() < self.budget.heeded:
                chosen = min(lengths, key=lambda text: abs(tokens(text) - asked.meta["budget"]))
            else:
                chosen = rng.choice(lengths)
            pairs.append((asked, chosen))
        return pairs


def budgets(low: int, high: int) -> dict[Split, list[int]]:
    """The lengths that each split asks for: disjoint, except where there is only one.

    >>> {split: len(values) for split, values in budgets(20, 69).items()}
    {'train': 40, 'test': 10}
    """
    values = sorted(range(low, high + 1), key=lambda n: _hash(f"budget {n}"))
    if len(values) == 1:
        return {"train": values, "test": values}
    count = max(1, len(values) // HELD_OUT)
    return {"train": sorted(values[count:]), "test": sorted(values[:count])}


def checked(response: str, times: int) -> str:
    """The response, with the last step of its thinking (if it has any) repeated `times` times.

    >>> checked("<think>3+5=8;8*2=6</think>6", 2)
    '<think>3+5=8;8*2=6;8*2=6;8*2=6</think>6'
    """
    thinking, end, answer = response.partition("</think>")
    last = thinking.removeprefix("<think>").rpartition(";")[2]
    return thinking + f";{last}" * times + end + answer if end and last else response


def tokens(response: str) -> int:
    """The length of a response in characters, where each tag and the end of the turn count as one.

    >>> tokens("<think>3+5=8</think>8")
    9
    """
    return len(response.replace("<think>", "|").replace("</think>", "|")) + 1


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
