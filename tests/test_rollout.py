"""Rollouts: where problems come from, how a rollout is told in numbers, and what a person is warned
of.
"""

import numpy as np
import pytest

from whet.rollout.health import concerns
from whet.rollout.rollout import describe, endless
from whet.tasks.chain import Chain
from whet.types import Group, Problem, Prompt, Score

from .helpers.tiny_world import sample


def test_problems_never_run_out_and_epochs_differ():
    class Few(Chain):
        def size(self, split):
            return 5

        def problems(self, split, n, seed):
            assert n == 5
            order = np.random.default_rng(seed).permutation(5)
            return [Problem(str(i), ()) for i in order]

    stream = endless(Few(), "train", 1)
    epochs = [[next(stream).id for _ in range(5)] for _ in range(4)]
    assert all(sorted(e) == list("01234") for e in epochs) and len({tuple(e) for e in epochs}) > 1


def test_describe_counts_failures_apart():
    problem = Problem("p", ({"role": "user", "content": "1+1="},), "2")
    long, short = (
        sample([0, 1, 1, 1], [0, 1, 1, 1], text="<think></think>2"),
        sample([0, 1], [0, 1], finish="length", text="x"),
    )
    group = Group(
        Prompt(problem, (0,)),
        (long, short, short),
        (Score(1.0), Score(0.0, "unparsed"), Score(0.0, "error")),
    )
    figures = describe([group], Chain())
    assert (
        figures["errors"] == pytest.approx(1 / 3)
        and figures["reward"] == 0.5
        and figures["length"] == 2.0
    )
    assert (figures["length_right"], figures["length_wrong"], figures["truncated"]) == (
        3.0,
        1.0,
        0.5,
    )
    assert figures["share_direct"] == 0.5 and figures["groups_with_signal"] == 1.0


def test_concerns_are_in_plain_words():
    fine = {
        "groups_with_signal": 0.5,
        "truncated": 0.0,
        "entropy": 1.0,
        "accuracy": 0.3,
        "unparsed": 0.0,
        "gap": 1e-6,
        "errors": 0.0,
    }
    assert concerns([fine] * 8) == []
    reinforce = {
        "groups_with_signal": 0.0,
        "tokens": 90.0,
    }  # learns all the same: its baseline is the batch's
    assert concerns([fine | reinforce] * 8) == []
    for change, word in (
        ({"groups_with_signal": 0.0, "tokens": 0.0, "reward": 0.0}, "too hard"),
        ({"groups_with_signal": 0.0, "tokens": 0.0, "reward": 1.0}, "solved"),
        ({"truncated": 0.3}, "cut off"),
        ({"entropy": 0.05}, "collapsing"),
        ({"unparsed": 0.95}, "cannot be parsed"),
        ({"gap": 0.5}, "disagree"),
        ({"errors": 0.1}, "verifier failed"),
        ({"explained": -0.3}, "critic predicts"),
    ):
        warnings = concerns([fine] * 3 + [fine | change] * 5)
        assert len(warnings) == 1 and word in warnings[0]


def test_a_jump_of_the_loss_or_the_gradient_is_told_once_there_is_something_to_compare_it_with():
    calm = [{"tokens": 9.0, "loss": 0.1 + i / 100, "grad_norm": 0.3} for i in range(25)]
    assert concerns(calm) == []
    assert concerns([*calm[:10], {"tokens": 9.0, "loss": 90.0, "grad_norm": 90.0}]) == []
    (warning,) = concerns([*calm, {"tokens": 9.0, "loss": 0.1, "grad_norm": 7.0}])
    assert warning.startswith("the gradient's norm has jumped to over 20 times")
    (warning,) = concerns([*calm, {"tokens": 9.0, "loss": -9.0, "grad_norm": 0.3}])
    assert warning.startswith("the loss has jumped")
    still = [{"loss": 0.0, "grad_norm": 0.0}] * 25
    assert concerns([*still, {"loss": 0.5, "grad_norm": 0.01}]) == []
