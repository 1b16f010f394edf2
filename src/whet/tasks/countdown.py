"""Reach a target from given numbers with + - * / : the smallest task on which searching pays.

    3,5,7:22  ->  3+5+7=15≠22;5*(7-3)=20≠22;3*5+7=22  ->  3*5+7

A response thinks between <think> and </think>, then answers with one expression. Two modes can be
told apart: direct (no thinking: a guess) and search (combinations one after the other, each with
its value, as in Stream of Search, arXiv:2404.03683, in miniature). With 3 numbers of 1 to 20 and
targets up to 100 there are 16,292 problems.
"""

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from whet.errors import RecipeError
from whet.tasks.corpus import draw_modes, training_problems
from whet.tasks.expression import Inexact, Malformed, Reach, Tree, at_random, parse
from whet.tasks.split import Split, demand, distinct, is_test
from whet.types import Problem, Score

RESPONSE = re.compile(
    r"\s*(?:<think>)?((?:(?!</?think>).)*)</think>((?:(?!</?think>).)*)", re.DOTALL
)
TAGGED = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
ATTEMPT = re.compile(r"[0-9+\-*/()]+=[0-9]+(?:≠[0-9]+)?")
# combinations of numbers (each more number counting eightfold) up to which all problems are listed
LISTED = 20_000


@dataclass(eq=False)
class Countdown:
    """`numbers` numbers of `low` to `high`, a target up to `max_target`, each number used once
    (`use_all`) or at most once.

    `attempts`: most wrong combinations in a response of the search corpus. Every problem can be
    solved. Train and test are split by a hash of the sorted numbers and the target. Raises
    RecipeError for options that make no problem.
    """

    numbers: int = 3
    low: int = 1
    high: int = 20
    max_target: int = 100
    use_all: bool = True
    attempts: int = 4

    name = "countdown"
    modes: tuple[str, ...] = field(default=("direct", "search"), init=False)

    def __post_init__(self) -> None:
        limits = {
            "numbers": (2, 5),
            "low": (1, 1000),
            "high": (self.low, 1000),
            "max_target": (2, 10**6),
            "attempts": (0, 50),
        }
        for option, (least, most) in limits.items():
            if not least <= getattr(self, option) <= most:
                given = f"{option} = {getattr(self, option)}"
                raise RecipeError(f"task countdown: {given}; it must be between {least} and {most}")

    @cached_property
    def _pool(self) -> dict[Split, list[str]] | None:
        """Every problem of each split; None where there are too many to list."""
        if (
            math.comb(self.high - self.low + self.numbers, self.numbers) * 8 ** (self.numbers - 3)
            > LISTED
        ):
            return None
        pool: dict[Split, list[str]] = {"train": [], "test": []}
        for numbers in itertools.combinations_with_replacement(
            range(self.low, self.high + 1), self.numbers
        ):
            for target in sorted({value for _, value in self._targets(Reach(numbers))}):
                text = canonical(numbers, target)
                pool["test" if is_test(text) else "train"].append(text)
        return pool

    def _targets(self, reach: Reach) -> list[tuple[int, int]]:
        """(which numbers, target) that make a problem: a target that is no mere number given."""
        subsets = [reach.everything] if self.use_all else range(1, reach.everything + 1)
        pairs = [
            (s, v) for s in subsets if s & (s - 1) for v in reach.values[s] if v <= self.max_target
        ]
        return sorted(
            pairs if self.use_all else [(s, v) for s, v in pairs if v not in reach.numbers]
        )

    def size(self, split: Split) -> int | None:
        return None if self._pool is None else len(self._pool[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        options = f"{self.numbers} {self.low} {self.high} {self.max_target} {self.use_all}"
        rng = random.Random(f"countdown {options} {split} {seed}")
        what, cure = (
            f"task countdown: {split} problems",
            f"ask for fewer, or raise high = {self.high}",
        )

        def draw() -> str | None:
            numbers = [rng.randint(self.low, self.high) for _ in range(self.numbers)]
            used = numbers if self.use_all else rng.sample(numbers, rng.randint(2, self.numbers))
            target = at_random(used, rng).value
            if target > self.max_target or (target in numbers and not self.use_all):
                return None
            text = canonical(numbers, target)
            return text if is_test(text) == (split == "test") else None

        if self._pool is None:
            return [self._problem(text) for text in distinct(draw, n, what, cure)]
        demand(n, len(self._pool[split]), what, cure)
        return [self._problem(text) for text in rng.sample(self._pool[split], n)]

    def _problem(self, text: str) -> Problem:
        target = text.rpartition(":")[2]
        return Problem(
            f"countdown:{text}", ({"role": "user", "content": text},), answer=target, task=self.name
        )

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """1 where the expression after </think> makes the target of the numbers; unparsed where
        there is none.
        """
        return [self._verdict(problem, text) for problem, text in zip(problems, texts, strict=True)]

    def _verdict(self, problem: Problem, text: str) -> Score:
        match = RESPONSE.fullmatch(text)
        if match is None:
            return Score(0.0, "unparsed")
        answer = match.group(2).strip()
        tagged = TAGGED.fullmatch(answer)
        try:
            parsed = parse(tagged.group(1) if tagged else answer)
        except Malformed:
            return Score(0.0, "unparsed")
        except Inexact:
            return Score(0.0, "wrong")
        numbers, target = read(problem.question)
        left = list(numbers)
        for number in parsed.numbers:
            if number not in left:
                return Score(0.0, "wrong")
            left.remove(number)
        right = parsed.value == target and not (left and self.use_all)
        return Score(float(right), "scored" if right else "wrong")

    def mode(self, problem: Problem, text: str) -> str:
        """By form alone, right or wrong: `other` where the thinking is no list of combinations with
        their values.
        """
        match = RESPONSE.fullmatch(text)
        if match is None:
            return "other"
        thinking = match.group(1).strip()
        if not thinking:
            return "direct"
        return "search" if all(ATTEMPT.fullmatch(part) for part in thinking.split(";")) else "other"

    def alphabet(self) -> str:
        return "0123456789+-*/()=≠;,:"

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        """Right answers, all of them: guessed (direct), or found after 0 to `attempts` wrong
        combinations (search).
        """
        rng = random.Random(f"countdown corpus {seed}")
        modes = draw_modes(self, mix, n, rng)
        pairs: list[tuple[Problem, str]] = []
        for problem, mode in zip(training_problems(self, n, seed), modes, strict=True):
            numbers, target = read(problem.question)
            answer = self._solution(numbers, target, rng).text
            tries = (
                [*self._wrong(numbers, target, rng), f"{answer}={target}"]
                if mode == "search"
                else []
            )
            pairs.append((problem, f"<think>{';'.join(tries)}</think>{answer}"))
        return pairs

    def _solution(self, numbers: Sequence[int], target: int, rng: random.Random) -> Tree:
        reach = Reach(numbers)
        subset = rng.choice([s for s, value in self._targets(reach) if value == target])
        return reach.write(target, rng, subset)

    def _wrong(self, numbers: Sequence[int], target: int, rng: random.Random) -> list[str]:
        """Up to `attempts` different combinations that miss the target."""
        found: dict[str, None] = {}
        for _ in range(rng.randint(0, self.attempts)):
            used = numbers if self.use_all else rng.sample(numbers, rng.randint(2, len(numbers)))
            tree = at_random(used, rng)
            if tree.value != target:
                found[f"{tree.text}={tree.value}≠{target}"] = None
        return list(found)


def canonical(numbers: Sequence[int], target: int) -> str:
    """The one way to write a problem.

    >>> canonical([7, 3, 5], 22)
    '3,5,7:22'
    """
    return f"{','.join(str(number) for number in sorted(numbers))}:{target}"


def read(question: str) -> tuple[list[int], int]:
    """
    >>> read("3,5,7:22")
    ([3, 5, 7], 22)
    """
    numbers, _, target = question.partition(":")
    return [int(number) for number in numbers.split(",")], int(target)
