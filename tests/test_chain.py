"""The chain task: disjoint splits, the same problems in every process, verdicts, modes, corpus."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from whet.errors import DataError, RecipeError
from whet.tasks import load
from whet.tasks.chain import Chain, evaluate, scratchpad
from whet.tasks.split import is_test

SCRIPT = """
import json
from whet.tasks import load
chain, countdown = load("chain"), load("countdown")
ids = [p.id for t in (chain, countdown) for s in ("train", "test") for p in t.problems(s, 50, 7)]
texts = [r for t, m in ((chain, "careful"), (countdown, "search")) for _, r in t.corpus({m: 1.0}, 20, 7)]
print(json.dumps([ids, texts]))
"""


def elsewhere(hash_seed: str) -> list[list[str]]:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, check=True
        ).stdout
    )


def test_same_seed_same_problems_in_any_process():
    first, second = elsewhere("1"), elsewhere("2")
    assert first == second
    assert first[0][:50] == [p.id for p in load("chain").problems("train", 50, 7)]


def test_other_seeds_give_other_problems():
    assert {p.id for p in Chain().problems("train", 50, 1)} != {
        p.id for p in Chain().problems("train", 50, 2)
    }


@pytest.mark.parametrize("operations", [1, 2, 3, 6])
def test_train_and_test_never_share(operations: int):
    task = Chain(operations=operations)
    train = {
        p.id
        for seed in range(3)
        for p in task.problems("train", min(2000, task.size("train") or 2000), seed)
    }
    test = {
        p.id
        for seed in range(3)
        for p in task.problems("test", min(400, task.size("test") or 400), seed)
    }
    assert train and test and not train & test
    assert all(is_test(i.removeprefix("chain:")) for i in test) and not any(
        is_test(i.removeprefix("chain:")) for i in train
    )


@pytest.mark.parametrize("operations", [1, 2])
def test_small_pools_are_known_and_can_be_had_whole(operations: int):
    task = Chain(operations=operations)
    sizes = task.size("train"), task.size("test")
    assert sum(s or 0 for s in sizes) == 10 * 30**operations
    for split, size in zip(("train", "test"), sizes, strict=True):
        assert size is not None
        assert len({p.id for p in task.problems(split, size, 0)}) == size
        with pytest.raises(DataError, match=f"{size + 1} asked for, but there are only {size}"):
            task.problems(split, size + 1, 0)


def test_more_than_an_unlisted_pool_holds_ends_in_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("whet.tasks.base.is_test", lambda text: text.startswith("0+0"))
    monkeypatch.setattr("whet.tasks.split.PATIENCE", 200)
    assert Chain(operations=3).size("test") is None
    with pytest.raises(DataError, match=r"1000 asked for, but only \d+ were found; ask for fewer"):
        Chain(operations=3).problems("test", 1000, 0)


@pytest.mark.parametrize("operations", [0, 31])
def test_operations_out_of_range(operations: int):
    with pytest.raises(RecipeError, match="between 1 and 30"):
        Chain(operations=operations)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7", 7), ("3-5", 8), ("9*9", 1), ("2+3*4", 0), ("0-1-1-1", 7), ("8*0+9-9", 0)],
)
def test_evaluate_from_left_to_right(expression: str, value: int):
    assert evaluate(expression) == value


def test_scratchpads():
    assert scratchpad("2+3*4", 1) == "2+3=5;5*4=0"
    assert scratchpad("2+3*4-1", 2) == "2+3*4=0;0-1=9"


@pytest.mark.parametrize(
    ("text", "status", "mode"),
    [
        ("<think></think>9", "scored", "direct"),
        ("<think></think>8", "wrong", "direct"),
        ("<think>3+5=8;8*2=6;6-7=9</think>9", "scored", "careful"),
        ("<think>3+5=1;1*2=2;2-7=5</think>5", "wrong", "careful"),
        ("<think>3+5*2=6;6-7=9</think>9", "scored", "coarse"),
        ("<think>3+5*2-7=9</think>9", "scored", "other"),
        ("<think></think>", "unparsed", "other"),
        ("<think></think>99", "unparsed", "other"),
        ("<think></think>9 ", "unparsed", "other"),
        ("9", "unparsed", "other"),
        ("<think>3+5=8", "unparsed", "other"),
        ("<think></think><think></think>9", "unparsed", "other"),
        ("<think>__import__('os')</think>9", "unparsed", "other"),
        ("", "unparsed", "other"),
    ],
)
def test_verdict_and_mode(text: str, status: str, mode: str):
    task = Chain(operations=3)
    problem = task.problem("3+5*2-7")
    (score,) = task.score([problem], [text])
    assert (score.status, score.value, task.mode(problem, text)) == (
        status,
        float(status == "scored"),
        mode,
    )


def test_the_corpus_keeps_its_mix_and_is_right():
    task = Chain()
    mix = {"direct": 0.2, "coarse": 0.3, "careful": 0.5}
    pairs = task.corpus(mix, 3000, 1)
    shares = Counter(task.mode(p, text) for p, text in pairs)
    assert {mode: round(shares[mode] / 3000, 1) for mode in shares} == mix
    assert all(s.correct for s in task.score([p for p, _ in pairs], [text for _, text in pairs]))
    assert set().union(*(p.question + text for p, text in pairs)) - set("<think></think>") <= set(
        task.alphabet()
    )
    test = {p.id for p in task.problems("test", 1000, 0)}
    assert not test & {p.id for p, _ in pairs}


def test_a_corpus_larger_than_its_pool_repeats_every_problem_alike():
    task = Chain(operations=1)
    size = task.size("train") or 0
    ids = [p.id for p, _ in task.corpus({"direct": 1.0}, 2 * size + 5, 0)]
    counts = Counter(ids)
    assert set(counts.values()) == {2, 3} and len(counts) == size
    assert ids[:size] != ids[size : 2 * size]  # each pass in an order of its own


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"carefull": 1.0}, "unknown mode 'carefull'; did you mean 'careful'"),
        ({}, "needs the share of each mode"),
        ({"direct": 0.0}, "needs the share of each mode"),
        ({"direct": 2.0, "coarse": -1.0}, "needs the share of each mode"),
    ],
)
def test_a_mix_that_cannot_be(mix: dict[str, float], message: str):
    with pytest.raises(RecipeError, match=message):
        Chain().corpus(mix, 10, 0)
