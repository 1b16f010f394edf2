"""A taste to learn from comparisons: a hidden rule says how much a labeller likes a text.

A question names three letters; a response is a string of letters. The labeller likes certain pairs
of neighbouring letters, each counted once, and the letters asked for, and dislikes rambling. The
policy never sees the rule. A reward model learns it from ranked samples of a policy that seldom
repeats itself or rambles, so the model does not learn how much repeats and rambling displease, and
reinforcement learning against it exploits that. True and learned reward can be plotted against each
other (over-optimisation: arXiv:2210.10760).
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

from pydantic import Field

from whet.errors import DataError
from whet.tasks.base import Generated
from whet.types import Problem, Score

LETTERS = "abcdefghijkl"
ASKED = 1.0  # for each letter asked for that occurs
REPEAT = 0.8  # cost of each pair of neighbours that occurred before
LONG = 14  # letters, beyond which a text rambles
RAMBLE = 0.05  # cost of the square of the letters beyond
NOISE = 1.5  # of a labeller: a text that is better by NOISE is preferred e : 1


class Taste(Generated):
    """1,320 questions, a tenth of them test.

    A score is the probability that a labeller prefers the response to the demonstration,
    sigmoid((utility - utility of the demonstration) / NOISE) (Bradley-Terry, arXiv:2203.02155, eq.
    1). A response is right above one half. The part `utility` is logged.
    """

    owner = "task taste"
    rule: int = Field(default=1, description="seed of the hidden weights")

    @cached_property
    def weights(self) -> dict[str, float]:
        """How much the labeller likes each pair of neighbours."""
        rng = random.Random(f"taste {self.rule}")
        return {a + b: rng.gauss(0.0, 1.0) for a, b in itertools.product(LETTERS, LETTERS)}

    def listed(self) -> Iterator[str]:
        return map("".join, itertools.permutations(LETTERS, 3))

    def problem(self, text: str) -> Problem:
        demonstration = self.written(text, random.Random(f"taste {self.rule} {text}"))
        question = {"role": "user", "content": f"{text}:"}
        return Problem(f"taste:{text}", (question,), demonstration, self.name)

    def written(self, letters: str, rng: random.Random) -> str:
        """A text of middling taste: 4 to 12 letters, good pairs and letters asked for more often."""
        text = rng.choice(letters)
        length = rng.randint(4, 12)
        while len(text) < length:
            odds = [
                math.exp(0.5 * self.weights[text[-1] + x]) * (2.0 if x in letters else 1.0)
                for x in LETTERS
            ]
            text += rng.choices(LETTERS, odds)[0]
        return text

    def utility(self, problem: Problem, text: str) -> float:
        """How much the labeller likes a text.

        The sum of the weights of its different pairs of neighbours and 1 for each letter asked for,
        less REPEAT for each repeated pair and RAMBLE for the square of the letters beyond LONG.
        Raises DataError for a text that is empty or has other letters.

        >>> taste, problem = Taste(), Problem("", ({"role": "user", "content": "abc:"},))
        >>> taste.weights.update(dict.fromkeys(taste.weights, 0.5))
        >>> taste.utility(problem, "abab")  # 2 x 0.5 for ab, ba; 2 for a, b; -0.8 for the second ab
        2.2
        """
        if not legible(text):
            raise DataError(
                f"task taste: {text!r:.60} has no utility; its letters must be among {LETTERS}"
            )
        pairs = Counter(a + b for a, b in itertools.pairwise(text))
        asked = sum(letter in text for letter in problem.question[:3])
        repeats = sum(n - 1 for n in pairs.values())
        beyond = max(0, len(text) - LONG)
        liked = sum(self.weights[pair] for pair in pairs)
        return liked + ASKED * asked - REPEAT * repeats - RAMBLE * beyond**2

    def rank(self, problem: Problem, texts: Sequence[str], rng: random.Random) -> list[int]:
        """Indices of the texts, best first, drawn from Plackett-Luce.

        The order is that of utility / NOISE plus a standard Gumbel noise (arXiv:1903.06059, sec.
        2.3), so that every pair follows Bradley-Terry. A text that is empty or has other letters
        comes last.
        """
        noisy = [
            self.utility(problem, text) / NOISE - math.log(rng.expovariate(1.0))
            if legible(text)
            else -math.inf
            for text in texts
        ]
        return sorted(range(len(texts)), key=lambda i: -noisy[i])

    def verdict(self, problem: Problem, text: str) -> Score:
        """The probability of being preferred to the demonstration.

        Unparsed where the text is empty or has other letters.
        """
        if not legible(text):
            return Score(0.0, "unparsed", {"accuracy": 0.0})
        utility = self.utility(problem, text)
        margin = (utility - self.utility(problem, problem.answer or "")) / NOISE
        value = 1 / (1 + math.exp(-max(-500.0, min(500.0, margin))))
        right = value > 0.5
        parts = {"accuracy": float(right), "utility": utility}
        return Score(value, "scored" if right else "wrong", parts)

    def alphabet(self) -> str:
        return LETTERS + ":"

    @property
    def corpus_variety(self) -> str:
        return f"taste corpus {self.rule}"

    def response(self, problem: Problem, mode: str, rng: random.Random) -> str:
        return self.written(problem.question[:3], rng)


def legible(text: str) -> bool:
    return bool(text) and set(text) <= set(LETTERS)
