"""Every figure against brute force: subsets, coin flips, sign patterns and binomials counted one by
one.
"""

import itertools
import math
import random
import time
from collections import Counter
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.evaluation.statistics import (
    Paired,
    decompose,
    majority,
    mcnemar_exact,
    mean_sd,
    mean_with_interval,
    paired,
    pass_at_k,
    sign_flip,
    wilson,
)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_counts_subsets(n: int):
    for c in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(
                sum(map(any, subsets)) / len(subsets), abs=1e-12
            )


def test_pass_at_k_is_stable_where_binomials_overflow_floats():
    n, c, k = 20_000, 3, 5_000
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_bounds_solve_its_equation(level: float):
    """The bounds are the shares p at which |successes / n - p| is exactly z standard errors of p."""
    z = {0.9: 1.6448536, 0.95: 1.9599640, 0.99: 2.5758293}[level]
    for successes, n in [(8, 10), (1, 7), (0.4, 3.5), (99, 100)]:
        for bound in wilson(successes, n, level):
            assert abs(successes / n - bound) == pytest.approx(
                z * math.sqrt(bound * (1 - bound) / n), rel=1e-6
            )


def test_wilson_covers_as_often_as_it_says():
    n = 60
    intervals = [wilson(c, n) for c in range(n + 1)]
    coverage = []
    for p in np.linspace(0.05, 0.95, 91):
        mass = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        coverage.append(
            sum(m for m, (low, high) in zip(mass, intervals, strict=True) if low <= p <= high)
        )
    assert min(coverage) > 0.91 and 0.945 < float(np.mean(coverage)) < 0.96


def test_wilson_at_the_ends():
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0
    assert wilson(0, 5)[1] == pytest.approx(1 - wilson(5, 5)[0])
    low, high = wilson(8, 10, 0.99)
    assert low < wilson(8, 10)[0] and high > wilson(8, 10)[1]


def test_one_sample_a_problem_is_wilsons_interval():
    for right, problems in [(3, 4), (1, 30), (0, 9), (9, 9)]:
        interval = mean_with_interval([[1.0]] * right + [[0.0]] * (problems - right))
        assert (interval.low, interval.high) == pytest.approx(wilson(right, problems), abs=1e-15)
        assert interval.n_effective == problems and interval.low <= interval.mean <= interval.high


def test_samples_that_agree_are_worth_one_and_samples_that_do_not_are_worth_all():
    same = mean_with_interval([[1.0] * 8, [0.0] * 8, [1.0] * 8, [0.0] * 8])
    assert same.n_effective == 4
    assert mean_with_interval([[1.0, 0.0]] * 4).n_effective == 8
    assert mean_with_interval([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]]).n_effective == 1
    assert (
        mean_with_interval([[1.0] * 8] * 3).n_effective
        == 3
        == mean_with_interval([[0.0] * 8] * 3).n_effective
    )
    between = mean_with_interval(
        [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]] * 2
    )
    share, variance = 7 / 12, np.var([1, 1 / 4, 1 / 2] * 2, ddof=1) / 6
    assert (
        between.n_effective == pytest.approx(share * (1 - share) / variance)
        and 6 < between.n_effective < 24
    )


def test_problems_weigh_alike_however_many_samples_they_have():
    assert mean_with_interval([[1.0], [0.0, 0.0, 0.0]]).mean == 0.5


def test_the_interval_over_problems_covers_as_often_as_it_says():
    """Problems whose difficulty differs (Beta(0.5, 1)), 6 samples each: an interval that took
    samples for independent covers 0.8.
    """
    rng = np.random.default_rng(0)
    problems, k, runs, hits = 40, 6, 1000, 0
    for _ in range(runs):
        right = rng.binomial(k, rng.beta(0.5, 1.0, problems))
        interval = mean_with_interval([[1.0] * c + [0.0] * (k - c) for c in right])
        hits += interval.low <= 1 / 3 <= interval.high
    assert 0.93 < hits / runs < 0.98


def test_majority_is_the_mean_over_ways_to_break_the_tie():
    rng = random.Random(0)
    for _ in range(200):
        answers = [rng.choice(["a", "b", "c", None]) for _ in range(rng.randint(1, 7))]
        votes = Counter(a for a in answers if a is not None)
        winners = [a for a, n in votes.items() if n == max(votes.values())]
        expected = sum(a == "a" for a in winners) / len(winners) if winners else 0.0
        assert majority(answers, [a == "a" for a in answers]) == pytest.approx(expected)


def test_majority_gives_the_unparsed_no_vote():
    assert majority([None, None, None, "7"], [False, False, False, True]) == 1.0
    assert majority([None, None], [False, False]) == 0.0 == majority([], [])


def test_mcnemar_counts_coin_flips():
    for n in range(11):
        heads = Counter(sum(flips) for flips in itertools.product((0, 1), repeat=n))
        for b in range(n + 1):
            as_uneven = sum(count for h, count in heads.items() if abs(h - n / 2) >= abs(b - n / 2))
            assert mcnemar_exact(b, n - b) == pytest.approx(as_uneven / 2**n, abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(40, 61), (700, 800), (1, 2000)])
def test_mcnemar_at_counts_too_many_to_flip(b: int, c: int):
    n = b + c
    log = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(b + 1)
    ]
    assert mcnemar_exact(b, c) == pytest.approx(2 * sum(map(math.exp, log)), rel=1e-8)


@given(st.lists(st.integers(-4, 4).map(lambda i: i / 4), min_size=1, max_size=8))
def test_sign_flip_counts_every_pattern(differences: list[float]):
    total = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert sign_flip(differences) == (
        pytest.approx(sum(s >= total for s in sums) / len(sums)),
        True,
    )


def test_drawn_signs_agree_with_counted_ones_and_repeat():
    rng = np.random.default_rng(3)
    differences = (rng.integers(-2, 4, 40) / 4).tolist()
    quarters = [round(4 * abs(d)) for d in differences]
    ways = Counter({0: 1})
    for q in quarters:
        ways = Counter(
            {s: ways[s - q] + ways[s + q] for s in {t + e for t in ways for e in (q, -q)}}
        )
    seen = abs(round(4 * sum(differences)))
    exact = sum(n for s, n in ways.items() if abs(s) >= seen) / 2 ** len(quarters)
    p, counted = sign_flip(differences)
    assert (
        not counted
        and p == pytest.approx(exact, abs=0.005)
        and sign_flip(differences) == (p, False)
    )
    assert sign_flip([1.0] * 60)[0] == pytest.approx(1 / 20_001)


def test_paired_picks_its_test():
    a, b = [[True], [False], [False], [False]], [[True], [True], [True], [True]]
    assert (paired(a, b).p, paired(a, b).test) == (mcnemar_exact(0, 3), "McNemar, exact")
    wide_a, wide_b = [x * 2 for x in a], [[True, False], [True, True], [False, True], [True, True]]
    result = paired(wide_a, wide_b)
    assert (result.p, result.test) == (sign_flip([-0.5, 1.0, 0.5, 1.0])[0], "sign flip, exact")
    assert result.difference == 0.5 and result.low < 0.5 < result.high
    assert paired([[True]], [[True, False]]).test == "sign flip, exact"
    many = paired([[False, False]] * 20, [[True, False]] * 20)
    assert many.test == "sign flip, 20000 draws"


def test_paired_is_antisymmetric():
    rng = np.random.default_rng(1)
    a, b = ((rng.random((12, 3)) < p).tolist() for p in (0.4, 0.7))
    forth, back = paired(a, b), paired(b, a)
    assert back == Paired(-forth.difference, -forth.high, -forth.low, forth.p, forth.test)


def test_sign_flips_and_mcnemar_agree_on_one_sample_each():
    assert sign_flip([1.0, 1.0, 1.0, -1.0, 0.0, 0.0])[0] == pytest.approx(mcnemar_exact(1, 3))


def test_a_difference_that_never_varies_still_has_an_interval():
    same = paired([[True, False]] * 5, [[True, False]] * 5)
    assert (same.difference, same.p) == (0.0, 1.0) and same.low < -0.1 and same.high > 0.1
    assert same.high == pytest.approx(1.959964 * math.sqrt((2 / 2) / (5 * 6)), rel=1e-6)
    up, down = paired([[False]], [[True]]), paired([[True]], [[False]])
    assert (up.high, down.low) == (1.0, -1.0) and up.low <= 0 <= down.high


@pytest.mark.parametrize(("problems", "k"), [(5, 1), (5, 8), (40, 1), (40, 8)])
def test_the_paired_interval_covers_as_often_as_it_says(problems: int, k: int):
    rng = np.random.default_rng(0)
    runs, hits = 400, 0
    for _ in range(runs):
        easy = rng.beta(1, 1, problems)
        a, b = (rng.random((problems, k)) < q[:, None] for q in (0.8 * easy, 0.2 + 0.8 * easy))
        result = paired(a.tolist(), b.tolist())
        hits += result.low <= 0.2 <= result.high
    assert hits / runs > 0.92


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.floats(0, 1), st.integers(0, 9), st.floats(0, 1)),
        min_size=1,
        max_size=5,
    )
)
def test_the_parts_of_a_gain_sum_to_it(rows: list[tuple[int, float, int, float]]):
    def side(counts: list[int], accuracies: list[float]) -> dict[str, tuple[float, float | None]]:
        total = sum(counts) or 1
        return {
            f"m{i}": (n / total, a if n else None)
            for i, (n, a) in enumerate(zip(counts, accuracies, strict=True))
        }

    before, after = (
        side([r[0] for r in rows], [r[1] for r in rows]),
        side([r[2] for r in rows], [r[3] for r in rows]),
    )
    gain = sum(s * (a or 0) for s, a in after.values()) - sum(
        s * (a or 0) for s, a in before.values()
    )
    split = decompose(before, after)
    assert split.choosing + split.reasoning == pytest.approx(gain, abs=1e-12)


def test_decompose_tells_choosing_from_reasoning():
    only_shares = decompose({"a": (0.9, 0.2), "b": (0.1, 0.8)}, {"a": (0.1, 0.2), "b": (0.9, 0.8)})
    assert (only_shares.choosing, only_shares.reasoning) == pytest.approx((0.48, 0.0))
    only_skill = decompose({"a": (0.5, 0.2), "b": (0.5, 0.8)}, {"a": (0.5, 0.3), "b": (0.5, 1.0)})
    assert (only_skill.choosing, only_skill.reasoning) == pytest.approx((0.0, 0.15))


def test_a_mode_that_comes_or_goes_counts_as_choosing():
    comes = decompose({"a": (1.0, 0.2)}, {"a": (0.4, 0.2), "b": (0.6, 0.9)})
    assert (comes.choosing, comes.reasoning) == pytest.approx((0.42, 0.0))
    goes = decompose({"a": (0.5, 0.2), "b": (0.5, 0.9)}, {"a": (0.0, None), "b": (1.0, 0.9)})
    assert (goes.choosing, goes.reasoning) == pytest.approx((0.35, 0.0))


def test_mean_sd():
    assert mean_sd([1.0, 2.0, 4.0]) == pytest.approx(
        (7 / 3, math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    )
    mean, deviation = mean_sd([0.5])
    assert mean == 0.5 and math.isnan(deviation)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(float("nan"), 2),
        lambda: wilson(1, 2, 1.0),
        lambda: mean_with_interval([]),
        lambda: mean_with_interval([[1.0], []]),
        lambda: mean_with_interval([[2.0], [0.0]]),
        lambda: pass_at_k(4, 5, 1),
        lambda: pass_at_k(4, -1, 1),
        lambda: pass_at_k(4, 2, 0),
        lambda: pass_at_k(4, 2, 5),
        lambda: majority(["a"], []),
        lambda: mcnemar_exact(-1, 2),
        lambda: paired([], []),
        lambda: paired([[True]], [[True], [False]]),
        lambda: paired([[True]], [[]]),
        lambda: decompose({"a": (1.0, None)}, {"a": (1.0, 0.5)}),
        lambda: decompose({"a": (1.0, 0.5)}, {"a": (1.0, None)}),
        lambda: mean_sd([]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call):
    with pytest.raises(ValueError) as refused:
        call()
    assert "\n" not in str(refused.value) and ":" in str(refused.value)


def test_problems_more_alike_than_chance_are_worth_no_more_than_their_samples():
    assert mean_with_interval([[1.0, 0.0, 1.0, 0.0]] * 3 + [[1.0, 0.0, 0.0, 0.0]]).n_effective == 16


def test_the_level_reaches_the_interval():
    interval = mean_with_interval([[1.0], [1.0], [0.0]], level=0.8)
    assert (interval.low, interval.high) == pytest.approx(wilson(2, 3, 0.8))


def test_problems_that_do_not_differ_cost_no_exactness():
    a, b = [[False, False]] * 40, [[True, False]] * 3 + [[False, False]] * 37
    assert (paired(a, b).p, paired(a, b).test) == (0.25, "sign flip, exact")


def test_many_discordant_problems_are_counted_exactly_and_quickly():
    began = time.perf_counter()
    p = mcnemar_exact(9_800, 10_200)
    assert p == pytest.approx(
        2 * NormalDist().cdf(-(10_200 - 10_000 - 0.5) / math.sqrt(5_000)), rel=1e-3
    )
    assert time.perf_counter() - began < 5
