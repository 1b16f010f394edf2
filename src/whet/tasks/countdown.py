"""Reach a target from given numbers with + - * / : the smallest task on which searching pays.

    3,5,7:22  ->  3+5+7=15≠22;5*(7-3)=20≠22;3*5+7=22  ->  3*5+7

A response thinks between <think> and </think>, then answers with one expression. It has one of two
modes: direct (no thinking: a guess) and search (combinations one after the other, each with its
value, as in Stream of Search, arXiv:2404.03683, in miniature). With 3 numbers of 1 to 20 and
targets up to 100 there are 16,292 problems. The split hashes the sorted numbers and the target.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Self

from pydantic import Field, model_validator

from whet.tasks.base import Generated
from whet.tasks.expression import Inexact, Malformed, Reach, at_random, parse
from whet.types import Problem, Score

RESPONSE = re.compile(
    r"\s*(?:<think>)?((?:(?!</?think>).)*)</think>((?:(?!</?think>).)*)", re.DOTALL
)
TAGGED = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
ATTEMPT = re.compile(r"[0-9+\-*/()]+=[0-9]+(?:≠[0-9]+)?")
# combinations of numbers (each more number counting eightfold) up to which all problems are listed
LISTED = 20_000


class Countdown(Generated):
    """Numbers, and a target that some expression of them makes: every problem can be solved."""

    owner = "task countdown"
    cure = "ask for fewer, or raise high = {high}"
    numbers: int = Field(default=3, ge=2, le=5, description="numbers in a problem")
    low: int = Field(default=1, ge=1, le=1000, description="smallest number")
    high: int = Field(default=20, ge=1, le=1000, description="largest number")
    max_target: int = Field(default=100, ge=2, le=10**6, description="largest target")
    use_all: bool = Field(default=True, description="each number is used once; false: at most once")
    attempts: int = Field(
        default=4,
        ge=0,
        le=50,
        description="wrong combinations in a response of the search corpus, at most",
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.high < self.low:
            raise ValueError(f"high = {self.high}; it must be at least low = {self.low}")
        return self

    @property
    def modes(self) -> tuple[str, ...]:
        return ("direct", "search")

    @property
    def variety(self) -> str:
        options = (self.numbers, self.low, self.high, self.max_target, self.use_all)
        return f"countdown {' '.join(map(str, options))}"

    def listed(self) -> Iterator[str] | None:
        combinations = math.comb(self.high - self.low + self.numbers, self.numbers)
        if combinations * 8 ** (self.numbers - 3) > LISTED:
            return None
        return (
            canonical(numbers, target)
            for numbers in itertools.combinations_with_replacement(
                range(self.low, self.high + 1), self.numbers
            )
            for target in sorted({value for _, value in self._targets(Reach(numbers))})
        )

    def _targets(self, reach: Reach) -> list[tuple[int, int]]:
        """(subset of the numbers, target) of each problem; a number itself is no target."""
        subsets = [reach.everything] if self.use_all else range(1, reach.everything + 1)
        pairs = [
            (s, v) for s in subsets if s & (s - 1) for v in reach.values[s] if v <= self.max_target
        ]
        return sorted(
            pairs if self.use_all else [(s, v) for s, v in pairs if v not in reach.numbers]
        )

    def draw(self, rng: random.Random) -> str | None:
        numbers = [rng.randint(self.low, self.high) for _ in range(self.numbers)]
        used = numbers if self.use_all else rng.sample(numbers, rng.randint(2, self.numbers))
        target = at_random(used, rng).value
        if target > self.max_target or (target in numbers and not self.use_all):
            return None
        return canonical(numbers, target)

    def problem(self, text: str) -> Problem:
        target = text.rpartition(":")[2]
        return Problem(
            f"countdown:{text}", ({"role": "user", "content": text},), answer=target, task=self.name
        )

    def verdict(self, problem: Problem, text: str) -> Score:
        """1 where the expression after </think> makes the target of the numbers.

        Unparsed where no expression stands there.
        """
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
        available, used = Counter(numbers), Counter(parsed.numbers)
        fits = used == available if self.use_all else used <= available
        right = fits and parsed.value == target
        return Score(float(right), "scored" if right else "wrong")

    def mode(self, problem: Problem, text: str) -> str:
        """By form alone, right or wrong: `other` where the thinking lists no combinations."""
        match = RESPONSE.fullmatch(text)
        if match is None:
            return "other"
        thinking = match.group(1).strip()
        if not thinking:
            return "direct"
        return "search" if all(ATTEMPT.fullmatch(part) for part in thinking.split(";")) else "other"

    def alphabet(self) -> str:
        return "0123456789+-*/()=≠;,:"

    def response(self, problem: Problem, mode: str, rng: random.Random) -> str:
        """Guessed (direct), or reached after 0 to `attempts` wrong combinations (search)."""
        numbers, target = read(problem.question)
        reach = Reach(numbers)
        subset = rng.choice([s for s, value in self._targets(reach) if value == target])
        answer = reach.write(target, rng, subset).text
        tries: list[str] = []
        if mode == "search":
            tries = [*self._wrong(numbers, target, rng), f"{answer}={target}"]
        return f"<think>{';'.join(tries)}</think>{answer}"

    def _wrong(self, numbers: Sequence[int], target: int, rng: random.Random) -> list[str]:
        """Up to `attempts` different combinations that miss the target."""
        wrong: dict[str, None] = {}
        for _ in range(rng.randint(0, self.attempts)):
            used = numbers if self.use_all else rng.sample(numbers, rng.randint(2, len(numbers)))
            tree = at_random(used, rng)
            if tree.value != target:
                wrong[f"{tree.text}={tree.value}≠{target}"] = None
        return list(wrong)


def canonical(numbers: Sequence[int], target: int) -> str:
    """The one way to write a problem.

    >>> canonical([7, 3, 5], 22)
    '3,5,7:22'
    """
    return f"{','.join(str(number) for number in sorted(numbers))}:{target}"


def read(question: str) -> tuple[list[int], int]:
    """The numbers and the target of a problem.

    >>> read("3,5,7:22")
    ([3, 5, 7], 22)
    """
    numbers, _, target = question.partition(":")
    return [int(number) for number in numbers.split(",")], int(target)
