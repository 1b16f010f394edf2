"""Advantages, weights, losses, KL and the sampled distribution, against values worked out by hand
or by enumeration.
"""

import itertools
import math
from typing import get_args

import pytest
import torch

from whet.algorithms import objective
from whet.algorithms.advantages import ADVANTAGES
from whet.algorithms.algorithm import AdvantageName, KLName
from whet.algorithms.batch import PolicyBatch
from whet.algorithms.kl import KL, k1, k2, k3
from whet.algorithms.losses import clip_acts, clipped
from whet.algorithms.table import TABLE, algorithm
from whet.errors import RecipeError
from whet.model.logprobs import processed


def test_equal_rewards_give_exactly_no_advantage_whatever_rounding_says():
    for name, advantage in ADVANTAGES.items():
        if name == "raw":  # no baseline of its own
            continue
        for value in (0.1, 1 / 3, 0.0, -2.7):
            got = advantage([torch.full((7,), value, dtype=torch.float64)] * 3)
            assert all((a == 0).all() for a in got), name


def test_groups_whose_verifier_failed_throughout_have_no_advantages():
    empty = torch.zeros(0, dtype=torch.float64)
    for name, advantage in ADVANTAGES.items():
        assert [len(a) for a in advantage([empty, empty])] == [0, 0], name


def test_groups_are_not_mixed():
    """Prompt i always pays i: a group's own baseline leaves nothing, and only the batch's baseline
    leaves the difference.
    """
    groups = [torch.full((4,), float(i), dtype=torch.float64) for i in range(5)]
    for name in ("centred", "zscored", "leave_one_out"):
        assert all((a == 0).all() for a in ADVANTAGES[name](groups)), name
    assert [a[0].item() for a in ADVANTAGES["batch_centred"](groups)] == [-2, -1, 0, 1, 2]


def test_advantages_by_hand():
    rewards = [
        torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64),
        torch.tensor([3.0, 1.0], dtype=torch.float64),
    ]
    assert [a.tolist() for a in ADVANTAGES["centred"](rewards)] == [[0.5, -0.5, 0.0], [1.0, -1.0]]
    assert [a.tolist() for a in ADVANTAGES["leave_one_out"](rewards)] == [
        [0.75, -0.75, 0.0],
        [2.0, -2.0],
    ]
    deviation = math.sqrt(1 / 6)  # of (1, 0, 0.5), not corrected
    assert ADVANTAGES["zscored"](rewards)[0][0].item() == pytest.approx(
        0.5 / (deviation + 1e-6), abs=1e-12
    )


def test_weights_by_hand():
    lengths = [3, 1, 4]
    want = {
        "grpo": [1 / 9, 1 / 3, 1 / 12],
        "dapo": [1 / 8] * 3,
        "dr_grpo": [1 / (3 * 10)] * 3,
        "rloo": [1 / 3] * 3,
    }
    for name, weights in want.items():
        assert objective.weights(TABLE[name], lengths, 10) == pytest.approx(weights), name


@pytest.mark.parametrize(
    ("ratio", "sign"), list(itertools.product([0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 3.0], [-1.0, 1.0]))
)
def test_the_clip_only_removes_the_incentive_to_move_away(ratio, sign):
    low, high, advantage = 0.2, 0.28, 1.7 * sign
    logp = torch.tensor([math.log(ratio) - 1.3], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.3], dtype=torch.float64)
    loss = clipped(logp - old, torch.tensor([advantage], dtype=torch.float64), low, high)
    loss.sum().backward()
    stopped = (ratio > 1 + high and sign > 0) or (ratio < 1 - low and sign < 0)
    assert loss.item() == pytest.approx(
        -min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
    )
    assert logp.grad.item() == pytest.approx(0.0 if stopped else -ratio * advantage)
    assert clip_acts(logp.detach() - old, torch.tensor([advantage]), low, high).item() is stopped


def test_clip_high_is_the_rows_own():
    """At a ratio of 1.25 GRPO has stopped pushing a right answer up, DAPO has not."""
    slopes = {}
    for name in ("grpo", "dapo"):
        logp = torch.tensor([math.log(1.25) - 1.0], dtype=torch.float64, requires_grad=True)
        one, old = torch.ones(1, dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
        at = torch.zeros(1, dtype=torch.long)
        batch = PolicyBatch(at, at, torch.tensor([0, 1]), at, at, one, old, one, 0 * one)
        row = algorithm(name, {"kl": "none", "beta": 0.0})
        objective.loss(row, logp, one, batch).sum().backward()
        slopes[name] = logp.grad.item()
        assert objective.bounded(row, logp.detach(), batch).item() is (name == "grpo")
    assert slopes == {"grpo": 0.0, "dapo": pytest.approx(-1.25)}


def test_kl_estimators_and_their_gradients():
    """Exact expectations over a vocabulary of 5: values of k1 and k3 are the KL, gradients are what
    the docstring says.
    """
    torch.manual_seed(0)
    theta = torch.randn(5, dtype=torch.float64, requires_grad=True)
    logq = torch.randn(5, dtype=torch.float64).log_softmax(0)
    logp = theta.log_softmax(0)
    p, q = logp.detach().exp(), logq.exp()
    reverse, forward = (logp.exp() * (logp - logq)).sum(), (q * (logq - logp)).sum()
    want = {"reverse": reverse, "forward": forward}
    grads = {k: torch.autograd.grad(v, theta, retain_graph=True)[0] for k, v in want.items()}

    def expected(estimator):
        value = (p * estimator(logp, logq)).sum()
        return value.item(), torch.autograd.grad(value, theta, retain_graph=True)[0]

    value, slope = expected(k1)
    assert value == pytest.approx(reverse.item(), abs=1e-12) and slope.abs().max() < 1e-12
    value, slope = expected(k2)
    assert abs(value - reverse.item()) > 1e-3 and (slope - grads["reverse"]).abs().max() < 1e-12
    value, slope = expected(k3)
    assert value == pytest.approx(reverse.item(), abs=1e-12)
    assert (slope - grads["forward"]).abs().max() < 1e-12 and (
        slope - grads["reverse"]
    ).abs().max() > 1e-3


def test_processed_is_the_distribution_that_is_sampled_from():
    logits = torch.tensor(
        [[2.0, 1.0, 0.5, -1.0, 0.4], [0.0, 0.0, 0.0, 0.0, 3.0]], dtype=torch.float64
    )
    p = (logits / 0.7).softmax(-1)
    got = processed(logits, 0.7, top_p=0.8).exp()
    kept = torch.tensor([[True, True, False, False, False], [False, False, False, False, True]])
    want = (p * kept) / (p * kept).sum(-1, keepdim=True)
    assert torch.allclose(got, want)
    got = processed(logits, 0.7, top_k=3).exp()
    assert (got > 0).sum(-1).tolist() == [3, 3] and torch.allclose(
        got.sum(-1), torch.ones(2, dtype=torch.float64)
    )
    kept_out = processed(logits, 0.7, top_k=1, keep=torch.tensor([3, 4])).exp()
    assert kept_out[0, 3] > 0 and kept_out[1, 4] == 1
    assert torch.allclose(processed(logits, 0.0), logits.log_softmax(-1))


def test_the_table_refuses_what_it_does_not_know():
    with pytest.raises(RecipeError, match="did you mean 'dr_grpo'"):
        algorithm("drgrpo")
    with pytest.raises(RecipeError, match="did you mean 'clip_high'"):
        algorithm("grpo", {"cliphigh": 0.3})
    with pytest.raises(RecipeError, match="did you mean 'centred'"):
        algorithm("grpo", {"advantage": "centered"})
    for cells in (
        {"beta": -1},
        {"clip_low": float("nan")},
        {"updates": 0},
        {"updates": True},
        {"kl": "none", "beta": 0.1},
    ):
        with pytest.raises(RecipeError):
            algorithm("grpo", cells)


@pytest.mark.parametrize(
    ("name", "cells", "words"),
    [
        ("dr_grpo", {"kl": "k1", "beta": 0.1}, "expected gradient 0"),
        ("dr_grpo", {"critic": {}}, "a second one"),
        ("oreal", {"critic": {}, "advantage": "raw"}, "exclude"),
        ("oreal", {"advantage": "centred"}, "needs advantage = 'cloned'"),
        ("distil_on_policy", {"beta": 0.0}, "something must teach"),
        ("rloo", {"correction": "token", "cap": 0.5}, "below 1"),
        ("kimi", {"updates": 1}, "updates above 1"),
        ("rloo", {"warmup": 3}, "there is none"),
        ("ppo", {"critic": {"lamb": 1.0}}, "unknown option 'critic.lamb'; did you mean 'lam'?"),
        ("ppo", {"critic": {"lam": 1.5}}, "critic.lam = 1.5; it must be between 0 and 1"),
        ("ppo", {"critic": {"updates": 0}}, "critic.updates = 0"),
        ("ppo", {"critic": {"bootstrap": 1}}, "true or false"),
        ("ppo", {"critic": 3}, "critic = 3; it must be a table such as { lam = 0.95 }, or none"),
        ("ppo", {"name": "mine"}, "unknown option 'name'"),
        ("ppo", {"sampling": "priority"}, "did you mean 'prioritised'?"),
        ("ppo", {"gamma": 2}, "gamma = 2; it must be between 0 and 1"),
    ],
)
def test_cells_that_cannot_be_or_cannot_hold_together_are_refused(name, cells, words):
    with pytest.raises(RecipeError) as refusal:
        algorithm(name, cells)
    assert words in str(refusal.value) and str(refusal.value).startswith(f"algorithm {name}: ")


def test_whole_numbers_stand_for_cells_that_are_numbers():
    assert algorithm("grpo", {"beta": 1, "critic": "none"}).beta == 1.0


def test_a_cell_names_what_there_is_to_compute():
    assert set(get_args(AdvantageName)) == set(ADVANTAGES)
    assert set(get_args(KLName)) == {"none", *KL}


def test_inner_cells_change_alone_and_a_critic_can_be_dropped():
    row = algorithm("ppo", {"critic": {"lam": 0.5}})
    assert row.critic.lam == 0.5 and row.critic.value_clip == TABLE["ppo"].critic.value_clip == 0.2
    assert algorithm("ppo", {"critic": "none"}).critic is None
    assert algorithm("rloo", {"advantage": "raw", "critic": {"updates": 2}}).critic.updates == 2
