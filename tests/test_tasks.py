"""The registry of tasks, countdown, and the parser behind its verifier."""

import itertools
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.errors import DataError, RecipeError
from whet.tasks import load, names
from whet.tasks.countdown import Countdown, canonical, read
from whet.tasks.expression import Inexact, Malformed, Reach, at_random, parse
from whet.tasks.split import is_test

HEAVY = (
    "torch",
    "transformers",
    "reasoning_gym",
    "math_verify",
    "sympy",
    "pyarrow",
    "huggingface_hub",
)


def test_every_name_is_described_and_listing_loads_nothing_heavy():
    assert {"chain", "countdown", "files", "gym:NAME"} <= {name for name, about in names() if about}
    script = f"import sys, whet.tasks; whet.tasks.names(); print([m for m in {HEAVY} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("countdwn", {}, "unknown task 'countdwn'; did you mean 'countdown'"),
        ("gym:", {}, "unknown task 'gym:'"),
        ("chain:3", {}, "unknown task 'chain:3'"),
        ("chain", {"operation": 3}, "unknown option 'operation'; did you mean 'operations'"),
        ("chain", {"operations": "6"}, 'operations = "6"; it must be a whole number'),
        ("countdown", {"numbers": True}, "numbers = true; it must be a whole number"),
        ("countdown", {"modes": []}, "unknown option 'modes'"),
        ("countdown", {"use_all": 1}, "use_all = 1; it must be true or false"),
        ("countdown", {"low": 9, "high": 8}, "high = 8; it must be at least low = 9"),
        ("files", {}, "the option 'path' is missing"),
        ("hf:a/b", {"path": "x"}, "leave it out"),
    ],
)
def test_a_wrong_name_or_option_is_one_clear_line(name: str, options: dict, message: str):
    with pytest.raises(RecipeError, match=message) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)


def test_is_test_takes_its_share_and_one_side_only():
    texts = [str(i) for i in range(20_000)]
    assert sum(is_test(t) for t in texts) / 20_000 == pytest.approx(0.1, abs=0.01)
    assert {t for t in texts if is_test(t, 0.1)} < {t for t in texts if is_test(t, 0.25)}


# ---- the parser


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("9-3-2", 4),
        ("16/4/2", 2),
        ("8/(4/2)", 4),
        (" 6 × 7 ÷ 2 ", 21),
    ],
)
def test_parse_values(text: str, value: int):
    assert parse(text).value == value


@pytest.mark.parametrize(
    "text",
    ["", "+", "1+", "(1", "1)", "()", "-1", "1 2", "2**3", "7//2", "1.5", "1e3", "x", "0x10", "1_0",
    "9999999999",
     "(" * 21 + "1" + ")" * 21, "1+" * 101 + "1", "__import__('os')", "٣+1", "1+1=2", "\0", "1\n;2",
     "(" * 5000],
)  # fmt: skip
def test_what_is_no_expression(text: str):
    with pytest.raises(Malformed):
        parse(text)


@pytest.mark.parametrize("text", ["7/2", "1/0", "1/(2-2)", "2*(1/2)"])
def test_inexact_divisions(text: str):
    with pytest.raises(Inexact):
        parse(text)


@given(st.text(alphabet="0123456789+-*/() ", max_size=40))
@settings(max_examples=300, deadline=None)
def test_parse_agrees_with_python_or_refuses(text: str):
    try:
        parsed = parse(text)
    except (Malformed, Inexact):
        return
    digits = iter(parsed.numbers)
    exact = "".join(f"Fraction({next(digits)})" if t.isdecimal() else t for t in _tokens(text))
    assert parsed.value == eval(exact, {"Fraction": Fraction})


def _tokens(text: str) -> list[str]:
    return [
        "".join(run)
        for _, run in itertools.groupby(text, key=lambda c: c if not c.isdecimal() else "0")
    ]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers())
@settings(max_examples=200, deadline=None)
def test_written_expressions_read_back(numbers: list[int], seed: int):
    tree = at_random(numbers, random.Random(seed))
    parsed = parse(tree.text)
    assert parsed.value == tree.value and sorted(parsed.numbers) == sorted(numbers)


def test_reach_finds_exactly_what_can_be_made():
    numbers = (2, 3, 8)
    rng = random.Random(0)
    by_trying = {at_random(numbers, rng).value for _ in range(20_000)}
    reach = Reach(numbers)
    assert reach.values[reach.everything] == by_trying
    for value in by_trying:
        parsed = parse(reach.write(value, rng).text)
        assert parsed.value == value and sorted(parsed.numbers) == [2, 3, 8]


# ---- countdown


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_all": False},
        {"numbers": 2, "high": 12},
        {"numbers": 4, "high": 25},
        {"numbers": 5, "use_all": False},
    ],
    ids=str,
)
def test_countdown_splits_are_disjoint_and_solvable(options: dict):
    task = Countdown(**options)
    train, test = ({p.id: p for p in task.problems(split, 15, 3)} for split in ("train", "test"))
    assert all(is_test(p.question) for p in test.values()) and not any(
        is_test(p.question) for p in train.values()
    )
    for problem in train.values():
        numbers, target = read(problem.question)
        assert problem.id == f"countdown:{canonical(numbers, target)}"
        assert len(numbers) == task.numbers and 1 <= target <= task.max_target
        assert all(task.low <= n <= task.high for n in numbers)
    pairs = task.corpus({"direct": 0.5, "search": 0.5}, 60, 3)
    assert all(s.correct for s in task.score([p for p, _ in pairs], [text for _, text in pairs]))
    assert not {p.id for p, _ in pairs} & test.keys()


def test_countdown_lists_every_problem_once():
    task = Countdown()
    problems = [p for s in ("train", "test") for p in task.problems(s, task.size(s) or 0, 0)]
    assert len({p.id for p in problems}) == len(problems) == 16_292
    with pytest.raises(DataError, match="but there are only"):
        task.problems("test", 2000, 0)


def test_countdown_drawn_pools_end_in_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("whet.tasks.countdown.LISTED", 0)
    monkeypatch.setattr("whet.tasks.split.PATIENCE", 2000)
    task = Countdown(numbers=2, high=4)
    assert task.size("train") is None
    with pytest.raises(DataError, match="1000 asked for, but only"):
        task.problems("train", 1000, 0)


@pytest.mark.parametrize(
    ("text", "status", "mode"),
    [
        ("<think></think>3*5+7", "scored", "direct"),
        ("<think></think> 7 + 5*3 ", "scored", "direct"),
        ("</think>3*5+7", "scored", "direct"),
        ("<think>\n</think>\n<answer>3*5+7</answer>", "scored", "direct"),
        ("<think>3+5+7=15≠22;3*5+7=22</think>3*5+7", "scored", "search"),
        ("<think>3+5+7=99≠22</think>3*5+7", "scored", "search"),
        ("<think>let me see</think>3*5+7", "scored", "other"),
        ("<think></think>3+5+7", "wrong", "direct"),
        ("<think></think>22", "wrong", "direct"),
        ("<think></think>3*7+1", "wrong", "direct"),
        ("<think></think>5+7+5+5", "wrong", "direct"),
        ("<think></think>3*5+7+3-3", "wrong", "direct"),
        ("<think></think>3/5*7", "wrong", "direct"),
        ("<think></think>3*5+7=22", "unparsed", "direct"),
        ("<think></think>9**9**9**9", "unparsed", "direct"),
        ("<think></think>__import__('os').system('true')", "unparsed", "direct"),
        ("<think></think>", "unparsed", "direct"),
        ("<think>3*5+7=22", "unparsed", "other"),
        ("<think></think>3*5+7</think>3*5+7", "unparsed", "other"),
        ("3*5+7", "unparsed", "other"),
    ],
)
def test_countdown_verdict_and_mode(text: str, status: str, mode: str):
    task = Countdown()
    problem = task.problem("3,5,7:22")
    (score,) = task.score([problem], [text])
    assert (score.status, score.value, task.mode(problem, text)) == (
        status,
        float(status == "scored"),
        mode,
    )


def test_at_most_once_is_an_option():
    text = "<think></think>3*5"
    for use_all, right in ((True, False), (False, True)):
        task = Countdown(use_all=use_all)
        assert task.score([task.problem("3,5,7:15")], [text])[0].correct is right
    assert all(
        p.answer not in p.question.split(":")[0].split(",")
        for p in Countdown(use_all=False).problems("test", 300, 0)
    )


def test_countdown_corpus():
    task = Countdown(attempts=3)
    pairs = task.corpus({"direct": 0.25, "search": 0.75}, 2000, 1)
    assert pairs == Countdown(attempts=3).corpus({"direct": 0.25, "search": 0.75}, 2000, 1)
    shares = Counter(task.mode(p, text) for p, text in pairs)
    assert (
        shares["search"] / 2000 == pytest.approx(0.75, abs=0.04)
        and shares["direct"] + shares["search"] == 2000
    )
    lengths = Counter(text.count("≠") for p, text in pairs if task.mode(p, text) == "search")
    assert set(lengths) == {0, 1, 2, 3}
    assert set().union(*(p.question + text for p, text in pairs)) - set("<think></think>") <= set(
        task.alphabet()
    )
    for problem, text in pairs:
        for attempt in filter(
            None, text.removeprefix("<think>").partition("</think>")[0].split(";")
        ):
            expression, _, claim = attempt.partition("=")
            value, missed, target = claim.partition("≠")
            assert parse(expression).value == int(value)
            assert (value != target) if missed else (value == problem.answer)
