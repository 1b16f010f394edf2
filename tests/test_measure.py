"""Measuring: what stands in a summary follows from the groups, by hand."""

import numpy as np
import pytest

from whet import config
from whet.chat import Chat
from whet.evaluation.measure import Measured, figures, gain, measure, modes, paired, vote
from whet.rollout.context import Context
from whet.storage.run_log import RunLog
from whet.tasks.chain import Chain
from whet.types import Group, Problem, Prompt, Sample, Sampling, Score

DIRECT, CAREFUL = "<think></think>", "<think>1+1=2</think>"


def context(tmp_path):
    task = Chain(operations=1)
    chat = Chat.from_characters(task.alphabet())

    class Reward:
        def score(self, problems, texts, samples=None):
            return task.score(problems, texts)

    return Context(
        task,
        Reward(),
        chat,
        config.Ask(),
        RunLog(tmp_path),
        0,
        lambda policy, chat: policy,
        lambda name: None,
    )


def group(number, answers):
    """answers: (text, right, length) or (text, None, length) where the verifier failed."""
    problem = Problem(str(number), ({"role": "user", "content": "1+1="},), "2")
    samples, scores = [], []
    for text, right, length in answers:
        mask = np.array([False] + [True] * length)
        samples.append(
            Sample(
                np.zeros(length + 1, int),
                mask,
                np.where(mask, -0.5, 0).astype(np.float32),
                text,
                "stop",
            )
        )
        scores.append(
            Score(0.0, "timeout")
            if right is None
            else Score(float(right), "scored" if right else "wrong")
        )
    return Group(Prompt(problem, (0,)), tuple(samples), tuple(scores))


GROUPS = [
    group(
        1,
        [
            (DIRECT + "2", True, 4),
            (DIRECT + "3", False, 4),
            (CAREFUL + "2", True, 9),
            (DIRECT + "2", True, 4),
        ],
    ),
    group(
        2,
        [
            (DIRECT + "5", False, 4),
            (DIRECT + "5", False, 4),
            (CAREFUL + "2", True, 9),
            (DIRECT + "2", None, 4),
        ],
    ),
]


def test_figures_by_hand(tmp_path):
    summary = figures(GROUPS, context(tmp_path), Sampling(n=4, temperature=0.7))
    assert (
        summary["accuracy"] == pytest.approx((3 / 4 + 1 / 3) / 2)
        and summary["low"] < summary["accuracy"] < summary["high"]
    )
    assert (
        summary["n"] == 2
        and summary["errors"] == pytest.approx(1 / 8)
        and summary["sampling"]["temperature"] == 0.7
    )
    assert summary["pass_at"] == {
        "1": pytest.approx((3 / 4 + 1 / 3) / 2),
        "2": pytest.approx((1 + 2 / 3) / 2),
    }
    assert summary["majority"] == 0.5  # 2 wins in the first group, 5 in the second
    assert (
        summary["length_right"] == pytest.approx((4 + 9 + 4 + 9) / 4)
        and summary["length_wrong"] == 4
    )
    assert summary["modes"]["direct"]["n"] == 5 and summary["modes"]["careful"]["accuracy"] == 1.0


def test_modes_shares_sum_to_one(tmp_path):
    table = modes(GROUPS, context(tmp_path))
    assert sum(t["share"] for t in table.values()) == pytest.approx(1)
    assert table["coarse"] == {"share": 0.0, "accuracy": None, "n": 0}


def test_vote_counts_answers_not_texts():
    assert (
        vote(
            group(1, [(DIRECT + "2", True, 4), (CAREFUL + "2", True, 9), (DIRECT + "7", False, 4)])
        )
        == 1.0
    )
    assert vote(group(1, [(DIRECT + "2", True, 4), (DIRECT + "7", False, 4)])) == 0.5


def test_answers_in_prose_are_pooled_by_what_they_conclude():
    answers = [("She has 5 apples. #### 5", True, 4), ("So \\boxed{5}, I think", True, 4)]
    answers += [("It is 7", False, 4), ("Seven? #### 8", False, 4)]
    assert vote(group(1, answers)) == 1.0  # 5 has two votes; word for word each would have one


def test_the_gain_is_split_into_choosing_and_reasoning(tmp_path):
    place = context(tmp_path)
    before = [group(i, [(DIRECT + ("2" if i < 2 else "3"), i < 2, 4)]) for i in range(8)]
    before += [group(8 + i, [(CAREFUL + ("2" if i < 1 else "3"), i < 1, 9)]) for i in range(2)]
    after = [group(i, [(CAREFUL + ("2" if i < 8 else "3"), i < 8, 9)]) for i in range(10)]
    one, two = (Measured(g, figures(g, place, Sampling(n=1))) for g in (before, after))
    parts = gain("base", one, "rl", two)
    assert parts["total"] == pytest.approx(0.8 - 0.3)
    assert parts["choosing"] == pytest.approx(-0.8 * 0.25 + 0.8 * 0.5)
    assert parts["reasoning"] == pytest.approx(1.0 * (0.8 - 0.5))
    assert parts["paired"]["n"] == 10 and 0 < parts["paired"]["p"] < 1


def test_only_problems_that_both_answered_are_paired():
    failed = group(1, [(DIRECT + "2", None, 4)])
    one = Measured([group(1, [(DIRECT + "2", True, 4)]), group(2, [(DIRECT + "2", True, 4)])], {})
    other = Measured([group(2, [(DIRECT + "2", True, 4)]), failed], {})
    assert paired(one, other)["n"] == 1 and paired(one, Measured([failed], {})) == {"n": 0}


def test_measure_asks_for_the_test_split_and_no_more_than_it_has(tmp_path):
    asked = {}

    class Engine:
        version = 0

        def generate(self, prompts, sampling, progress=None):
            asked.update(ids=[p.id for p in prompts], sampling=sampling)
            return [group(0, [(DIRECT + p.problem.answer, True, 4)]).samples for p in prompts]

    place = context(tmp_path)
    result = measure(Engine(), place, config.Evaluation(problems=10_000, temperature=0.0, seed=3))
    assert result.figures["accuracy"] == 1.0 and result.figures["n"] == place.task.size("test")
    train = {p.id for p in place.task.problems("train", place.task.size("train"), 0)}
    assert (
        not train & set(asked["ids"])
        and asked["sampling"].temperature == 0.0
        and asked["sampling"].seed == 3
    )
