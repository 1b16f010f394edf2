"""Parts of a reward for one task of a mixture only, and what a measurement says of each task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet import config
from whet.chat import Chat
from whet.errors import RewardError
from whet.evaluation.measure import figures
from whet.rewards import combined
from whet.rewards.combine import CombinedReward, Part, PartOptions
from whet.rollout.context import Context
from whet.rollout.rollout import describe
from whet.storage.run_log import RunLog
from whet.tasks import load
from whet.types import Group, Problem, Prompt, Sample, Sampling, Score, Status

TASTE: Any = load("taste")
TASK = load("mix", parts=[{"name": "chain", "operations": 1}, {"name": "taste"}])
SUM = Problem("chain:3+5", ({"role": "user", "content": "3+5="},), "8", "chain")
LETTERS = Problem("taste:abc", ({"role": "user", "content": "abc:"},), "abc", "taste")
RIGHT = "<think></think>8"


class Fixed:
    """Pays what it is told, and remembers whom it was asked about."""

    def __init__(self, value: float, status: Status = "scored", **parts: float) -> None:
        self.pays, self.asked = Score(value, status, parts), []

    def score(
        self, problems: Sequence[Problem], texts: Sequence[str], samples: object = None
    ) -> list[Score]:
        self.asked += [(p.id, t) for p, t in zip(problems, texts, strict=True)]
        assert samples is None or len(samples) == len(texts)  # type: ignore[arg-type]
        return [self.pays for _ in texts]


def sample(text: str, length: int = 3) -> Sample:
    mask = np.arange(1 + length) > 0
    return Sample(
        np.zeros(1 + length, np.int64),
        mask,
        np.where(mask, -0.1, 0).astype(np.float32),
        text,
        "stop",
    )


def test_a_part_is_asked_scored_and_logged_for_its_own_task_alone():
    sums, letters, both = Fixed(1.0, accuracy=1.0), Fixed(0.25), Fixed(0.5)
    reward = CombinedReward(
        [
            Part(sums, PartOptions(name="a", weight=2.0, only="chain")),
            Part(letters, PartOptions(name="b", weight=4.0, only="taste")),
            Part(both, PartOptions(name="c", weight=0.5)),
        ]
    )
    texts = ["1", "2", "3"]
    scores = reward.score([SUM, LETTERS, SUM], texts, [sample(t) for t in texts])
    assert [s.value for s in scores] == [2.25, 1.25, 2.25]
    assert scores[0].parts == {"a": 1.0, "c": 0.5, "accuracy": 1.0} and scores[1].parts == {
        "b": 0.25,
        "c": 0.5,
    }
    assert sums.asked == [(SUM.id, "1"), (SUM.id, "3")] and letters.asked == [(LETTERS.id, "2")]
    assert len(both.asked) == 3


def test_what_is_left_out_cannot_fail_a_problem():
    reward = CombinedReward(
        [
            Part(Fixed(1.0), PartOptions(name="a")),
            Part(Fixed(0.0, "timeout"), PartOptions(name="b", only="chain")),
        ]
    )
    scores = reward.score([SUM, LETTERS], ["1", "2"])
    assert [s.status for s in scores] == ["timeout", "scored"] and scores[1].value == 1.0


def test_accuracy_is_that_of_whichever_verifier_judged():
    parts: list[tuple[str, float, dict[str, Any]]] = [
        ("task", 1.0, {"only": "chain"}),
        ("format", 0.1, {"answer": ""}),
    ]
    reward = combined([*parts, ("task", 0.0, {"only": "taste"})], TASK)
    right, wrong, taste = reward.score([SUM, SUM, LETTERS], [RIGHT, RIGHT[:-1] + "7", "abc"])
    assert (right.value, right.correct, wrong.value, wrong.status) == (1.1, True, 0.1, "wrong")
    assert taste.value == 0.0 and taste.parts["accuracy"] == 0.0 and taste.status == "wrong"
    assert taste.parts["task"] == 0.5 and "utility" in taste.parts and "utility" not in right.parts


def test_a_part_that_pays_by_a_verdict_gets_its_own_tasks():
    reward = combined([("length_kimi", 1.0, {"only": "chain"}), ("task", 1.0, {})], TASK)
    problems, texts = [SUM, LETTERS, SUM], [RIGHT, "abc", RIGHT]
    scores = reward.score(
        problems, texts, [sample(t, n) for t, n in zip(texts, (2, 9, 4), strict=True)]
    )
    assert [s.value for s in scores] == [1.5, 0.5, 0.5] and "length_kimi" not in scores[1].parts


def test_a_gate_holds_where_it_judges():
    reward = combined(
        [
            ("task", 1.0, {"only": "chain", "gate": "format"}),
            ("format", 0.5, {"answer": "", "only": "chain"}),
            ("task", 1.0, {"only": "taste"}),
        ],
        TASK,
    )
    assert [s.value for s in reward.score([SUM, SUM, LETTERS], [RIGHT, "8", "abc"])] == [
        1.5,
        0.0,
        0.5,
    ]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [("task", 1.0, {"only": "chian"})],
            "only = 'chian' is no task of this recipe; did you mean 'chain'?",
        ),
        ([("task", 1.0, {"only": 3})], "only = 3; it must be text"),
        ([("task", 1.0, {"only": "chain"})], "none for taste"),
        ([("task", 1.0, {}), ("task", 0.0, {"only": "chain"})], "two parts are named 'task'"),
        ([("task", 1.0, {"only": "chain"}), ("task", 0.0, {})], "two parts are named 'task'"),
        (
            [("task", 1.0, {"only": "taste"}), ("task", 0.0, {"only": "taste"})],
            "two parts are named 'task'",
        ),
        (
            [("task", 1.0, {"gate": "format"}), ("format", 1.0, {"only": "chain"})],
            "give this part only = 'chain' too",
        ),
        (
            [
                ("task", 1.0, {"only": "chain", "gate": "format"}),
                ("format", 1.0, {"only": "taste"}),
            ],
            "judges only taste",
        ),
    ],
)
def test_faults_are_one_line(parts: list[tuple[str, float, dict[str, Any]]], message: str):
    with pytest.raises(RewardError) as error:
        combined(parts, TASK)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_problem_that_nothing_judges_is_refused():
    with pytest.raises(RewardError, match="no part judges problem 'taste:abc'"):
        CombinedReward([Part(Fixed(1.0), PartOptions(name="a", only="chain"))]).score(
            [SUM, LETTERS], ["1", "2"]
        )


def test_one_part_for_the_only_task_is_still_a_sum():
    """A single plain part stays as it is; one with `only` must not lose it."""
    reward = combined([("task", 1.0, {"only": "chain"})], load("chain"))
    with pytest.raises(RewardError, match="no part judges"):
        reward.score([LETTERS], ["abc"])


def groups() -> list[Group]:
    rows = [
        (SUM, [RIGHT, "8"], [3, 5]),
        (LETTERS, ["abc", "abc"], [4, 8]),
        (SUM, [RIGHT, RIGHT], [3, 3]),
    ]
    reward = combined([("task", 1.0, {"only": "chain"}), ("task", 0.0, {"only": "taste"})], TASK)
    drawn = []
    for problem, texts, lengths in rows:
        samples = tuple(sample(t, n) for t, n in zip(texts, lengths, strict=True))
        drawn.append(
            Group(
                Prompt(problem, (0,)),
                samples,
                tuple(reward.score([problem] * len(texts), texts, samples)),
            )
        )
    return drawn


def measured(drawn: list[Group], folder: Path) -> dict[str, Any]:
    chat = Chat.from_characters(TASK.alphabet())
    reward = combined([("task", 1.0, {})], TASK)
    context = Context(
        TASK, reward, chat, config.Ask(), RunLog(folder), 0, lambda p, c: p, lambda name: None
    )  # type: ignore
    return figures(drawn, context, Sampling(n=2))


def test_a_measurement_tells_the_tasks_apart(tmp_path: Path):
    summary = measured(groups(), tmp_path)
    chain, taste = summary["by_task"]["chain"], summary["by_task"]["taste"]
    assert list(summary["by_task"]) == ["chain", "taste"]
    assert (chain["accuracy"], chain["n"], chain["length"]) == (0.75, 2, 3.5)
    assert (taste["accuracy"], taste["n"], taste["length"]) == (0.0, 1, 6.0)
    assert chain["low"] < 0.75 < chain["high"] and summary["accuracy"] == pytest.approx(
        (0.75 * 2 + 0) / 3
    )
    assert "by_task" not in measured(
        [g for g in groups() if g.prompt.problem.task == "chain"], tmp_path
    )


def test_a_part_is_averaged_over_the_responses_that_have_it():
    rates = describe(groups(), TASK)
    assert rates["part_utility"] == pytest.approx(TASTE.utility(LETTERS, "abc"))
