"""Left-to-right arithmetic modulo 10: the smallest task on which thinking pays.

    3+5*2-7  ->  3+5=8, 8*2=6, 6-7=9  ->  9          (no precedence; every result is its last digit)

A response thinks between <think> and </think>, then answers with one digit. Three modes of
answering can be told apart: direct (no thinking), coarse (two operations a step, hard to get right
in one go) and careful (one operation a step). A base model trained on a corpus that mixes them
mostly guesses; reinforcement learning can find out that careful pays.

With `words` the thinking says its operations in a language, so that the reward `language` has
something to judge:

    3+5*2-7  ->  3plus5=8;8by2=6;6less7=9  or  3плюс5=8;8на2=6;6без7=9
"""

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from whet.errors import RecipeError, did_you_mean
from whet.tasks.budget import checked
from whet.tasks.corpus import draw_modes, training_problems
from whet.tasks.split import Split, demand, distinct, is_test
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
SPEECH = (*WORDS, "mixed")  # what the thinking of a corpus's response can be in


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
    """A scratchpad with its operations in words; `mixed` draws the language anew for each.

    >>> spoken("3+5=8;8*2=6;6-7=9", "en", random.Random(0))
    '3plus5=8;8by2=6;6less7=9'
    """
    return re.sub(
        r"[+\-*]",
        lambda m: WORDS[rng.choice(list(WORDS)) if language == "mixed" else language][m[0]],
        working,
    )


def unspoken(text: str) -> str:
    """The text with symbols for the words of any language.

    >>> unspoken("<think>3plus5=8;8на2=6</think>6")
    '<think>3+5=8;8*2=6</think>6'
    """
    return WORD.sub(lambda m: SYMBOLS[m[0]], text)


class Chain:
    """`operations` operations on digits. Train and test problems are split by a hash of the
    expression.

    `checks`: careful responses of the corpus go over their last step 0 to `checks` times more,
    whatever the problem: a model that learned from it thinks longer than it needs to. `words`: the
    thinking may name its operations, and the corpus does, in each language with its share, such as
    { en = 0.6, ru = 0.2, mixed = 0.2 }; `mixed` changes language within a response.
    """

    name = "chain"
    modes: tuple[str, ...] = ("direct", "coarse", "careful")

    def __init__(
        self, operations: int = 6, checks: int = 0, words: dict[str, float] | None = None
    ) -> None:
        for name, value, least in (("operations", operations, 1), ("checks", checks, 0)):
            if not least <= value <= 30:
                raise RecipeError(
                    f"task chain: {name} = {value}; it must be between {least} and 30"
                )
        self.operations, self.checks, self.words = operations, checks, words
        for language, share in (words or {}).items():
            if language not in SPEECH:
                raise RecipeError(
                    f"task chain: words: unknown language {language!r}{did_you_mean(language, SPEECH)}"
                )
            if (
                isinstance(share, bool)
                or not isinstance(share, int | float)
                or not 0 <= share <= 1e9
            ):
                raise RecipeError(
                    f"task chain: words: {language} = {share!r}; it must be a share of 0 or more"
                )
        if words is not None and not sum(words.values()) > 0:
            raise RecipeError(
                "task chain: words needs the share of a language, such as words = { en = 0.6, ru = 0.4 }"
            )

    @cached_property
    def _pool(self) -> dict[str, list[str]] | None:
        """Every expression of each split; None where there are too many to list."""
        if self.operations > 2:
            return None
        pieces = [op + str(digit) for op in "+-*" for digit in range(10)]
        pool: dict[str, list[str]] = {"train": [], "test": []}
        for first, *rest in itertools.product("0123456789", *[pieces] * self.operations):
            expression = first + "".join(rest)
            pool["test" if is_test(expression) else "train"].append(expression)
        return pool

    def size(self, split: Split) -> int | None:
        return None if self._pool is None else len(self._pool[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        rng = random.Random(f"chain {self.operations} {split} {seed}")
        what, cure = (
            f"task chain: {split} problems",
            f"ask for fewer, or more than operations = {self.operations}",
        )

        def draw() -> str | None:
            expression = str(rng.randrange(10)) + "".join(
                rng.choice("+-*") + str(rng.randrange(10)) for _ in range(self.operations)
            )
            return expression if is_test(expression) == (split == "test") else None

        if self._pool is None:
            return [self._problem(expression) for expression in distinct(draw, n, what, cure)]
        demand(n, len(self._pool[split]), what, cure)
        return [self._problem(expression) for expression in rng.sample(self._pool[split], n)]

    def _problem(self, expression: str) -> Problem:
        return Problem(
            id=f"chain:{expression}",
            messages=({"role": "user", "content": expression + "="},),
            answer=str(evaluate(expression)),
            task=self.name,
        )

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """1 where the digit after </think> is right; unparsed where the response has another form."""
        scores = []
        for problem, text in zip(problems, texts, strict=True):
            match = self._read(text)
            if match is None:
                scores.append(Score(0.0, "unparsed"))
            else:
                right = match.group(2) == problem.answer
                scores.append(Score(float(right), "scored" if right else "wrong"))
        return scores

    def _read(self, text: str) -> re.Match[str] | None:
        return RESPONSE.fullmatch(text if self.words is None else unspoken(text))

    def mode(self, problem: Problem, text: str) -> str:
        """By form alone, right or wrong: `other` where a step is neither one nor two operations."""
        match = self._read(text)
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

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        rng = random.Random(f"chain corpus {seed}")
        modes = draw_modes(self, mix, n, rng)
        pairs = []
        for problem, mode in zip(training_problems(self, n, seed), modes, strict=True):
            expression = problem.question.rstrip("=")
            working = (
                "" if mode == "direct" else scratchpad(expression, 1 if mode == "careful" else 2)
            )
            if self.words is not None:
                working = spoken(
                    working, rng.choices(list(self.words), list(self.words.values()))[0], rng
                )
            response = f"<think>{working}</think>{problem.answer}"
            times = rng.randint(0, self.checks) if self.checks and mode == "careful" else 0
            pairs.append((problem, checked(response, times)))
        return pairs
