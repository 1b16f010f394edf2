"""What pays for length: group-relative (Kimi), to a budget (LCPO), short of the limit (DAPO), by a
cosine.

A length is the number of tokens that the policy chose, end of turn included; characters only where
there is no sample, as when a reward is tried on a file of answers. Parts that pay right and wrong
answers differently take the verdict from the verifier they are combined with (`given`); alone they
refuse.
"""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from whet.errors import RewardError
from whet.types import Problem, Sample, Score


def measured(texts: Sequence[str], samples: Sequence[Sample] | None) -> list[int]:
    """The length of each response: tokens of its sample, or characters where there are no samples."""
    return (
        [len(text) for text in texts] if samples is None else [sample.length for sample in samples]
    )


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

    >>> round(lcpo_max(1500, 1000, 0.0003, 0.5), 9), lcpo_max(100, 3000, 0.0003, 0.5), lcpo_max(4000, 1000, 0.0003, 0.5)
    (0.35, 1.0, 0.0)
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


class Judged:
    """A part whose value depends on the verifier's verdict: `CombinedReward` hands it over through
    `given`.
    """

    name = ""

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> NoReturn:
        """Raises RewardError: alone there is no verdict."""
        raise RewardError(
            f"reward {self.name} pays by a verifier's verdict: add a [[reward]] that gives one (task, math …); "
            "weight = 0 has it only judge"
        )


def _same_length(name: str, problems: Sequence[Problem], verdicts: Sequence[Score]) -> None:
    if len(problems) != len(verdicts):
        raise RewardError(f"reward {name}: {len(verdicts)} verdicts for {len(problems)} responses")


class KimiLength(Judged):
    """`kimi` over the group: the responses to problems of one id in a call. The first `warmup`
    updates of the policy pay 0.

    Responses whose verifier failed stand outside the group. `warmup` counts what a sample's version
    counts: an algorithm of k updates a rollout makes k versions a step; with no samples there is no
    warm-up. A problem that a step draws twice is one group.
    """

    name = "length_kimi"

    def __init__(self, warmup: int = 0) -> None:
        self.warmup = _whole(self.name, "warmup", warmup, 0)

    def given(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]:
        """N responses and their verdicts -> N scores."""
        _same_length(self.name, problems, verdicts)
        lengths = measured(texts, samples)
        scores = [Score(0.0, verdict.status) for verdict in verdicts]
        groups: dict[str, list[int]] = {}
        for i, (problem, verdict) in enumerate(zip(problems, verdicts, strict=True)):
            if verdict.usable and (samples is None or samples[i].version >= self.warmup):
                groups.setdefault(problem.id, []).append(i)
        for members in groups.values():
            values = kimi([lengths[i] for i in members], [verdicts[i].correct for i in members])
            for i, value in zip(members, values, strict=True):
                scores[i] = Score(value)
        return scores


class LcpoExact:
    """`lcpo_exact` against the budget that the prompt states (`[task] budget = { min, max }`); add
    it to a verifier.
    """

    name = "lcpo_exact"

    def __init__(self, alpha: float = 0.0003) -> None:
        self.alpha = _number(self.name, "alpha", alpha, above=0.0)

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N responses -> N scores. Raises RewardError where a problem has no budget."""
        pairs = zip(measured(texts, samples), problems, strict=True)
        return [
            Score(lcpo_exact(length, budget(self.name, problem), self.alpha))
            for length, problem in pairs
        ]


class LcpoMax(Judged):
    """Verdict times `lcpo_max`: the whole reward, so give the verifier beside it weight 0."""

    name = "lcpo_max"

    def __init__(self, alpha: float = 0.0003, delta: float = 0.5) -> None:
        self.alpha = _number(self.name, "alpha", alpha, above=0.0)
        self.delta = _number(self.name, "delta", delta)

    def given(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]:
        """N responses and their verdicts -> N scores. Raises RewardError where a problem has no
        budget.
        """
        _same_length(self.name, problems, verdicts)
        return [
            _as(
                verdict,
                verdict.correct
                * lcpo_max(length, budget(self.name, problem), self.alpha, self.delta),
            )
            for length, problem, verdict in zip(
                measured(texts, samples), problems, verdicts, strict=True
            )
        ]


class BudgetError:
    """|n - N| / N of each response: how far its length n is from the budget N. To be logged, with
    weight = 0.

    >>> problem = Problem("a", ({"role": "user", "content": "Think for 8 tokens."},), meta={"budget": 8})
    >>> BudgetError().score([problem], ["ten chars."])[0].value
    0.25
    """

    name = "budget_error"

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N responses -> N scores. Raises RewardError where a problem has no budget."""
        budgets = [budget(self.name, problem) for problem in problems]
        pairs = zip(measured(texts, samples), budgets, strict=True)
        return [Score(abs(length - wanted) / wanted) for length, wanted in pairs]


class Overlong:
    """`overlong` up to `max_tokens` (the stage's), over its last `cache` tokens: a fifth, as in
    DAPO, if not given.
    """

    name = "overlong"

    def __init__(self, max_tokens: int = 0, cache: int | None = None) -> None:
        self.limit = _whole(self.name, "max_tokens", max_tokens, 1)
        self.cache = _whole(
            self.name, "cache", max(1, self.limit // 5) if cache is None else cache, 1
        )
        if self.cache > self.limit:
            raise RewardError(
                f"reward overlong: cache = {cache} is more than max_tokens = {max_tokens}"
            )

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        """N responses -> N scores within [-1, 0]."""
        return [
            Score(overlong(length, self.limit, self.cache)) for length in measured(texts, samples)
        ]


class Cosine(Judged):
    """The cosine reward: `right` and `wrong` are its values at length 0 and at `max_tokens`;
    `exceeded` from there on.

    The whole reward, so give the verifier beside it weight 0. Defaults: arXiv:2502.03373's. A short
    wrong answer pays least: think longer where unsure. Open-RS (arXiv:2503.16219) has it the other
    way round: its defaults pay a wrong answer 0 at length 0 and -0.5 at the limit; it counts
    characters against a limit in tokens, and pays nothing of its own for an answer that was cut.
    """

    name = "cosine"

    def __init__(
        self,
        max_tokens: int = 0,
        right: Sequence[float] = (2.0, 1.0),
        wrong: Sequence[float] = (-10.0, 0.0),
        exceeded: float = -10.0,
    ) -> None:
        self.limit = _whole(self.name, "max_tokens", max_tokens, 1)
        self.right, self.wrong = _pair(self.name, "right", right), _pair(self.name, "wrong", wrong)
        self.exceeded = _number(self.name, "exceeded", exceeded)

    def given(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None,
        verdicts: Sequence[Score],
    ) -> list[Score]:
        """N responses and their verdicts -> N scores."""
        _same_length(self.name, problems, verdicts)
        scores = []
        for i, (length, verdict) in enumerate(zip(measured(texts, samples), verdicts, strict=True)):
            cut = length >= self.limit or (samples is not None and samples[i].finish == "length")
            ends = self.right if verdict.correct else self.wrong
            scores.append(_as(verdict, self.exceeded if cut else cosine(length, self.limit, *ends)))
        return scores


def budget(name: str, problem: Problem) -> int:
    """The tokens that the problem's prompt asks for. Raises RewardError, with the cure, where it
    asks for none.
    """
    wanted = problem.meta.get("budget")
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise RewardError(
            f"reward {name}: problem {problem.id!r} states no budget; write [task] budget = {{ min = …, max = … }}"
        )
    return wanted


def _as(verdict: Score, value: float) -> Score:
    return Score(value) if verdict.usable else Score(0.0, verdict.status)


def _number(name: str, option: str, value: Any, above: float = -math.inf) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not above < value < math.inf
    ):
        more = "" if above == -math.inf else f" above {above:g}"
        raise RewardError(f"reward {name}: {option} = {value!r} must be a number{more}")
    return float(value)


def _whole(name: str, option: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RewardError(
            f"reward {name}: {option} = {value!r} must be a whole number of at least {least}"
        )
    return value


def _pair(name: str, option: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise RewardError(
            f"reward {name}: {option} = {value!r} must be two numbers: at length 0 and at max_tokens"
        )
    return _number(name, option, value[0]), _number(name, option, value[1])
