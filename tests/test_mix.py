"""Several tasks as one: who poses which problem, and who judges it."""

import itertools
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from whet import config
from whet.errors import DataError, RecipeError
from whet.pipeline.setup import stage_task
from whet.preflight.check import responses
from whet.rewards import combined
from whet.rollout.rollout import endless
from whet.tasks import load
from whet.tasks.mix import Mix, served, shares
from whet.types import Problem, Ranker

CHAIN: dict[str, Any] = {"name": "chain", "operations": 3}
TASTE: dict[str, Any] = {"name": "taste"}


def mixed(*parts: dict[str, Any]) -> Mix:
    task = load("mix", parts=list(parts or (CHAIN | {"weight": 3}, TASTE | {"weight": 1.0})))
    assert isinstance(task, Mix)
    return task


def test_problems_come_by_weight_mixed_and_the_same_for_a_seed():
    task = mixed()
    problems = task.problems("train", 400, 5)
    assert problems == mixed().problems("train", 400, 5) != task.problems("train", 400, 6)
    assert Counter(p.task for p in problems) == {"chain": 300, "taste": 100}
    assert 10 < sum(p.task == "taste" for p in problems[:100]) < 45  # not one after the other
    assert len({p.id for p in problems}) == 400
    assert not {p.id for p in problems} & {p.id for p in task.problems("test", 100, 5)}
    own = {p.id for p in load("taste").problems("train", 100, 5)}
    assert {
        p.id for p in problems if p.task == "taste"
    } == own  # what the task alone would have posed


def test_each_problem_is_judged_by_the_task_that_posed_it():
    task = mixed(CHAIN, {"name": "knights", "people": 2}, TASTE)
    problems = task.problems("train", 60, 1)
    texts = [
        f"<think></think>{p.answer}" if p.task == "chain" else p.answer or "" for p in problems
    ]
    for problem, text, score in zip(problems, texts, task.score(problems, texts), strict=True):
        options = {"chain": CHAIN, "knights": {"name": "knights", "people": 2}, "taste": TASTE}[
            problem.task
        ]
        alone = load(**options)
        own = alone.score([problem], [text])[0]
        assert (score.value, score.status) == (own.value, own.status)
        assert score.value == (0.5 if problem.task == "taste" else 1.0)
        assert score.parts == {"accuracy": own.value, **own.parts}
    stray = Problem("x", ({"role": "user", "content": "1+1="},), "2", "chian")
    for ask in (lambda: task.score([stray], ["2"]), lambda: task.mode(stray, "2")):
        with pytest.raises(DataError, match="is no part; did you mean 'chain'"):
            ask()


def test_modes_keep_their_names_where_one_part_has_them():
    task = mixed(CHAIN, {"name": "knights", "people": 2, "terse": True}, TASTE)
    assert task.modes == ("chain_direct", "coarse", "careful", "knights_direct", "cases")
    pairs = task.corpus({"chain_direct": 1.0, "careful": 1.0, "cases": 1.0}, 300, 2)
    assert {(p.task, task.mode(p, text)) for p, text in pairs} == {
        ("chain", "chain_direct"),
        ("chain", "careful"),
        ("knights", "cases"),
        ("taste", "other"),
    }
    assert Counter(p.task for p, _ in pairs) == {"chain": 100, "knights": 100, "taste": 100}
    assert pairs == task.corpus({"chain_direct": 1.0, "careful": 1.0, "cases": 1.0}, 300, 2)
    assert all(
        set(p.question + text) <= set(task.alphabet()) | set("<think>/") for p, text in pairs
    )
    for mix, message in (
        ({"careful": 1.0}, "share of each mode of knights"),
        ({"direct": 1.0}, "unknown mode 'direct'"),
    ):
        with pytest.raises(RecipeError, match=message):
            task.corpus(mix, 9, 1)
    with pytest.raises(RecipeError, match="its parts tell none apart"):
        mixed(TASTE).corpus({"careful": 1.0}, 9, 1)


def test_a_check_tries_the_reward_on_what_every_part_writes():
    task = mixed(CHAIN, {"name": "knights", "people": 2, "terse": True}, TASTE)
    pairs = responses(SimpleNamespace(task=task, seed=1), [])  # type: ignore[arg-type]
    assert {p.task for p, _ in pairs} == set(task.tasks)
    scores = task.score([p for p, _ in pairs], [text for _, text in pairs])
    assert all(s.correct for (p, _), s in zip(pairs, scores, strict=True) if p.task != "taste")


def test_a_task_twice_needs_a_name_and_never_shares_an_id():
    with pytest.raises(RecipeError, match="two parts are named 'chain'"):
        mixed(CHAIN, CHAIN | {"operations": 4})
    task = mixed(CHAIN, CHAIN | {"as": "spoken", "words": {"en": 1.0}})
    problems = task.problems("train", 40, 1)
    assert len({p.id for p in problems}) == 40 and {p.task for p in problems} == {"chain", "spoken"}
    assert all(p.id.startswith("spoken/chain:") == (p.task == "spoken") for p in problems)
    assert "spoken_careful" in task.modes and "chain_careful" in task.modes
    spoken = "<think>1plus1=2</think>2"
    assert {task.mode(p, spoken) for p in problems} == {"other", "spoken_careful"}


def test_a_mix_is_as_large_as_its_first_part_to_run_out():
    assert mixed(CHAIN).size("train") is None
    task = mixed(CHAIN | {"weight": 3}, TASTE)
    for split in ("train", "test"):
        size, few = task.size(split), load("taste").size(split)
        assert size is not None and few is not None and 4 * few - 4 < size <= 4 * few + 4
        assert Counter(p.task for p in task.problems(split, size, 1))["taste"] == few
        with pytest.raises(DataError, match="task taste"):
            task.problems(split, size + 4, 1)
    small = mixed(TASTE, {"name": "chain", "operations": 1, "weight": 0.25})
    stream = endless(small, "train", 1)
    drawn = [next(stream) for _ in range(3 * (small.size("train") or 0))]
    assert max(Counter(p.id for p in drawn if p.task == "chain").values()) <= 3


def test_shares_never_take_a_problem_back():
    for weights in ([0.5, 0.3, 0.2], [1, 1, 1], [7, 0.1], [1e-3, 1]):
        counts = [shares(weights, n) for n in range(200)]
        assert all(sum(c) == n for n, c in enumerate(counts))
        assert all(a <= b for c, d in itertools.pairwise(counts) for a, b in zip(c, d, strict=True))
        assert all(
            abs(c - w / sum(weights) * 199) <= 1 for c, w in zip(counts[-1], weights, strict=True)
        )
    assert shares([0.9, 0.1], 6) == [5, 1]  # a tenth is served once it is half a problem behind
    assert served([1, 1], [0, 5]) == 0


def test_it_ranks_what_its_parts_can_rank():
    task, rng = mixed(), random.Random(1)
    assert isinstance(task, Ranker) and not isinstance(mixed(CHAIN), Ranker)
    by_task = {p.task: p for p in task.problems("train", 40, 1)}
    assert task.rank(by_task["chain"], ["1", "2"], rng) == []
    assert sorted(task.rank(by_task["taste"], ["ab", "cd", "ef"], rng)) == [0, 1, 2]


def test_a_budget_goes_over_a_mix():
    task = load("mix", parts=[CHAIN, TASTE], budget={"min": 10, "max": 20})
    reward = combined([("task", 1.0, {"only": "chain"}), ("task", 0.0, {"only": "taste"})], task)
    problems = task.problems("train", 10, 1)
    texts = [f"<think></think>{p.answer}" for p in problems]
    assert [s.correct for s in reward.score(problems, texts)] == [
        p.task == "chain" for p in problems
    ]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no parts"),
        (["chain"], 'parts.0 = "chain"; it must be a table'),
        ([{"weight": 1.0}], "the option 'parts.0.name' is missing"),
        ([{"name": "chian"}], "did you mean 'chain'"),
        ([CHAIN | {"operatons": 3}], "did you mean 'operations'"),
        ([CHAIN | {"weight": 0}], "every part has weight 0"),
        ([CHAIN | {"weight": -1}], "weight = -1; it must be between 0 and 1000000000"),
        ([CHAIN | {"weight": float("nan")}], "weight = NaN; it must be a finite number"),
        ([CHAIN | {"weight": True}], "weight = true; it must be a number"),
        ([CHAIN | {"as": ""}], 'as = ""; it needs at least 1 characters'),
        ([{"name": "mix", "parts": [CHAIN]}], "a mix within a mix"),
        ("chain", 'parts = "chain"; it must be a list'),
    ],
)
def test_parts_that_cannot_be_mixed(parts: object, message: str):
    with pytest.raises(RecipeError) as error:
        load("mix", parts=parts)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_stage_that_names_a_part_asks_that_part_only():
    task = Mix(parts=[CHAIN, CHAIN | {"as": "other", "weight": 0}])
    assert {p.task for p in task.problems("train", 20, 0)} == {"chain"} and task.posing == (
        "chain",
    )
    stage = config.RL(name="rl", kind="rl", steps=1, only="other")
    assert {p.task for p in stage_task(task, stage).problems("train", 20, 0)} == {"other"}
    assert stage_task(task, config.RL(name="rl", kind="rl", steps=1)) is task
    with pytest.raises(RecipeError, match="only = 'othr' is no part; did you mean 'other'"):
        stage_task(task, config.RL(name="rl", kind="rl", steps=1, only="othr"))
    with pytest.raises(RecipeError, match="task chain is no mix"):
        stage_task(task.members["chain"], stage)
