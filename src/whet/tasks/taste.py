"""A taste to be learned from comparisons: a hidden rule says how much a labeller likes a text, and
the policy never sees it.

A question names three letters; a response is a string of letters. What the labeller likes: certain
pairs of neighbouring letters, each counted once, the letters asked for, and no rambling. A reward
model learns the taste from ranked samples of a policy that seldom repeats itself or rambles, so it
cannot know how much repeats and rambling displease: reinforcement learning against it finds out.
True and learned reward can be plotted against each other (over-optimisation: arXiv:2210.10760).
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from whet.errors import DataError, RecipeError
from whet.tasks.corpus import refuse_mix, training_problems
from whet.tasks.split import Split, demand, is_test
from whet.types import Problem, Score

LETTERS = "abcdefghijkl"
ASKED = 1.0  # for each of the letters asked for that occurs
REPEAT = 0.8  # lost with every pair of neighbours that occurred before
LONG = 14  # letters, beyond which a text rambles
RAMBLE = 0.05  # lost with the square of the letters beyond
NOISE = 1.5  # of a labeller: a text that is better by so much is preferred e : 1


class Taste:
    """1,320 questions, a tenth of them test. `rule` is the seed of the hidden weights.

    A score is how probable it is that a labeller prefers the response to the demonstration,
    sigmoid((utility - utility of the demonstration) / NOISE) (Bradley-Terry, arXiv:2203.02155, eq.
    1). Right is above one half; the part `utility` is logged.
    """

    name = "taste"
    modes: tuple[str, ...] = ()

    def __init__(self, rule: int = 1) -> None:
        if isinstance(rule, bool) or not isinstance(rule, int):
            raise RecipeError(f"task taste: rule = {rule!r}; it must be a whole number")
        self.rule = rule
        rng = random.Random(f"taste {rule}")
        self.weights = {a + b: rng.gauss(0.0, 1.0) for a, b in itertools.product(LETTERS, LETTERS)}

    @cached_property
    def _pool(self) -> dict[Split, list[str]]:
        pool: dict[Split, list[str]] = {"train": [], "test": []}
        for letters in itertools.permutations(LETTERS, 3):
            pool["test" if is_test("".join(letters)) else "train"].append("".join(letters))
        return pool

    def size(self, split: Split) -> int | None:
        return len(self._pool[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        demand(n, len(self._pool[split]), f"task taste: {split} problems", "ask for fewer")
        chosen = random.Random(f"taste {split} {seed}").sample(self._pool[split], n)
        return [self._problem(letters) for letters in chosen]

    def _problem(self, letters: str) -> Problem:
        content = letters + ":"
        demonstration = self.written(letters, random.Random(f"taste {self.rule} {letters}"))
        return Problem(
            f"taste:{letters}", ({"role": "user", "content": content},), demonstration, self.name
        )

    def written(self, letters: str, rng: random.Random) -> str:
        """A text of middling taste: 4 to 12 letters, liked pairs a little more often, letters asked
        for too.
        """
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
        """How much the labeller likes a text: the weights of its different pairs of neighbours, 1
        for each letter asked for, less what repeats and letters beyond LONG cost. Raises DataError
        for a text that is empty or has other letters.

        >>> taste, problem = Taste(), Problem("", ({"role": "user", "content": "abc:"},))
        >>> taste.weights = dict.fromkeys(taste.weights, 0.5)
        >>> taste.utility(problem, "abab")  # 2 x 0.5 for ab and ba, 2 for a and b, less 0.8 for the second ab
        2.2
        """
        if not legible(text):
            raise DataError(
                f"task taste: {text!r:.60} has no utility; its letters must be among {LETTERS}"
            )
        found = Counter(a + b for a, b in itertools.pairwise(text))
        asked = sum(letter in text for letter in problem.question[:3])
        repeats = sum(n - 1 for n in found.values())
        beyond = max(0, len(text) - LONG)
        liked = sum(self.weights[pair] for pair in found)
        return liked + ASKED * asked - REPEAT * repeats - RAMBLE * beyond**2

    def rank(self, problem: Problem, texts: Sequence[str], rng: random.Random) -> list[int]:
        """Best first, drawn from Plackett-Luce: utilities / NOISE plus a standard Gumbel noise
        each, in order (arXiv:1903.06059, sec. 2.3), so that every pair follows Bradley-Terry. A
        text that is empty or has other letters comes last.
        """
        noisy = [
            self.utility(problem, text) / NOISE - math.log(rng.expovariate(1.0))
            if legible(text)
            else -math.inf
            for text in texts
        ]
        return sorted(range(len(texts)), key=lambda i: -noisy[i])

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """The probability of being preferred to the demonstration; unparsed where a text is empty
        or has other letters.
        """
        scores = []
        for problem, text in zip(problems, texts, strict=True):
            if not legible(text):
                scores.append(Score(0.0, "unparsed", {"accuracy": 0.0}))
                continue
            utility = self.utility(problem, text)
            margin = (utility - self.utility(problem, problem.answer or "")) / NOISE
            value = 1 / (1 + math.exp(-max(-500.0, min(500.0, margin))))
            status = "scored" if value > 0.5 else "wrong"
            scores.append(
                Score(value, status, {"accuracy": float(value > 0.5), "utility": utility})
            )
        return scores

    def mode(self, problem: Problem, text: str) -> str:
        return "other"

    def alphabet(self) -> str:
        return LETTERS + ":"

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        refuse_mix(self, mix)
        rng = random.Random(f"taste corpus {self.rule} {seed}")
        return [(p, self.written(p.question[:3], rng)) for p in training_problems(self, n, seed)]


def legible(text: str) -> bool:
    return bool(text) and set(text) <= set(LETTERS)
