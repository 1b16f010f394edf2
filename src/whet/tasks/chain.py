"""Left-to-right arithmetic modulo 10: the smallest task on which thinking pays.

    3+5*2-7  ->  3+5=8, 8*2=6, 6-7=9  ->  9          (no precedence; every result is its last digit)

A response thinks between <think> and </think>, then answers with one digit. It has one of three
modes: direct (no thinking), coarse (two operations a step, hard to get right in one go) and careful
(one operation a step). A base model trained on a corpus that mixes them mostly guesses, and
reinforcement learning can discover that careful pays.

With `words` the thinking names its operations in a language, which the reward `language` judges:

    3+5*2-7  ->  3plus5=8;8by2=6;6less7=9  or  3плюс5=8;8на2=6;6без7=9
"""

import itertools
import random
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from whet.tasks.base import Generated
from whet.tasks.budget import checked
from whet.types import Problem, Score

OPERATIONS = {
    "+": lambda a, b: (a + b) % 10,
    "-": lambda a, b: (a - b) % 10,
    "*": lambda a, b: (a * b) % 10,
}
RESPONSE = re.compile(r"<think>\s*+([0-9+\-*=;]*)\s*</think>\s*([0-9])")
WORDS = {"en": {"+": "plus", "-": "less", "*": "by"}, "ru": {"+": "плюс", "-": "без", "*": "на"}}
SYMBOLS = {word: symbol for words in WORDS.values() for symbol, word in words.items()}
WORD = re.compile("|".join(SYMBOLS))
Language = Literal["en", "ru", "mixed"]  # of the thinking in a corpus's response


def evaluate(expression: str) -> int:
    """Left to right, modulo 10.

    >>> evaluate("3+5*2-7")
    9
    """
    value = int(expression[0])
    for op, digit in zip(expression[1::2], expression[2::2], strict=True):
        value = OPERATIONS[op](value, int(digit))
    return value


def scratchpad(expression: str, stride: int) -> str:
    """The working, `stride` operations a step.

    >>> scratchpad("3+5*2-7", 1), scratchpad("3+5*2-7", 2)
    ('3+5=8;8*2=6;6-7=9', '3+5*2=6;6-7=9')
    """
    steps, value = [], expression[0]
    for i in range(1, len(expression), 2 * stride):
        piece = value + expression[i : i + 2 * stride]
        value = str(evaluate(piece))
        steps.append(f"{piece}={value}")
    return ";".join(steps)


def spoken(working: str, language: str, rng: random.Random) -> str:
    """A scratchpad with its operations in words; `mixed` draws a language for each operation.

    >>> spoken("3+5=8;8*2=6;6-7=9", "en", random.Random(0))
    '3plus5=8;8by2=6;6less7=9'
    """
    return re.sub(
        r"[+\-*]",
        lambda m: WORDS[rng.choice(list(WORDS)) if language == "mixed" else language][m[0]],
        working,
    )


def unspoken(text: str) -> str:
    """The text with its operations as symbols again, in whatever language they were.

    >>> unspoken("<think>3plus5=8;8на2=6</think>6")
    '<think>3+5=8;8*2=6</think>6'
    """
    return WORD.sub(lambda m: SYMBOLS[m[0]], text)


class Chain(Generated):
    """Operations on digits, from left to right. The thinking may name them in words."""

    owner = "task chain"
    cure = "ask for fewer, or more than operations = {operations}"
    operations: int = Field(default=6, ge=1, le=30, description="operations on digits in a problem")
    checks: int = Field(
        default=0,
        ge=0,
        le=30,
        description="careful responses of the corpus repeat their last step 0 to so many times, "
        "whatever the problem: a model that learns from them thinks longer than it needs to",
    )
    words: dict[Language, Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]] | None = (
        Field(
            default=None,
            description="the corpus names its operations in words: the share of each language, such as "
            "{ en = 0.6, ru = 0.2, mixed = 0.2 }; mixed changes language within a response",
        )
    )

    @field_validator("words")
    @classmethod
    def _some_language(cls, words: dict[Language, float] | None) -> dict[Language, float] | None:
        if words is not None and not sum(words.values()) > 0:
            raise ValueError(
                "it needs the share of a language, such as words = { en = 0.6, ru = 0.4 }"
            )
        return words

    @property
    def modes(self) -> tuple[str, ...]:
        return ("direct", "coarse", "careful")

    @property
    def variety(self) -> str:
        return f"chain {self.operations}"

    def listed(self) -> Iterator[str] | None:
        if self.operations > 2:
            return None
        pieces = [op + str(digit) for op in "+-*" for digit in range(10)]
        return map("".join, itertools.product("0123456789", *[pieces] * self.operations))

    def draw(self, rng: random.Random) -> str:
        return str(rng.randrange(10)) + "".join(
            rng.choice("+-*") + str(rng.randrange(10)) for _ in range(self.operations)
        )

    def problem(self, text: str) -> Problem:
        return Problem(
            id=f"chain:{text}",
            messages=({"role": "user", "content": text + "="},),
            answer=str(evaluate(text)),
            task=self.name,
        )

    def verdict(self, problem: Problem, text: str) -> Score:
        """1 where the digit after </think> is right; unparsed where the form is another."""
        match = self._parts(text)
        if match is None:
            return Score(0.0, "unparsed")
        right = match.group(2) == problem.answer
        return Score(float(right), "scored" if right else "wrong")

    def _parts(self, text: str) -> re.Match[str] | None:
        """The thinking and the answer of a response."""
        return RESPONSE.fullmatch(text if self.words is None else unspoken(text))

    def mode(self, problem: Problem, text: str) -> str:
        """By form alone, right or wrong: `other` where a step is neither one nor two operations."""
        match = self._parts(text)
        if match is None:
            return "other"
        if not match.group(1):
            return "direct"
        lengths = [len(step.split("=")[0]) for step in match.group(1).split(";")]
        if all(n == 3 for n in lengths):
            return "careful"
        return "coarse" if all(n in (3, 5) for n in lengths) else "other"

    def alphabet(self) -> str:
        symbols = "0123456789+-*=;"
        return symbols if self.words is None else symbols + "".join(dict.fromkeys("".join(SYMBOLS)))

    def response(self, problem: Problem, mode: str, rng: random.Random) -> str:
        working = ""
        if mode != "direct":
            working = scratchpad(problem.question.rstrip("="), 1 if mode == "careful" else 2)
        if self.words is not None:
            (language,) = rng.choices(list(self.words), list(self.words.values()))
            working = spoken(working, language, rng)
        times = rng.randint(0, self.checks) if self.checks and mode == "careful" else 0
        return checked(f"<think>{working}</think>{problem.answer}", times)
