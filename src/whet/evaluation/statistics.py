"""Statistics of an evaluation: intervals, pass@k, majority votes, exact paired tests. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np

Z95 = NormalDist().inv_cdf(0.975)
EXACT_FLIPS = 16  # problems that differ, up to which every sign pattern is counted
DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean in [0, 1] with its confidence interval, and the effective number of answers."""

    mean: float
    low: float
    high: float
    n_effective: float


@dataclass(frozen=True, slots=True)
class Paired:
    """b minus a on the same problems: mean difference, 95 % interval, two-sided p value, test."""

    difference: float
    low: float
    high: float
    p: float
    test: str


@dataclass(frozen=True, slots=True)
class Split:
    """The two parts of a gain in accuracy; their sum is the gain."""

    choosing: float
    reasoning: float


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share. Both numbers may be fractions, as effective ones are.

    Source: E. B. Wilson 1927. Raises ValueError unless 0 <= successes <= n and n > 0.

    >>> [round(x, 4) for x in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(
            f"wilson: {successes} successes of {n}; need 0 <= successes <= n and n > 0"
        )
    if not 0 < level < 1:
        raise ValueError(f"wilson: level {level} is not between 0 and 1")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def mean_with_interval(counts: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """The mean over problems of the mean over a problem's samples, with an interval over problems.

    Every sample is 0 or 1. Samples of one problem resemble each other, so they count as
    n_effective = p (1 - p) / var(mean) independent answers, where
    var(mean) = sum_i (m_i - p)^2 / (P (P - 1)) over the P problems' means m_i. n_effective is at
    least P, as where the samples of each problem agree, and at most the number of samples. It is P
    where the variance is no guide (one problem, p of 0 or 1). With one sample a problem it is P
    too, and the interval is Wilson's. Raises ValueError for no problem or one without samples.

    >>> mean_with_interval([[1.0], [0.0], [1.0], [1.0]]).n_effective
    4.0
    >>> round(mean_with_interval([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).n_effective, 4)
    6.0
    """
    if not counts or any(not c for c in counts):
        raise ValueError(
            "mean_with_interval: every problem needs at least one sample, and there must be a problem"
        )
    means = [fmean(c) for c in counts]
    p, problems, samples = fmean(means), len(means), sum(len(c) for c in counts)
    if not (min(means) >= 0 and max(means) <= 1):
        raise ValueError("mean_with_interval: samples must be between 0 and 1")
    if problems == 1 or p in (0.0, 1.0):
        n = float(problems)
    else:
        variance = math.fsum((m - p) ** 2 for m in means) / (problems * (problems - 1))
        n = float(samples if variance == 0 else min(samples, max(problems, p * (1 - p) / variance)))
    low, high = wilson(min(p * n, n), n, level)
    return Interval(p, min(low, p), max(high, p), n)


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): the chance that k of n samples, c of them right, have a right one.

    Source: arXiv:2107.03374, eq. 1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> round(pass_at_k(10, 3, 5), 6)
    0.916667
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k: n {n}, c {c}, k {k}; need 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k)) if n - c >= k else 1.0


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """1 where the commonest answer is right, 0 where it is wrong; of tied ones, the right share.

    None is an answer that could not be parsed: it has no vote. Without any vote the result is 0.
    Raises ValueError where the lengths differ.

    >>> majority(["7", "7", "8", None], [True, True, False, False]), majority(["7", "8"], [True, False])
    (1.0, 0.5)
    """
    if len(answers) != len(correct):
        raise ValueError(f"majority: {len(answers)} answers, {len(correct)} verdicts")
    votes: dict[str, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(right)
    if not votes:
        return 0.0
    most = max(len(v) for v in votes.values())
    return fmean(fmean(v) for v in votes.values() if len(v) == most)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p value for the numbers of problems that only a, or only b, got right.

    It is the chance that a fair coin splits them this unevenly. Source: Q. McNemar 1947, exact
    binomial form. Raises ValueError for a negative number.

    >>> mcnemar_exact(1, 9)
    0.021484375
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"mcnemar_exact: counts {only_a} and {only_b} must not be negative")
    n, few = only_a + only_b, min(only_a, only_b)
    term = tail = 1  # C(n, i) and their sum: whole numbers, each from the one before
    for i in range(few):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def paired(a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]]) -> Paired:
    """Is b better than a on the same P problems? a[i], b[i] are the samples of problem i.

    With one sample each the test is McNemar's. Otherwise it flips the signs of the problems' mean
    differences d_i: all patterns for up to 16 problems that differ, else 20,000 drawn ones (seeded;
    p = (1 + hits) / (1 + draws)).

    The interval is d +- 1.96 s with s^2 = (sum_i (d_i - d)^2 + 2 / k) / (P (P + 1)), k the fewest
    samples of a problem. The 2 / k adds one sample each way (cf. Bonett and Price 2012 for k = 1),
    so that equal differences leave no empty interval.
    Raises ValueError for no problems, unequal numbers of them, or one without samples.

    >>> result = paired([[True], [False], [False]], [[True], [True], [True]])
    >>> round(result.difference, 4), round(result.low, 4), result.high, result.p, result.test
    (0.6667, -0.2573, 1.0, 0.5, 'McNemar, exact')
    """
    if not a or len(a) != len(b):
        raise ValueError(
            f"paired: {len(a)} and {len(b)} problems; give the same ones, at least one"
        )
    if any(not x for x in (*a, *b)):
        raise ValueError("paired: every problem needs at least one sample of each")
    differences = [fmean(y) - fmean(x) for x, y in zip(a, b, strict=True)]
    mean, problems, fewest = fmean(differences), len(a), min(len(x) for x in (*a, *b))
    squares = math.fsum((d - mean) ** 2 for d in differences) + 2 / fewest
    half = Z95 * math.sqrt(squares / (problems * (problems + 1)))
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    if all(len(x) == 1 for x in (*a, *b)):
        p = mcnemar_exact(sum(d < 0 for d in differences), sum(d > 0 for d in differences))
        return Paired(mean, low, high, p, "McNemar, exact")
    p, exact = sign_flip(differences)
    return Paired(mean, low, high, p, f"sign flip, {'exact' if exact else f'{DRAWS} draws'}")


def sign_flip(differences: Sequence[float]) -> tuple[float, bool]:
    """Two-sided p value of the sum under random signs, and whether all sign patterns were counted.

    >>> sign_flip([0.5, 0.25, 1.0])
    (0.25, True)
    """
    moved = [abs(d) for d in differences if d != 0]
    seen = abs(math.fsum(differences)) - 1e-9
    if len(moved) <= EXACT_FLIPS:
        sums = [0.0]
        for d in moved:
            sums = [s + d for s in sums] + [s - d for s in sums]
        return sum(abs(s) >= seen for s in sums) / len(sums), True
    rng, sizes, hits = np.random.default_rng(0), np.array(moved), 0
    for _ in range(DRAWS // 1000):
        signs = rng.integers(0, 2, (1000, len(moved)), dtype=np.int8).astype(np.float64) * 2 - 1
        hits += int((np.abs(signs @ sizes) >= seen).sum())
    return (1 + hits) / (1 + DRAWS), False


def decompose(
    before: Mapping[str, tuple[float, float | None]],
    after: Mapping[str, tuple[float, float | None]],
) -> Split:
    """The two parts of a gain in accuracy, from each mode's share s and accuracy a.

    The accuracy is None for a mode without answers. choosing = sum (s' - s) a is the gain if every
    mode kept its accuracy; reasoning = sum s' (a' - a) comes from better answers within a mode. A
    mode that is new, or gone, counts as choosing: its one accuracy stands for both. The parts sum
    to the gain. Raises ValueError where a mode has a share of the answers but no accuracy.

    >>> before = {"guess": (0.9, 0.2), "think": (0.1, 0.6)}
    >>> split = decompose(before, {"guess": (0.0, None), "think": (1.0, 0.9)})
    >>> round(split.choosing, 4), round(split.reasoning, 4)
    (0.36, 0.3)
    """
    choosing = reasoning = 0.0
    for mode in sorted({*before, *after}):
        share, accuracy = before.get(mode, (0.0, None))
        share_after, accuracy_after = after.get(mode, (0.0, None))
        if (share > 0 and accuracy is None) or (share_after > 0 and accuracy_after is None):
            raise ValueError(f"decompose: mode {mode!r} has a share of the answers but no accuracy")
        was = accuracy if accuracy is not None else (accuracy_after or 0.0)
        now = accuracy_after if accuracy_after is not None else was
        choosing += (share_after - share) * was
        reasoning += share_after * (now - was)
    return Split(choosing, reasoning)


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of a figure over seeds; nan for a single seed.

    Raises ValueError for no seed.

    >>> [round(x, 4) for x in mean_sd([0.8, 0.9, 1.0])]
    [0.9, 0.1]
    """
    if not values:
        raise ValueError("mean_sd: no values")
    return fmean(values), stdev(values) if len(values) > 1 else math.nan
