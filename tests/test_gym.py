"""gym: tasks: reproducible, disjoint, scored by reasoning-gym in killable workers that execute
nothing a model wrote.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from whet.errors import DataError, RecipeError
from whet.sandbox.pool import Result
from whet.tasks import load
from whet.tasks.gym import PAID_FOR_JUNK, REFUSED, Gym, extract
from whet.types import Problem

SHORT = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


@pytest.fixture(scope="module")
def sums() -> Gym:
    return Gym(dataset="chain_sum", **SHORT)


def test_same_seed_same_questions_in_any_process(sums: Gym):
    script = f"""from whet.tasks import load
print([p.id for p in load('gym:chain_sum', **{SHORT}).problems('test', 40, 3)])"""
    out = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == f"{[p.id for p in sums.problems('test', 40, 3)]}\n"
    assert {p.id for p in sums.problems("test", 40, 3)} != {
        p.id for p in sums.problems("test", 40, 4)
    }


def test_questions_that_walk_through_sets_are_the_same_too():
    first, second = (Gym(dataset="isomorphic_strings").problems("train", 30, 1) for _ in range(2))
    assert first == second


def test_splits_share_no_question_and_repeat_none(sums: Gym):
    train = {p.question for seed in range(3) for p in sums.problems("train", 400, seed)}
    test = {p.question for seed in range(3) for p in sums.problems("test", 200, seed)}
    assert not train & test
    assert len({p.question for p in sums.problems("train", 400, 0)}) == 400


def test_neighbouring_seeds_share_few_questions():
    task = Gym(dataset="word_sorting")
    first, second = ({p.question for p in task.problems("train", 200, seed)} for seed in (1, 2))
    assert len(first & second) < 10  # reasoning-gym's own seeds s and s + 1 share all but one


def test_reference_answers_score_and_others_do_not(sums: Gym):
    problems = sums.problems("train", 30, 0)
    right = sums.score(
        problems, [f"<think>hm 0</think>\n<answer> {p.answer} </answer>" for p in problems]
    )
    assert all(s.correct and s.value == 1.0 and s.status == "scored" for s in right)
    wrong = sums.score(
        problems, [f"<think>{p.answer}</think>{int(p.answer or 0) + 1}" for p in problems]
    )
    assert not any(s.correct for s in wrong) and {s.status for s in wrong} == {"wrong"}
    empty = sums.score(problems[:3], ["", "<think>no end", "x" * 10_001])
    assert {(s.status, s.value, s.usable) for s in empty} == {("unparsed", 0.0, True)}
    assert sums.score([], []) == []


def test_partial_credit_is_a_value_never_an_accuracy(sums: Gym):
    problem = Problem("p", ({"role": "user", "content": "q"},), meta={"seed": 1, "index": 0})
    answer = sums._maker.map([sums._order("make", seed=1, count=1)])[0].value[0][2]
    (kept,) = sums.score([problem], [f"{answer} or 1234567"])
    assert (
        0 < kept.value < 0.99
        and kept.status == "wrong"
        and not kept.correct
        and kept.parts == {"accuracy": 0.0}
    )
    strict = Gym(dataset="chain_sum", partial=False, **SHORT)
    assert [s.value for s in strict.score([problem] * 2, [f"{answer} or 1234567", answer])] == [
        0.0,
        1.0,
    ]


def test_a_failing_scorer_is_no_silent_zero(sums: Gym, monkeypatch: pytest.MonkeyPatch):
    results = [
        Result("timeout"),
        Result("error", message="boom"),
        Result("ok", 0.995),
        Result("ok", 0.985),
    ]
    problems = sums.problems("train", 5, 0)
    monkeypatch.setattr(sums._scorer, "map", lambda orders: results)
    scores = sums.score(problems, ["1", "1", "<think>", "1", "1"])
    assert [s.status for s in scores] == ["timeout", "error", "unparsed", "scored", "wrong"]
    assert [s.usable for s in scores] == [False, False, True, True, True]
    assert [s.value for s in scores[3:]] == [0.995, 0.985] and not scores[4].correct


ATTACKS = (
    "__import__('pathlib').Path({!r}).touch()",
    "[__import__('pathlib').Path({!r}).touch()]",
    "(lambda: __import__('pathlib').Path({!r}).touch())()",
    "open({!r}, 'w')",
)


@pytest.mark.parametrize(
    "name", ["binary_matrix", "spiral_matrix", "n_queens", "countdown", "simple_integration"]
)
def test_no_scorer_executes_an_answer(name: str, tmp_path: Path):
    task = Gym(dataset=name)
    (problem,) = task.problems("train", 1, 0)
    texts = [attack.format(str(tmp_path / "executed")) for attack in ATTACKS]
    texts += ["9**9**9**9", "(" * 5000, "[" * 5000, "x" * 9999, "-" * 5000 + "1", "{" + "[" * 300]
    scores = task.score([problem] * len(texts), texts)
    assert not (tmp_path / "executed").exists()
    assert all(s.status in ("wrong", "unparsed") and s.value < 0.1 for s in scores)
    assert task.score([problem], [problem.answer or ""])[0].value == 1.0


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("prime_factorization", None, ["a", "2 × x", "[]"]),
        ("game_of_life", None, ["{}", '{"a": 1}', "x"]),
    ],
)
def test_junk_that_makes_a_scorer_raise_is_unparsed(name: str, right: None, wrong: list[str]):
    task = Gym(dataset=name)
    (problem,) = task.problems("train", 1, 0)
    assert task.score([problem], [problem.answer or ""])[0].value == 1.0
    assert {s.status for s in task.score([problem] * len(wrong), wrong)} == {"unparsed"}


def test_python_lists_still_get_their_partial_credit():
    task = Gym(dataset="spiral_matrix")
    (problem,) = task.problems("train", 1, 0)
    assert task.score([problem], [f"[{', '.join((problem.answer or '').split())}]"])[0].value == 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chainsum", {}, "no data set 'chainsum'; did you mean 'chain_sum'"),
        ("chain_sum", {"min_termz": 2}, "unknown option 'min_termz'; did you mean 'min_terms'"),
        ("chain_sum", {"seed": 2}, "unknown option 'seed'"),
        (
            "chain_sum",
            {"min_terms": 5, "max_terms": 3},
            r"refuses these options \(min_terms = 5, max_terms = 3\)",
        ),
        ("chain_sum", {"min_terms": "two"}, "refuses these options"),
        ("chain_sum", {"pool": 0}, "pool = 0; it must be at least 1"),
        ("chain_sum", {"pool": "9"}, 'pool = "9"; it must be a whole number'),
        ("chain_sum", {"dataset": "gcd"}, "leave it out"),
        ("futoshiki", {}, "320 ms a question; set pool"),
        *[
            (name, {}, reason)
            for name, reason in REFUSED.items()
            if name in ("game_of_life_halting", "puzzle24", "codeio")
        ],
        *[(name, {}, "set partial = false") for name in PAID_FOR_JUNK],
    ],
)
def test_what_is_refused_says_why(name: str, options: dict, message: str):
    with pytest.raises(RecipeError, match=message) as caught:
        load(f"gym:{name}", **options)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_runs_out():
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(
        DataError,
        match=r"1000 train questions asked for, but only \d+ were found; widen its options, or set pool",
    ):
        Gym(dataset="chain_sum", **tiny).problems("train", 1000, 0)
    with pytest.raises(
        DataError, match=r"1000 questions asked for, but only \d+ were found; lower pool"
    ):
        Gym(dataset="chain_sum", pool=1000, **tiny).size("train")
    task = Gym(dataset="chain_sum", pool=120, **tiny)
    sizes = task.size("train") or 0, task.size("test") or 0
    assert sum(sizes) == 120 and min(sizes) > 10
    assert {p.id for p in task.problems("train", sizes[0], 0)} == {
        p.id for p in task.problems("train", sizes[0], 1)
    }
    with pytest.raises(DataError, match="raise pool = 120"):
        task.problems("test", sizes[1] + 1, 0)
    assert len(task.corpus({}, 300, 0)) == 300


def test_corpus_and_alphabet_for_models_from_nothing(sums: Gym):
    pairs = sums.corpus({}, 50, 2)
    assert all(s.correct for s in sums.score([p for p, _ in pairs], [text for _, text in pairs]))
    assert set().union(*(p.question + (p.answer or "") for p, _ in pairs)) <= set(sums.alphabet())
    assert sums.alphabet() == sums.alphabet() == "".join(sorted(set(sums.alphabet())))
    with pytest.raises(RecipeError, match="leave mix out"):
        sums.corpus({"direct": 1.0}, 5, 0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think> 2 ", "2"),
        ("<think>1</think><answer>2</answer>", "2"),
        ("<answer>1</answer> no, <answer> 2\n3 </answer>.", "2\n3"),
        ("<think><answer>1</answer></think>2", "2"),
        ("<answer><answer>2</answer></answer>", "2"),
        ("<answer>2", "<answer>2"),
        ("just 2", "just 2"),
        ("<think>2", None),
        ("<think>2</think> ", None),
        ("<think>2</think><answer> </answer>", None),
        ("", None),
    ],
)
def test_extract(text: str, answer: str | None):
    assert extract(text) == answer
