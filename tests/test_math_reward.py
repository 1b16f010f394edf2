"""The mathematical verifier: extraction, exact numbers, and algebra in workers."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from whet.errors import DataError, RewardError
from whet.rewards import load
from whet.rewards.extract import final_answer
from whet.rewards.math.numbers import number
from whet.rewards.math.verifier import MathReward, beyond_bounds, quick
from whet.types import Problem, Score, Status


def problem(answer: str | None, name: str = "p") -> Problem:
    return Problem(name, ({"role": "user", "content": "?"},), answer)


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    reward = MathReward(seconds=8.0)  # of wall-clock: the machine may be busy
    yield reward
    reward.pool.close()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The sum is 12. So \\boxed{7}", "7"),
        ("\\boxed{7} or rather \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{3} and \\boxed{7", "3"),
        ("\\boxed{}, 7", None),
        ("\\boxed{ }", None),
        ("<answer> 7 </answer>", "7"),
        ("<answer>1</answer> <answer>7</answer> 9", "7"),
        ("<answer>\\boxed{7}</answer>", "7"),
        ("<answer></answer> 7", None),
        ("<answer>She needs 7 apples in all.</answer>", "7"),
        ("step 3\n#### 7", "7"),
        ("step 3\n#### 7\nThat took 5 steps", "7"),
        ("#### ", None),
        ("<think>6</think>7", "7"),
        ("<think>\\boxed{6}</think>", None),
        ("thinking 6 </think> so 7.", "7"),
        ("<think>it is 7", None),
        ("<think>6</think>7<think>8", None),
        ("The answer is 7. It took 3 steps.", "7"),
        ("The answer is: **7**.", "7"),
        ("Answer: 3 * 2 + 1 = 7 apples in total", "7"),
        ("the final answer is $\\frac{3}{4}$.", "\\frac{3}{4}"),
        ("The answer is \\(x^2\\), which is nice.", "x^2"),
        ("Final answer: 3 1/2", "3 1/2"),
        ("The answer is therefore 7.", "7"),
        ("The answer is <<3+4=7>>7.", "7"),
        ("9 answers * 2 points/answer = 18 points, so 7", "7"),
        ("The answer is sqrt 7.", "sqrt 7"),
        ("He pays $5 and she $7.50.", "$7.50"),
        ("it falls to -7", "-7"),
        ("so 10-7", "7"),
        ("so -$7", "-$7"),
        ("it is 1,234,567 in all", "1,234,567"),
        ("so 12, 7", "7"),
        ("hence x = \\frac{3}{4}.", "\\frac{3}{4}"),
        ("hence $x = \\frac{3}{4}$.", "\\frac{3}{4}"),
        ("about 50% of them", "50%"),
        ("", None),
        ("unknown", None),
        ("I cannot say.", None),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str | None) -> None:
    extracted = final_answer(text)
    assert (extracted and extracted.removeprefix("x = ")) == answer


def test_extraction_from_long_texts_is_quick() -> None:
    start = time.perf_counter()
    pieces = ["\\boxed{", "$", "answer is ", "1,", "{", "<think>", "\\(", "####", "- ", "1/",
        "\\frac", "a=", "**", "aaa bbb "]  # fmt: skip
    for piece in pieces:
        final_answer(piece * 60_000)
    assert time.perf_counter() - start < 5.0


PAIRS = [  # gold, answer, whether it is right
    ("1/2", r"\frac{1}{2}", True),
    ("1/2", "0.5", True),
    ("1/2", r"\dfrac12", True),
    ("1/3", "0.333333", False),
    ("1/3", r"\frac{2}{6}", True),
    (r"\frac{-1}{2}", r"-\frac{1}{2}", True),
    ("-1/2", "1/2", False),
    (r"1\frac{1}{2}", "1.5", True),
    ("3/2", "1 1/2", True),
    ("0.1", "0.10000000000000001", False),
    ("2^{10}", "1024", True),
    ("10", "10_2", False),
    ("1011_2", "1011_{2}", True),
    ("1011_2", "1011_3", False),
    (r"\sqrt{2}", "sqrt(2)", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sqrt{2}", "1.414", False),
    (r"\frac{1}{\sqrt 2}", r"\frac{\sqrt{2}}{2}", True),
    (r"2\pi", "2*pi", True),
    (r"2\pi", "6.28", False),
    (r"2\pi", "2π", True),
    (r"\{1,2,3\}", r"\{3,1,2\}", True),
    (r"\{1,2,3\}", r"\{1,2\}", False),
    ("1,2", "2, 1", True),
    ("1,2", "1", False),
    ("18", "18 or 19", False),
    ("18", "18, 19", False),
    (r"\{1,2\}", r"1 \text{ and } 2", True),
    (r"\pm 3", "3,-3", True),
    (r"\pm 3", "3", False),
    ("(3,4)", "(3, 4)", True),
    ("(3,4)", "(4,3)", False),
    ("[0, True)", "[0,1]", False),
    ("[0, True)", "[0, True)", True),
    (r"[0,\infty)", r"x \ge 0", True),
    (r"[0,\infty)", "[0, inf)", True),
    (r"x \geq 0", r"[0,\infty)", True),
    (r"x>0", "x>=0", False),
    (r"(-\infty, True)\cup(2,\infty)", "(-oo, True) U (2,oo)", True),
    (r"(1,2)", r"1<x<2", True),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", True),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", False),
    ("y=2x+1", "y = 1 + 2x", True),
    ("y=2x+1", "2x - y + 1 = 0", True),
    ("y=2x+1", "y=2x-1", False),
    ("5", "x=5", True),
    ("x=5", "5", True),
    ("x^2+2x+1", "(x+1)^2", True),
    ("x^2+2x+1", "(x+1)**2", True),
    ("x^2+2x+1", "x^2+2x", False),
    ("x^2-1", "(x-1)(x+1)", True),
    ("5", "5x", False),
    ("6", "2*3", True),
    ("120", "5!", True),
    ("8", "2^3", True),
    (r"50\%", "50", True),
    ("50", "50%", True),
    ("0.5", r"50\%", True),
    ("50%", "5", False),
    ("12.5%", r"\frac{1}{8}", True),
    ("5 m", "5 kg", False),
    ("5 m", "5 meters", True),
    ("5", "5 apples", True),
    (r"5\text{ cm}", "5", True),
    ("5", "5 thousand", False),
    ("5000", "5 thousand", True),
    (r"90^\circ", "90", True),
    ("90", r"90^\circ", True),
    ("$5", "5 cents", False),
    ("$5", "5 dollars", True),
    ("12 m^2", "12", True),
    ("1,234", "1234", True),
    ("1234", r"1{,}234", True),
    ("1234", "1,23", False),
    ("1500", r"1.5\times 10^3", True),
    ("1500", "1.5e3", True),
    ("1500", r"1.5 \cdot 10^{3}", True),
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\text{Evelyn}", "Martin", False),
    ("B", "(B)", True),
    ("B", "C", False),
    ("yes", "Yes", True),
    ("3+4i", "4i+3", True),
    ("3+4i", "3-4i", False),
    (r"\log_2 8", "3", True),
    (r"e^{2}", "e^2", True),
    (r"\infty", r"-\infty", False),
    (r"\frac{x+1}{2}", "x/2+1/2", True),
    ("-5", "5", False),
    ("0", "-0", True),
    ("7", "7.0", True),
    ("7", "7.", True),
    ("18", r"\boxed{\boxed{18}}", True),
    (r"\emptyset", r"\{\}", True),
    (r"\ln 2", r"\ln(2)", True),
    ("a+b", "b+a", True),
    ("ab", "ba", True),
    (r"\sin^2 x+\cos^2 x", "1", True),
]


def test_tricky_pairs(reward: MathReward) -> None:
    scores = reward.score(
        [problem(gold) for gold, _, _ in PAIRS],
        [f"So it is \\boxed{{{answer}}}." for _, answer, _ in PAIRS],
    )
    wanted = [(gold, answer, "scored" if right else "wrong") for gold, answer, right in PAIRS]
    assert [
        (gold, answer, s.status) for (gold, answer, _), s in zip(PAIRS, scores, strict=True)
    ] == wanted
    assert all(s.value == s.parts["accuracy"] == float(s.status == "scored") for s in scores)


def test_most_pairs_of_numbers_need_no_worker() -> None:
    for gold, answer, right in PAIRS:
        if number(gold) is not None and number(answer) is not None:
            assert quick(gold, answer) == ("scored" if right else "wrong")


COSTLY = [
    "9**9**9", "9^9^9", "9^{9^{9}}", "10^{999999}", "9**(9**9)", "99999!", "((9!)!)!",
    "(9^{999})^{999}", "(x+1)^{999}",
    "9" * 3000, "x+" * 3000, "(" * 300, "2^{2^{2^{2^{x}}}}", "\\binom{99999}{500}",
]  # fmt: skip


@pytest.mark.parametrize("answer", COSTLY)
def test_costly_answers_never_reach_the_algebra(answer: str) -> None:
    for gold in ("18", "x^2+1"):
        assert quick(gold, answer) in ("wrong", "unparsed")
    assert beyond_bounds(answer)


def test_ordinary_powers_are_within_bounds() -> None:
    for answer in (
        "2^{2016}",
        "(35/36)^{100}",
        "(x+1)^{12}",
        "e^{x^2}",
        "10!",
        "\\binom{10}{5}",
        "1-\\left(\\frac{5}{6}\\right)^{200}",
    ):
        assert not beyond_bounds(answer)


def test_hostile_text_is_neither_run_nor_paid(reward: MathReward, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    hostile = [
        f"__import__('os').system('touch {mark}')",
        f"\\input{{{mark}}}",
        "\ud800",
        "\x00",
        "\\frac{",
        "}{",
        "\\text{",
    ]
    scores = reward.score(
        [problem("x^2+1")] * len(hostile), [f"The answer is: {text}" for text in hostile]
    )
    assert not mark.exists()
    assert {s.status for s in scores} <= {"wrong", "unparsed"}


def test_what_cannot_be_judged_in_time_says_so_from_any_thread() -> None:
    reward, statuses = MathReward(processes=1, seconds=1.2), list[Status]()
    reward.pool.map([["x", "x"]])  # the imports
    slow = "(x+y+z)(x-y+z)^{99}(x+2y-z)^{99}"
    golds, answers = ["x^{3}", "\\sqrt{2}"], [slow, "\\sqrt{2}+0"]
    thread = threading.Thread(target=lambda: statuses.extend(reward.compare(golds, answers)))
    thread.start()
    thread.join()
    reward.pool.close()
    assert statuses == ["timeout", "scored"]


def test_a_failed_verifier_is_not_a_zero(
    reward: MathReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whet.sandbox.pool import Result

    monkeypatch.setattr(
        reward.pool, "map", lambda items: [Result("error", message="it died") for _ in items]
    )
    (score,) = reward.score([problem("x^2")], ["\\boxed{x\\cdot x}"])
    assert score == Score(0.0, "error", reason="no comparison with the problem's own answer 'x^2'")
    assert not reward.score([problem("x^2")], ["\\boxed{x\\cdot x}"])[0].usable


@pytest.mark.parametrize("gold", ["\\frac{1", "???", "$$", "}{"])
def test_an_unusable_gold_is_an_error_and_never_paid(reward: MathReward, gold: str) -> None:
    for text in ("\\boxed{5}", "\\boxed{x+1}", f"\\boxed{{{gold}}}"):
        score = reward.score([problem(gold)], [text])[0]
        assert (score.status, score.value) == ("error", 0.0)


def test_a_gold_beyond_bounds_is_an_error() -> None:
    assert quick("9**9**9", "x") == quick("9**9**9", "5") == "error"


@pytest.mark.parametrize("gold", [None, "", "  "])
def test_a_problem_without_answer_is_named(gold: str | None) -> None:
    with pytest.raises(DataError, match="'p7'"):
        MathReward().score([problem(gold, "p7")], ["\\boxed{5}"])


def test_options_are_checked() -> None:
    with pytest.raises(RewardError, match="seconds"):
        load("math", seconds="2")
    with pytest.raises(RewardError, match="did you mean 'seconds'"):
        load("math", second=2)


@pytest.mark.parametrize(
    "undone",
    ["\\int_0^1 10x\\,dx", "\\sum_{i=1}^{5} 1", "\\lim_{x\\to 0} 5", "∑ 1 = 5", "\\iint 1"],
)
def test_work_left_undone_is_no_answer(undone: str) -> None:
    assert quick("5", undone) == "unparsed"
    assert quick(undone, undone) in ("scored", None)  # where the problem asks for one
    assert quick("5", undone.replace("\\int", "\\intop")) != "scored"
