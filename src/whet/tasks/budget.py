"""Any task with a length asked for in the prompt: "Think for N tokens." (LCPO, arXiv:2503.04697,
sec. 3).
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.errors import RecipeError, did_you_mean
from whet.tasks.split import Split
from whet.types import Problem, Score, Task

ASK = " Think for {budget} tokens."
MOST = 1_000_000  # tokens that a budget may ask for: all lengths are listed, to be split
HELD_OUT = 5  # one in so many budgets is asked for in the test split only


class Budgeted:
    """`task` with a budget N of `min` to `max` tokens a problem: in `meta["budget"]`, and at the
    end of the last message as `ask`.

    N is drawn by problem and seed, so that another epoch asks the same problem for another length.
    A fifth of the lengths are held out: the test split asks for them and training never does.
    `checks`: responses of the corpus go over the last of their steps (`a;b;c`) again, 0 to `checks`
    times; all but the share `heeded` do so whatever the budget says. Raises RecipeError for options
    that make no budget.
    """

    def __init__(self, task: Task, options: Mapping[str, Any]) -> None:
        known = {"min": None, "max": None, "ask": ASK, "checks": 0, "heeded": 0.0}
        for key in options:
            if key not in known:
                raise RecipeError(
                    f"task {task.name}: budget: unknown key {key!r}{did_you_mean(key, known)}"
                )
        given = {**known, **options}
        for key, least in (("min", 1), ("max", 1), ("checks", 0)):
            value = given[key]
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(
                    f"task {task.name}: budget: {key} = {value!r}; it must be a whole number of at least {least}"
                )
        if (
            isinstance(given["heeded"], bool)
            or not isinstance(given["heeded"], int | float)
            or not 0 <= given["heeded"] <= 1
        ):
            raise RecipeError(
                f"task {task.name}: budget: heeded = {given['heeded']!r}; it must be a share of 0 to 1"
            )
        if given["max"] > MOST:
            raise RecipeError(
                f"task {task.name}: budget: max = {given['max']}; it must be at most {MOST}"
            )
        if given["min"] > given["max"]:
            raise RecipeError(
                f"task {task.name}: budget: min = {given['min']} is above max = {given['max']}"
            )
        if not isinstance(given["ask"], str) or given["ask"].count("{budget}") != 1:
            raise RecipeError(
                f"task {task.name}: budget: ask = {given['ask']!r}; it must say {{budget}} once"
            )
        self.task, self.name, self.modes = task, task.name, task.modes
        self.note: str = getattr(task, "note", "")
        self.tasks: tuple[str, ...] = getattr(task, "tasks", (task.name,))
        self.ask: str = given["ask"]
        self.checks: int = given["checks"]
        self.heeded: float = given["heeded"]
        self.budgets = budgets(given["min"], given["max"])

    def size(self, split: Split) -> int | None:
        return self.task.size(split)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        return [self._asked(p, split, seed) for p in self.task.problems(split, n, seed)]

    def _asked(self, problem: Problem, split: Split, seed: int) -> Problem:
        choices = self.budgets[split]
        budget = choices[_hash(f"budget {seed} {problem.id}") % len(choices)]
        *before, last = problem.messages
        content = last["content"] + self.ask.replace("{budget}", str(budget))
        return replace(
            problem,
            id=f"{problem.id}@{budget}",
            messages=(*before, {**last, "content": content}),
            meta={**problem.meta, "budget": budget},
        )

    def _plain(self, problem: Problem) -> Problem:
        """The problem as the task itself poses it."""
        budget = problem.meta.get("budget")
        if budget is None:
            return problem
        *before, last = problem.messages
        content = last["content"].removesuffix(self.ask.replace("{budget}", str(budget)))
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
        return "".join(
            dict.fromkeys(self.task.alphabet() + self.ask.replace("{budget}", "0123456789"))
        )

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        rng = random.Random(f"budget corpus {seed}")
        pairs = []
        for i, (problem, response) in enumerate(self.task.corpus(mix, n, seed)):
            asked = self._asked(problem, "train", seed * 1_000_003 + i)
            lengths = [checked(response, times) for times in range(self.checks + 1)]
            if rng.random() < self.heeded:
                longer = min(lengths, key=lambda text: abs(tokens(text) - asked.meta["budget"]))
            else:
                longer = rng.choice(lengths)
            pairs.append((asked, longer))
        return pairs


def budgets(low: int, high: int) -> dict[Split, list[int]]:
    """The lengths that each split asks for: disjoint, except where there is only one.

    >>> {split: len(values) for split, values in budgets(20, 69).items()}
    {'train': 40, 'test': 10}
    """
    values = sorted(range(low, high + 1), key=lambda n: _hash(f"budget {n}"))
    if len(values) == 1:
        return {"train": values, "test": values}
    held = max(1, len(values) // HELD_OUT)
    return {"train": sorted(values[held:]), "test": sorted(values[:held])}


def checked(response: str, times: int) -> str:
    """The response with the last step of its thinking gone over `times` more times; as it is where
    it has no steps.

    >>> checked("<think>3+5=8;8*2=6</think>6", 2)
    '<think>3+5=8;8*2=6;8*2=6;8*2=6</think>6'
    """
    thinking, end, answer = response.partition("</think>")
    last = thinking.removeprefix("<think>").rpartition(";")[2]
    return thinking + f";{last}" * times + end + answer if end and last else response


def tokens(response: str) -> int:
    """The length of a response to a tokenizer of characters: each tag is one token, and so is the
    end of the turn.

    >>> tokens("<think>3+5=8</think>8")
    9
    """
    return len(response.replace("<think>", "|").replace("</think>", "|")) + 1


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
