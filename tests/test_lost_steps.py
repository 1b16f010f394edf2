"""Numbers that are not finite, put into losses, gradients, rewards and log-probabilities: none
reaches the weights.
"""

import json
import math

import numpy as np
import pytest
import torch

from whet import config
from whet.errors import WhetError
from whet.rollout.rollout import finite, score_groups
from whet.stages import rl, sft
from whet.training.learner import LOST, Learner
from whet.types import Problem, Prompt, Sample, Score

from .helpers.tiny_world import lines, rl_stage, sft_stage, take_step, world

ODD = (math.nan, math.inf, -math.inf)


class Toy:
    """A batch of n rows, a row a token."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.weight = x, torch.full((len(x),), 1 / 12)

    def split(self, size: int) -> list["Toy"]:
        return [Toy(part) for part in self.x.split(size)]


def learner(kind: str) -> Learner:
    torch.manual_seed(3)
    return Learner(
        torch.nn.Linear(4, 4), config.Optimizer(kind=kind, lr=0.05, schedule="linear"), 500
    )  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_hundred_losses_and_gradients_leave_no_trace(kind: str, place: str):
    rng = np.random.default_rng(1)
    whole, hurt = learner(kind), learner(kind)
    hurting = [math.nan]

    def bad(grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        grad.view(-1)[int(rng.integers(grad.numel()))] = hurting[0]
        return grad

    lost = 0
    for i in range(200):
        batch = Toy(torch.from_numpy(rng.normal(size=(12, 4)).astype(np.float32)))
        loss = lambda model: lambda micro: model(micro.x).square().sum(-1)  # noqa: E731
        if i % 2:  # between two good ones, so that three in a row never come
            hurting[0] = ODD[i // 2 % 3]
            if place == "gradient":
                handle = hurt.model.weight.register_hook(bad)
                stepped = take_step(hurt, batch, 5, loss(hurt.model))
                handle.remove()
            else:
                at = int(rng.integers(12))
                seen = iter(range(12))

                def broken(micro, at=at, seen=seen):
                    loss = hurt.model(micro.x).square().sum(-1)
                    mine = torch.tensor([next(seen) == at for _ in range(len(loss))])
                    return torch.where(mine, loss * hurting[0], loss)

                stepped = take_step(hurt, batch, 5, broken)
            assert stepped.lost and stepped.figures == {"lost": 1.0}
            lost += 1
        else:
            assert (
                not take_step(hurt, batch, 5, loss(hurt.model)).lost
                and not take_step(whole, batch, 5, loss(whole.model)).lost
            )
    assert lost == 100 and hurt.done == whole.done == 100
    assert all(torch.equal(a, b) for a, b in zip(hurt.parameters, whole.parameters, strict=True))


def test_a_few_in_a_row_end_the_run_with_the_weights_as_they_were():
    hurt = learner("adamw")
    before = [p.detach().clone() for p in hurt.parameters]
    batch = Toy(torch.ones(12, 4))
    nothing = lambda micro: hurt.model(micro.x).sum(-1) * math.nan  # noqa: E731
    for _ in range(LOST - 1):
        take_step(hurt, batch, 12, nothing)
    with pytest.raises(
        WhetError,
        match="3 steps in a row had a loss or a gradient that is not finite, the last after 0 good ones",
    ):
        take_step(hurt, batch, 12, nothing)
    assert all(torch.equal(a, b) for a, b in zip(hurt.parameters, before, strict=True))


def test_a_loss_without_end_is_lost_though_its_gradient_is_finite():
    hurt = learner("adamw")
    assert take_step(
        hurt, Toy(torch.ones(12, 4)), 12, lambda micro: hurt.model(micro.x).sum(-1) + math.inf
    ).lost


def test_a_hundred_rewards_are_errors_and_not_part_of_their_groups():
    rng = np.random.default_rng(2)
    prompt = Prompt(Problem("p", ({"role": "user", "content": "?"},)), (1, 2))
    good = Sample(
        np.arange(4),
        np.arange(4) > 1,
        np.where(np.arange(4) > 1, -1.0, 0.0).astype(np.float32),
        "x",
        "stop",
    )

    class Odd:
        def score(self, problems, texts, samples=None):
            scores = [Score(float(i % 2)) for i in range(len(texts))]
            at = int(rng.integers(len(texts)))
            value = ODD[int(rng.integers(3))]
            scores[at] = (
                Score(value)
                if rng.random() < 0.5
                else Score(1.0, parts={"learned": value, "task": 1.0})
            )
            return scores

    for _ in range(100):
        (group,) = score_groups(Odd(), [prompt], [[good] * 8])
        assert len(group.usable.scores) == 7 and all(math.isfinite(r) for r in group.usable.rewards)
        (bad,) = (s for s in group.scores if not s.usable)
        assert bad.status == "error" and bad.reason
    assert finite(Score(math.nan)).reason == "the reward is nan"


def test_a_hundred_log_probabilities_make_no_sample():
    rng = np.random.default_rng(4)
    for i in range(100):
        logp = np.where(np.arange(6) > 1, -0.5, 0.0).astype(np.float32)
        logp[2 + int(rng.integers(4))] = ODD[i % 3]
        with pytest.raises(ValueError, match="finite"):
            Sample(np.arange(6), np.arange(6) > 1, logp, "x", "stop")


def test_a_run_leaves_the_step_out_counts_it_and_keeps_what_it_was(tmp_path, monkeypatch):
    real, calls = torch.nn.utils.clip_grad_norm_, []

    def norm(parameters, limit):
        calls.append(1)
        return real(parameters, limit) * (math.nan if len(calls) == 2 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    policy, context = world(
        tmp_path, judge=lambda problems, texts: [Score(float(i % 2)) for i in range(len(texts))]
    )
    sft.run(policy, sft_stage(steps=4), context)
    values = [line["values"] for line in lines(tmp_path)]
    assert [v.get("lost") for v in values] == [None, 1.0, None, None] and "loss" not in values[1]
    calls.clear()
    rl.run(policy, rl_stage(steps=4), context)
    values = [line["values"] for line in lines(tmp_path)][4:]
    assert [v.get("lost") for v in values] == [None, 1.0, None, None]
    assert all(math.isfinite(x) for v in values for x in v.values())
    assert [w["stage"] for w in context.log.warnings if "was not finite" in w["text"]] == [
        "base",
        "rl",
    ]
    for stage in ("base", "rl"):
        (file,) = (tmp_path / stage / "lost").iterdir()
        assert file.name == "000002.json" and len(json.loads(file.read_text())) > 0
