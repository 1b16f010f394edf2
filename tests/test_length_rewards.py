"""Rewards for length against hand-worked numbers, and the task that asks for a length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import RecipeError, RewardError
from whet.rewards import length as rewards
from whet.rewards.length import BudgetError, Cosine, KimiLength, LcpoExact, LcpoMax, Overlong
from whet.tasks.budget import Budgeted, budgets, checked, tokens
from whet.tasks.chain import Chain
from whet.tasks.countdown import Countdown
from whet.types import Finish, Problem, Sample, Score

RIGHT, WRONG, UNPARSED = Score(1.0), Score(0.0, "wrong"), Score(0.0, "unparsed")


def problem(name: str = "a", **meta: Any) -> Problem:
    return Problem(name, ({"role": "user", "content": "?"},), "1", "t", meta)


def sample(length: int, version: int = 0, finish: Finish = "stop") -> Sample:
    """`length` chosen tokens after a prompt of 3; its text says nothing about its length."""
    mask = np.array([False] * 3 + [True] * length)
    return Sample(
        np.zeros(3 + length, np.int64),
        mask,
        np.where(mask, -0.1, 0).astype(np.float32),
        "x",
        finish,
        version,
    )


def paid(
    reward: Any,
    names: Sequence[str],
    lengths: Sequence[int],
    verdicts: Sequence[Score],
    version: int = 0,
) -> list[float]:
    drawn = [sample(n, version) for n in lengths]
    return [
        s.value
        for s in reward.score_given_verdicts(
            [problem(n) for n in names], ["x"] * len(drawn), drawn, verdicts
        )
    ]


def test_kimi_pays_within_each_group() -> None:
    got = paid(
        KimiLength(),
        "abababab",
        [10, 7, 15, 7, 20, 7, 30, 7],
        [RIGHT, RIGHT, RIGHT, WRONG, WRONG, RIGHT, UNPARSED, RIGHT],
    )
    assert got == [0.5, 0, 0.25, 0, 0.0, 0, -0.5, 0]
    assert paid(KimiLength(), "aa", [10, 20], [WRONG, RIGHT]) == [
        0.0,
        -0.5,
    ]  # short and wrong is not paid
    assert paid(KimiLength(), "ab", [10, 20], [RIGHT, RIGHT]) == [0.0, 0.0]  # two groups of one


def test_kimi_leaves_failed_verifiers_out_of_the_group() -> None:
    reward = KimiLength()
    failed = Score(0.0, "timeout")
    scores = reward.score_given_verdicts(
        [problem()] * 3, ["x"] * 3, [sample(n) for n in (10, 20, 90)], [RIGHT, RIGHT, failed]
    )
    assert [s.value for s in scores] == [0.5, -0.5, 0.0]
    assert [s.usable for s in scores] == [True, True, False]


def test_kimi_warms_up_by_the_policys_updates() -> None:
    for version, first in ((0, 0.0), (4, 0.0), (5, 0.5), (60, 0.5)):
        assert paid(KimiLength(warmup=5), "aa", [10, 20], [RIGHT, WRONG], version)[0] == first


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=12))
def test_kimi_is_bounded_and_never_pays_wrong_answers(rows: list[tuple[int, bool]]) -> None:
    values = rewards.kimi([n for n, _ in rows], [ok for _, ok in rows])
    assert all(-0.5 <= v <= (0.5 if ok else 0.0) for v, (_, ok) in zip(values, rows, strict=True))


def test_lcpo_exact_pays_by_distance_alone() -> None:
    drawn = [sample(n) for n in (80, 100, 130)]
    scores = LcpoExact(alpha=0.01).score([problem(budget=100)] * 3, ["x"] * 3, drawn)
    assert [s.value for s in scores] == pytest.approx([-0.2, 0.0, -0.3], abs=1e-12)
    assert [
        s.value for s in BudgetError().score([problem(budget=100)] * 3, ["x"] * 3, drawn)
    ] == pytest.approx([0.2, 0, 0.3])


def test_lcpo_max_is_the_verdict_times_what_is_left() -> None:
    drawn = [sample(n) for n in (50, 100, 140, 160, 50)]
    scores = LcpoMax(alpha=0.01, delta=0.5).score_given_verdicts(
        [problem(budget=100)] * 5, ["x"] * 5, drawn, [RIGHT, RIGHT, RIGHT, RIGHT, WRONG]
    )
    assert [s.value for s in scores] == pytest.approx([1.0, 0.5, 0.1, 0.0, 0.0], abs=1e-12)


def test_overlong_is_dapos_three_pieces() -> None:
    lengths = [10, 80, 85, 100, 120]
    got = [
        s.value
        for s in Overlong(max_tokens=100, cache=20).score(
            [problem()] * 5, ["x"] * 5, [sample(n) for n in lengths]
        )
    ]
    assert got == pytest.approx([0, 0, -0.25, -1, -1], abs=1e-12)
    assert Overlong(max_tokens=20480).soft == 4096


def test_cosine_is_the_original_not_open_rs() -> None:
    reward = Cosine(max_tokens=100)
    assert paid(reward, "aaa", [1, 50, 99], [RIGHT] * 3) == pytest.approx([2.0, 1.5, 1.0], abs=1e-3)
    short, middle, long = paid(reward, "aaa", [1, 50, 99], [WRONG] * 3)
    assert short < middle < long < 0 and middle == pytest.approx(-5.0)
    assert rewards.cosine(150, 100, 2.0, 1.0) == pytest.approx(1.0)  # it does not turn back up
    assert paid(reward, "aa", [100, 140], [RIGHT, WRONG]) == [-10.0, -10.0]
    cut = reward.score_given_verdicts([problem()], ["x"], [sample(30, finish="length")], [RIGHT])
    assert cut[0].value == -10.0
    assert paid(
        Cosine(max_tokens=100, right=[0, 4], wrong=[8, 2], exceeded=-3),
        "aaa",
        [50, 50, 100],
        [RIGHT, WRONG, WRONG],
    ) == pytest.approx([2, 5, -3])


def test_lengths_are_tokens_and_characters_only_without_samples() -> None:
    scores = Overlong(max_tokens=10, cache=10).score([problem()], ["x" * 5])
    assert scores[0].value == -0.5
    assert Overlong(max_tokens=10, cache=10).score([problem()], ["x" * 5], [sample(2)])[
        0
    ].value == pytest.approx(-0.2)


@pytest.mark.parametrize(
    "reward", [KimiLength(), LcpoMax(), Cosine(max_tokens=10)], ids=lambda r: r.owner
)
def test_what_needs_a_verdict_refuses_without(reward: Any) -> None:
    with pytest.raises(RewardError, match="verifier's verdict: add"):
        reward.score([problem()], ["x"])
    scores = reward.score_given_verdicts([problem(budget=5)], ["x"], None, [Score(0.0, "error")])
    assert [s.status for s in scores] == ["error"]
    with pytest.raises(RewardError, match="2 verdicts for 1 responses"):
        reward.score_given_verdicts([problem(budget=5)], ["x"], None, [RIGHT, RIGHT])


@pytest.mark.parametrize("meta", [{}, {"budget": 0}, {"budget": True}, {"budget": "7"}])
@pytest.mark.parametrize("reward", [LcpoExact(), BudgetError()], ids=lambda r: r.owner)
def test_a_problem_without_a_budget_names_the_cure(reward: Any, meta: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=r"\[task\] budget = \{ min"):
        reward.score([problem(**meta)], ["x"])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (KimiLength, {"warmup": -1}, "warmup = -1; it must be at least 0"),
        (KimiLength, {"warmup": True}, "warmup = true; it must be a whole number"),
        (LcpoExact, {"alpha": 0}, "alpha = 0; it must be above 0"),
        (LcpoMax, {"delta": float("nan")}, "delta = NaN; it must be a finite number"),
        (Overlong, {}, "the option 'max_tokens' is missing"),
        (Overlong, {"max_tokens": 0}, "max_tokens = 0; it must be at least 1"),
        (Overlong, {"max_tokens": 10, "cache": 11}, "cache = 11 is more than max_tokens"),
        (Cosine, {"max_tokens": 10, "right": [1]}, "right = [1]; it needs at least 2"),
        (Cosine, {"max_tokens": 10, "wrong": [1, "2"]}, "wrong.1 = \"2\"; it must be a number"),
        (Cosine, {"max_tokens": 1.5}, "max_tokens = 1.5; it must be a whole number"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError) as error:
        kind(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def asked(**options: Any) -> Budgeted:
    return Budgeted(Chain(operations=3), {"min": 24, "max": 66, **options})


def test_a_budget_is_asked_for_in_words_and_in_meta() -> None:
    task = asked()
    drawn = task.problems("train", 300, 1)
    for p in drawn:
        assert p.question.endswith(f"= Think for {p.meta['budget']} tokens.")
        assert 24 <= p.meta["budget"] <= 66
    assert drawn == task.problems("train", 300, 1)
    plain = Chain(operations=3).problems("train", 300, 1)
    assert [p.question.partition(" ")[0] for p in drawn] == [p.question for p in plain]
    assert len({p.meta["budget"] for p in drawn}) > 25
    again = Budgeted(
        Chain(operations=1), {"min": 24, "max": 66}
    )  # few problems, so that epochs repeat them
    first, second = (
        {p.question.partition(" ")[0]: p.id for p in again.problems("train", 250, s)}
        for s in (1, 2)
    )
    assert 0.1 < np.mean([first[q] == second[q] for q in first.keys() & second.keys()]) + 0.1 < 0.3


def test_budgets_of_the_test_split_are_never_asked_for_in_training() -> None:
    task = asked()
    train = {p.meta["budget"] for seed in range(5) for p in task.problems("train", 200, seed)}
    train |= {p.meta["budget"] for p, _ in task.corpus({"careful": 1.0}, 500, 3)}
    test = {p.meta["budget"] for p in task.problems("test", 80, 1)}
    assert test and not train & test
    assert budgets(512, 512) == {"train": [512], "test": [512]}
    whole = budgets(10, 40)
    assert sorted(whole["train"] + whole["test"]) == list(range(10, 41))


@pytest.mark.parametrize("inner", [Chain(operations=3), Countdown()], ids=lambda t: t.name)
def test_the_task_itself_judges_as_if_no_length_were_asked_for(inner: Any) -> None:
    task = Budgeted(inner, {"min": 30, "max": 90, "checks": 4})
    mode = inner.modes[-1]
    pairs = task.corpus({mode: 1.0}, 60, 2)
    assert [s.value for s in task.score([p for p, _ in pairs], [r for _, r in pairs])] == [1.0] * 60
    assert {task.mode(p, r) for p, r in pairs} == {mode}
    letters = set(task.alphabet())
    assert all(set(p.question) <= letters for p, _ in pairs)
    assert task.size("test") == inner.size("test")


def relation(heeded: float) -> float:
    pairs = asked(checks=8, heeded=heeded).corpus({"careful": 1.0}, 600, 5)
    return float(
        np.corrcoef([p.meta["budget"] for p, _ in pairs], [tokens(r) for _, r in pairs])[0, 1]
    )


def test_the_corpus_heeds_the_budget_as_often_as_it_says() -> None:
    assert abs(relation(0.0)) < 0.1
    assert 0.1 < relation(0.3) < 0.6
    assert relation(1.0) > 0.95
    assert checked("<think></think>7", 3) == "<think></think>7" and checked("7", 3) == "7"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mni": 3}, "unknown key 'mni'; did you mean 'min'?"),
        ({"min": 70}, "min = 70 is above max = 66"),
        ({"max": 2.5}, "max = 2.5; it must be a whole number"),
        ({"checks": -1}, "checks = -1"),
        ({"heeded": 2}, "heeded = 2; it must be a share"),
        ({"ask": "Think!"}, "it must say {budget} once"),
    ],
)
def test_a_bad_budget_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        asked(**options)
    assert message in str(error.value) and "\n" not in str(error.value)
