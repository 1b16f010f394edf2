"""Rewards for length: group-relative (Kimi), to a budget (LCPO), short of the limit (DAPO), along a
cosine.

A length is the number of tokens that the policy chose, end of turn included. Characters are counted
only where there is no sample, as when a reward is tried on a file of answers. Rewards that pay right
and wrong answers differently take the verdict of the verifier beside them; alone they refuse.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from whet.errors import RewardError
from whet.rewards.base import RewardOptions, VerdictReward
from whet.types import Problem, Sample, Score

Alpha = Annotated[float, Field(gt=0, description="price of one token of distance to the budget")]
Limit = Annotated[
    int, Field(ge=1, description="longest response in tokens: the stage's max_tokens")
]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]


def measured(text: str, sample: Sample | None) -> int:
    """The length of a response: the tokens of its sample, or characters where there is none."""
    return len(text) if sample is None else sample.length


def budget(reward: str, problem: Problem) -> int:
    """The tokens that the problem's prompt asks for. Raises RewardError, with the cure, where it
    asks for none.
    """
    tokens = problem.meta.get("budget")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise RewardError(
            f"{reward}: problem {problem.id!r} states no budget; "
            "write [task] budget = { min = …, max = … }"
        )
    return tokens


def kimi(lengths: Sequence[int], right: Sequence[bool]) -> list[float]:
    """The length rewards of one group: 0.5 - (len - min)/(max - min) for a right answer, at most 0
    for a wrong one.

    All 0 where the lengths are equal. Source: Kimi k1.5, arXiv:2501.12599, sec. 2.3.3.

    >>> kimi([10, 15, 20, 30], [True, True, False, False])
    [0.5, 0.25, 0.0, -0.5]
    """
    low, high = min(lengths), max(lengths)
    if low == high:
        return [0.0] * len(lengths)
    values = [0.5 - (length - low) / (high - low) for length in lengths]
    return [value if ok else min(0.0, value) for value, ok in zip(values, right, strict=True)]


def lcpo_exact(length: int, budget: int, alpha: float) -> float:
    """-alpha |budget - length|, to be added to the verdict. Source: L1, arXiv:2503.04697, eq. 1.

    >>> round(lcpo_exact(900, 1000, 0.0003), 9)
    -0.03
    """
    return -alpha * abs(budget - length)


def lcpo_max(length: int, budget: int, alpha: float, delta: float) -> float:
    """clip(alpha (budget - length) + delta, 0, 1), to be multiplied by the verdict. Source: L1,
    arXiv:2503.04697, eq. 2.

    >>> [round(lcpo_max(length, 1000, 0.0003, 0.5), 9) for length in (1500, 100, 4000)]
    [0.35, 0.77, 0.0]
    >>> lcpo_max(100, 3000, 0.0003, 0.5)
    1.0
    """
    return min(1.0, max(0.0, alpha * (budget - length) + delta))


def overlong(length: int, limit: int, cache: int) -> float:
    """0 up to limit - cache, then linear down to -1 at the limit, -1 beyond. Source: DAPO,
    arXiv:2503.14476, eq. 13.

    >>> overlong(16384, 20480, 4096), overlong(17408, 20480, 4096), overlong(30000, 20480, 4096)
    (0.0, -0.25, -1.0)
    """
    return max(-1.0, min(0.0, (limit - cache - length) / cache))


def cosine(length: int, limit: int, first: float, last: float) -> float:
    """From `first` at length 0 to `last` at the limit along half a cosine. Source:
    arXiv:2502.03373, sec. 4.2.

    >>> round(cosine(2048, 4096, 2.0, 1.0), 9), round(cosine(1024, 4096, -10.0, 0.0), 4)
    (1.5, -8.5355)
    """
    return last + 0.5 * (first - last) * (1.0 + math.cos(math.pi * min(length, limit) / limit))


class LengthReward(RewardOptions):
    """A reward that pays for each response by its length alone."""

    @abstractmethod
    def value(self, length: int, problem: Problem) -> float: ...

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N responses -> N scores. Raises RewardError where a budget is needed and not stated."""
        rows = zip(problems, texts, samples or [None] * len(texts), strict=True)
        return [Score(self.value(measured(text, sample), p)) for p, text, sample in rows]


class LcpoExact(LengthReward):
    """`lcpo_exact` against the budget that the prompt states; add it to a verifier."""

    owner = "reward lcpo_exact"
    alpha: Alpha = 0.0003

    def value(self, length: int, problem: Problem) -> float:
        return lcpo_exact(length, budget(self.owner, problem), self.alpha)


class BudgetError(LengthReward):
    """|n - N| / N of each response: how far its length n is from the budget N. To be logged, with
    weight = 0.

    >>> messages = ({"role": "user", "content": "Think for 8 tokens."},)
    >>> BudgetError().score([Problem("a", messages, meta={"budget": 8})], ["ten chars."])[0].value
    0.25
    """

    owner = "reward budget_error"

    def value(self, length: int, problem: Problem) -> float:
        tokens = budget(self.owner, problem)
        return abs(length - tokens) / tokens


class Overlong(LengthReward):
    """`overlong` up to the limit: values within [-1, 0]."""

    owner = "reward overlong"
    max_tokens: Limit
    cache: int | None = Field(
        default=None,
        ge=1,
        description="last tokens before the limit, over which the value falls; "
        "default: a fifth of the limit, as in DAPO",
    )

    @property
    def soft(self) -> int:
        """The tokens over which the value falls."""
        return max(1, self.max_tokens // 5) if self.cache is None else self.cache

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.soft > self.max_tokens:
            raise ValueError(f"cache = {self.cache} is more than max_tokens = {self.max_tokens}")
        return self

    def value(self, length: int, problem: Problem) -> float:
        return overlong(length, self.max_tokens, self.soft)


class LcpoMax(VerdictReward):
    """Verdict times `lcpo_max`: the whole reward, so give the verifier beside it weight 0."""

    owner = "reward lcpo_max"
    alpha: Alpha = 0.0003
    delta: float = Field(default=0.5, description="factor of a right answer that meets its budget")

    def pay(self, problem: Problem, text: str, sample: Sample | None, verdict: Score) -> Score:
        length, tokens = measured(text, sample), budget(self.owner, problem)
        return Score(verdict.correct * lcpo_max(length, tokens, self.alpha, self.delta))


class Cosine(VerdictReward):
    """`cosine` between the ends for a right or a wrong answer; `exceeded` from the limit on.

    The whole reward, so give the verifier beside it weight 0. Defaults: arXiv:2502.03373's. A short
    wrong answer pays least: think longer where unsure. Open-RS (arXiv:2503.16219) has it the other
    way round: its defaults pay a wrong answer 0 at length 0 and -0.5 at the limit; it counts
    characters against a limit in tokens, and pays nothing of its own for an answer that was cut.
    """

    owner = "reward cosine"
    max_tokens: Limit
    right: Ends = Field(
        default=[2.0, 1.0], description="values of a right answer at length 0 and at max_tokens"
    )
    wrong: Ends = Field(
        default=[-10.0, 0.0], description="values of a wrong answer at length 0 and at max_tokens"
    )
    exceeded: float = Field(default=-10.0, description="value of an answer at the limit, or cut")

    def pay(self, problem: Problem, text: str, sample: Sample | None, verdict: Score) -> Score:
        length = measured(text, sample)
        if length >= self.max_tokens or (sample is not None and sample.finish == "length"):
            return Score(self.exceeded)
        first, last = self.right if verdict.correct else self.wrong
        return Score(cosine(length, self.max_tokens, first, last))


class KimiLength(VerdictReward):
    """`kimi` over the group: the responses to problems of one id in a call.

    Responses whose verifier failed stand outside the group. A problem that a step draws twice is
    one group. An algorithm of k updates a rollout makes k versions a step, which `warmup` counts.
    Without samples there is no warm-up.
    """

    owner = "reward length_kimi"
    warmup: int = Field(default=0, ge=0, description="first versions of the policy that are paid 0")

    def pay(self, problem: Problem, text: str, sample: Sample | None, verdict: Score) -> Score:
        return Score(0.0)

    def score_given_verdicts(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]:
        """N responses and their verdicts -> N scores."""
        scores = super().score_given_verdicts(problems, texts, samples, verdicts)
        drawn = samples or [None] * len(texts)
        groups: dict[str, list[int]] = {}
        for i, (problem, sample) in enumerate(zip(problems, drawn, strict=True)):
            if verdicts[i].usable and (sample is None or sample.version >= self.warmup):
                groups.setdefault(problem.id, []).append(i)
        for members in groups.values():
            lengths = [measured(texts[i], drawn[i]) for i in members]
            values = kimi(lengths, [verdicts[i].correct for i in members])
            for i, value in zip(members, values, strict=True):
                scores[i] = Score(value)
        return scores
