"""Parts that pay by a verifier's verdict, in a sum."""

import numpy as np
import pytest

from whet.errors import RewardError
from whet.rewards import combined
from whet.tasks import load
from whet.types import Problem, Sample, Score


class Sums:
    name, modes = "sums", ()

    def score(self, problems, texts):
        return [
            Score(1.0) if p.answer == t else Score(0.0, "wrong")
            for p, t in zip(problems, texts, strict=True)
        ]


class Failing(Sums):
    def score(self, problems, texts):
        return [Score(0.0, "timeout") for _ in texts]


PROBLEM = Problem("a", ({"role": "user", "content": "2+2?"},), "4", "sums", {"budget": 10})


def sample(length: int) -> Sample:
    return Sample(
        np.zeros(1 + length, np.int64),
        np.arange(1 + length) > 0,
        np.full(1 + length, -0.1, np.float32),
        "",
        "stop",
    )


def test_a_part_is_given_the_verifiers_verdict_wherever_it_stands():
    for parts in (
        [("length_kimi", 0.5, {}), ("task", 1.0, {})],
        [("task", 1.0, {}), ("length_kimi", 0.5, {})],
    ):
        scores = combined(parts, Sums()).score(
            [PROBLEM] * 3, ["4", "4", "5"], [sample(n) for n in (10, 30, 30)]
        )
        assert [s.value for s in scores] == [1.25, 0.75, -0.25]
        assert scores[2].parts == {"task": 0.0, "length_kimi": -0.5, "accuracy": 0.0}
        assert [s.status for s in scores] == ["scored", "scored", "wrong"]


def test_a_verifier_of_weight_0_still_judges():
    reward = combined([("task", 0.0, {}), ("lcpo_max", 1.0, {"alpha": 0.05})], Sums())
    scores = reward.score([PROBLEM] * 2, ["4", "5"], [sample(8)] * 2)
    assert [s.value for s in scores] == pytest.approx([0.6, 0.0]) and [
        s.correct for s in scores
    ] == [True, False]


def test_logic_rl_over_knights():
    task = load("knights", people=2)
    problem = task.problems("train", 1, 1)[0]
    right = f"<think>x</think><answer>{problem.answer}</answer>"
    swapped = right.replace("knight", "?").replace("knave", "knight").replace("?", "knave")
    scores = combined([("task", 0.0, {}), ("logic", 1.0, {})], task).score(
        [problem] * 4, [right, swapped, right[:-12] + "</answer>", problem.answer]
    )
    assert [s.value for s in scores] == [3.0, -0.5, -1.0, -3.0]
    assert scores[0].parts["logic_answer"] == 2.0


def test_no_verdict_is_one_line_and_a_failed_verifier_is_left_out():
    with pytest.raises(RewardError, match="reward length_kimi pays by a verifier's verdict"):
        combined([("format", 1.0, {}), ("length_kimi", 1.0, {})], Sums()).score(
            [PROBLEM], ["4"], [sample(3)]
        )
    with pytest.raises(RewardError, match="length_kimi pays by a verifier's verdict"):
        combined([("length_kimi", 1.0, {})], Sums()).score([PROBLEM], ["4"], [sample(3)])
    score = combined([("task", 1.0, {}), ("cosine", 1.0, {"max_tokens": 9})], Failing()).score(
        [PROBLEM], ["4"], [sample(3)]
    )[0]
    assert score.status == "timeout"


def test_every_new_reward_loads_by_name():
    for name, options in (
        ("choice", {}),
        ("language", {"language": "zh"}),
        ("overlong", {"max_tokens": 9}),
        ("budget_error", {}),
        ("lcpo_exact", {}),
    ):
        combined([("task", 1.0, {}), (name, 0.1, options)], Sums())
    with pytest.raises(RewardError, match="did you mean 'alpha'"):
        combined([("task", 1.0, {}), ("lcpo_exact", 0.1, {"alhpa": 1})], Sums())


def test_the_budget_is_a_task_option():
    task = load("chain", operations=2, budget={"min": 20, "max": 40})
    assert "Think for" in task.problems("train", 1, 1)[0].question
