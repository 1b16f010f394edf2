"""Ranked responses: where they come from, how they are split and packed, and the loss over their
pairs.
"""

import json
import math
from itertools import islice

import pytest
import torch

from whet.algorithms.losses import bradley_terry, pairs
from whet.data import preferences
from whet.errors import DataError
from whet.types import Problem, Ranking

from .helpers.tiny_world import sample

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "good"}]
WORSE = [CHAT[0], {"role": "assistant", "content": "bad"}]


def written(tmp_path, *rows):
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"prompt": "hi", "chosen": "good", "rejected": "bad"}, ("good", "bad")),
        ({"prompt": "hi", "ranked": ["good", "fair", "good", "bad"]}, ("good", "fair", "bad")),
        ({"chosen": CHAT, "rejected": WORSE}, ("good", "bad")),
        (
            {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": WORSE[1:], "answer": 2},
            ("good", "bad"),
        ),
    ],
)
def test_a_row_is_read_in_every_usual_form(tmp_path, row, texts):
    [ranking] = preferences.read(written(tmp_path, row))
    assert ranking.texts == texts and ranking.problem.messages == (CHAT[0],)
    assert ranking.problem.answer == (str(row["answer"]) if "answer" in row else None)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "hi", "chosen": "a"}, "'rejected' must be a text"),
        ({"prompt": "hi", "ranked": "abc"}, "must be a list of texts, best first"),
        ({"ranked": ["a", "b"]}, "'prompt' must be a text"),
        ({"chosen": CHAT[:1], "rejected": WORSE}, "'chosen' does not end with the assistant"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": CHAT, "ranked": ["a", "b"]}, "no prompt"),
        (
            {"prompt": [{"role": "root", "content": "x"}], "ranked": ["a", "b"]},
            "list of {role, content}",
        ),
        ({"prompt": "hi", "chosen": "a", "rejected": "a"}, "no row ranks two different responses"),
    ],
)
def test_a_bad_row_is_named_in_one_line(tmp_path, row, says):
    with pytest.raises(DataError) as caught:
        preferences.read(written(tmp_path, row))
    assert (
        says in str(caught.value)
        and "prefs.jsonl" in str(caught.value)
        and "\n" not in str(caught.value)
    )


def some(n):
    asked = [Problem(str(i), ({"role": "user", "content": f"q{i % 5}"},)) for i in range(n)]
    return [Ranking(p, (f"a{p.id}", "b", "c")[: 2 + i % 2]) for i, p in enumerate(asked)]


def test_what_is_written_is_read_again(tmp_path):
    preferences.write(some(4), tmp_path / "r.jsonl")
    assert preferences.read(str(tmp_path / "r.jsonl")) == some(4)


def test_no_prompt_is_on_both_sides():
    training, testing = preferences.split(some(20), 0.2, 7)
    asked = [{r.problem.question for r in side} for side in (training, testing)]
    assert len(asked[1]) == 1 and not asked[0] & asked[1] and len(training) + len(testing) == 20
    assert (
        preferences.split(some(20), 0.2, 7) == (training, testing)
        and preferences.split(some(20), 0.2, 8)[1] != testing
    )
    with pytest.raises(DataError, match="only one prompt"):
        preferences.split(some(1), 0.5, 1)


def test_an_epoch_takes_everything_once():
    batches = list(islice(preferences.epochs(some(7), 3, 1), 7))
    taken = [r.problem.id for b in batches for r in b]
    assert [len(b) for b in batches] == [3] * 7 and all(
        sorted(taken[i : i + 7]) == sorted("0123456") for i in (0, 7, 14)
    )
    assert taken[:7] != taken[7:14]


def ragged():
    """Three rankings of 2, 3 and 2 samples whose masks have 1 to 4 tokens."""
    sizes = [[2, 1], [4, 2, 3], [1, 1]]
    return [[sample([5] * (n + 2), [0, 0] + [1] * n) for n in row] for row in sizes]


def test_a_batch_is_split_between_rankings_only():
    batch = preferences.ranked_batch(ragged())
    assert batch.seams() == [0, 2, 5, 7]
    for tokens in (1, 15, 20, 21, 22, 28):
        parts = list(batch.split(tokens))
        assert sum(p.sequences for p in parts) == 7 and all(
            set(p.seams()) - {0, p.sequences} <= {2, 3, 5} for p in parts
        )
        assert [x for p in parts for x in p.group.tolist()] == batch.group.tolist()
        assert len(parts) == {1: 3, 15: 3, 20: 3, 21: 2, 22: 2, 28: 1}[tokens]


def test_the_weights_make_the_mean_over_rankings():
    """Whatever a micro-batch holds, and however many responses and tokens a ranking has."""
    batch = preferences.ranked_batch(ragged())
    score = torch.linspace(-1, 2, 7, dtype=torch.float64)
    by_hand = []
    for first, count in ((0, 2), (2, 3), (5, 2)):
        row = score[first : first + count].tolist()
        each = [
            math.log1p(math.exp(row[j] - row[i])) for i in range(count) for j in range(i + 1, count)
        ]
        by_hand.append(sum(each) / len(each))
    for tokens in (1, 21, 99):
        total, done = 0.0, 0
        for micro in batch.split(tokens):
            mine = score[done : done + micro.sequences]
            done += micro.sequences
            loss = bradley_terry(
                mine, micro.of_sequence(micro.group), micro.of_sequence(micro.rank)
            )
            total += float((loss[micro.sequence] * micro.weight).sum())
        assert total == pytest.approx(sum(by_hand) / 3, rel=1e-6)


def test_pairs_are_all_within_a_group_and_none_between_equals():
    group, rank = torch.tensor([4, 4, 4, 4, 9]), torch.tensor([1, 1, 0, 2, 0])
    better, worse = pairs(group, rank)
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == [
        (0, 3),
        (1, 3),
        (2, 0),
        (2, 1),
        (2, 3),
    ]
    assert bradley_terry(torch.zeros(1), torch.tensor([0]), torch.tensor([0])).tolist() == [0.0]


def test_the_gradient_is_the_pairs_doubt():
    """d/ds of -log sigmoid(s_w - s_l) is -(1 - sigmoid) on the better and its opposite on the
    worse, also where exp would overflow.
    """
    score = torch.tensor(
        [0.3, -1.1, 900.0, -900.0, -900.0, 900.0], dtype=torch.float64, requires_grad=True
    )
    group, rank = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
    bradley_terry(score, group, rank).sum().backward()
    doubt = 1 - 1 / (1 + math.exp(-1.4))
    assert score.grad is not None
    assert score.grad.tolist() == pytest.approx([-doubt, doubt, 0, 0, -1, 1])
