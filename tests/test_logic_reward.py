"""Logic-RL's scale and multiple choice."""

import time
from typing import Any

import pytest

from whet.errors import DataError, RewardError
from whet.rewards.choice import ChoiceReward, choice
from whet.rewards.logic import LogicReward
from whet.types import Problem, Score, Status

FORMED, BARE = "<think>a</think><answer>b</answer>", "b"


@pytest.mark.parametrize(
    ("text", "status", "value"),
    [
        (FORMED, "scored", 3.0), (FORMED, "wrong", -0.5), (FORMED, "unparsed", -1.0),
        (BARE, "scored", -3.0), (BARE, "wrong", -3.0), (BARE, "unparsed", -3.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", "scored", -3.0),
    ],
)  # fmt: skip
def test_the_totals_are_logic_rls(text: str, status: Status, value: float) -> None:
    score = LogicReward().score_given_verdicts(
        [posed("B")], [text], None, [Score(float(status == "scored"), status)]
    )[0]
    assert score.value == value
    assert score.parts["logic_format"] + score.parts["logic_answer"] == value


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_a_failed_verifier_is_no_verdict(status: Status) -> None:
    assert LogicReward().score_given_verdicts(
        [posed("B")], [FORMED], None, [Score(0.0, status)]
    ) == [Score(0.0, status)]


def test_logic_needs_a_verdict_and_takes_the_formats_options() -> None:
    with pytest.raises(RewardError, match="reward logic pays by a verifier's verdict"):
        LogicReward().score([], [FORMED])
    with pytest.raises(RewardError, match="1 verdicts for 2 responses"):
        LogicReward().score_given_verdicts([posed("B")], [FORMED] * 2, None, [Score(1.0)])
    assert (
        LogicReward(answer="")
        .score_given_verdicts([posed("B")], ["<think>a</think>b"], None, [Score(1.0)])[0]
        .value
        == 3.0
    )


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("b)", "B"), ("**B**", "B"),
        ("$B$", "B"), ("B) Paris", "B"),
        ("<think>A or C</think>B", "B"), ("<think>B", None), ("<think>A</think>", None),
        ("<answer>B</answer>", "B"), ("<answer>A</answer><answer>B</answer>", "B"),
        ("<answer>(B) Paris.</answer>", "B"),
        ("\\boxed{B}", "B"), ("\\boxed{\\text{B}}", "B"), ("\\boxed{\\text{(B)}}", "B"),
        ("<answer>\\boxed{B}</answer>", "B"),
        ("The answer is (A). Wait, the answer is (B).", "B"), ("Answer: B", "B"), ("**Answer:** B", "B"),
        ("The correct option is B because (A) is too small.", None),
        ("The answer is B, because A is too small.", "B"),
        ("the answer is option (B)", "B"), ("The answer is B: Paris", "B"),
        ("So (A) is out.\nI take (B).", "B"), ("Hence:\nB", "B"),
        ("A, B, C, D, E", None), ("The answer is A, B or C", None), ("The answer is A and B", None),
        ("<answer>A B C D E</answer>", None),
        ("<answer>A/B</answer>", None), ("\\boxed{A, B}", None), ("(A) (B) (C)", None),
        ("(A), (B), and (C)", None), ("(A) x (B) y", "B"), ("(A) x\n(B) y\n(C) z", None),
        ("<answer>A) 1 B) 2 C) 3</answer>", None), ("A cat sat on the mat.", None),
        ("The answer is a cat.", None),
        ("The answer is F", None), ("The answer is Both", None), ("", None),
        ("<answer></answer>B", None), ("I think so", None),
        ("The answer is A-B", None), ("\\boxed{A+B}", None), ("ABCDE", None),
        ("<answer>A\nB\nC</answer>", None),
    ],
)  # fmt: skip
def test_the_choice_is_the_one_letter_stated_last(text: str, letter: str | None) -> None:
    assert choice(text) == letter


def posed(answer: str | None, **meta: Any) -> Problem:
    return Problem("q", ({"role": "user", "content": "?"},), answer, "t", meta)


def test_a_choice_is_right_wrong_or_unparsed() -> None:
    verdicts = ChoiceReward().score([posed("B")] * 3, ["The answer is B", "(C)", "A, B, C, D, E"])
    assert [(s.value, s.status, s.parts) for s in verdicts] == [
        (1.0, "scored", {"accuracy": 1.0}), (0.0, "wrong", {"accuracy": 0.0}),
        (0.0, "unparsed", {"accuracy": 0.0})
    ]  # fmt: skip
    assert ChoiceReward().score([posed("(b)")], ["B"])[0].value == 1.0


def test_listing_every_letter_never_pays() -> None:
    listings = [
        "{}".join("ABCDE").replace("{}", joint)
        for joint in (
            " ",
            ", ",
            "; ",
            "/",
            " or ",
            " and ",
            "\n",
            ") ",
            ". ",
            "",
            " | ",
            " & ",
            "), (",
            ") (",
        )
    ]
    frames = [
        ("", ""),
        ("The answer is ", "."),
        ("<answer>", "</answer>"),
        ("\\boxed{", "}"),
        ("(", ")"),
    ]
    for text in [f"{start}{body}{end}" for body in listings for start, end in frames]:
        gained = sum(ChoiceReward().score([posed(letter)], [text])[0].value for letter in "ABCDE")
        assert gained <= 1.0, text  # at most one letter can ever be meant
        assert ChoiceReward().score([posed("A")], [text])[0].value == 0.0, text


def test_words_stand_for_their_letter() -> None:
    p = posed("Paris", choices=["London", "Paris", "A small town"])
    replies = ["B", "the answer is Paris.", "<answer>paris</answer>", "London", "D"]
    assert [s.status for s in ChoiceReward().score([p] * 5, replies)] == [
        "scored",
        "scored",
        "scored",
        "wrong",
        "unparsed",
    ]


@pytest.mark.parametrize(
    "p",
    [posed(None), posed("F"), posed("Rome", choices=["Paris", "London"]), posed("A", choices="AB")],
)
def test_a_problem_whose_answer_is_no_choice_is_named(p: Problem) -> None:
    with pytest.raises(DataError, match="problem 'q': "):
        ChoiceReward().score([p], ["A"])


def test_letters_must_be_different_capitals() -> None:
    for letters in ("A", "abc", "AAB", "A]B"):
        with pytest.raises(RewardError, match="reward choice: letters"):
            ChoiceReward(letters=letters)
    assert ChoiceReward(letters="AB").score([posed("A")], ["C"])[0].status == "unparsed"


def test_long_replies_take_no_time() -> None:
    started = time.process_time()
    for text in (
        "\n" * 200_000,
        "(A" * 50_000,
        "answer is " * 30_000,
        "\\text{" * 50_000,
        f"<answer>{'A ' * 100_000}</answer>",
    ):
        assert choice(text) is None
    assert time.process_time() - started < 2
