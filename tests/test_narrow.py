"""Training in bfloat16: the optimizer's copies in float32 lose no update, and the weights are what
they round to.
"""

import copy

import numpy as np
import pytest
import torch

from whet import config
from whet.algorithms.batch import pack
from whet.model.config import ModelConfig
from whet.model.value_head import ScalarModel
from whet.preflight import check, memory
from whet.stages import rl, sft
from whet.training.learner import Learner

from .helpers.tiny_world import lines, rl_stage, sample, sft_stage, take_step, world


def batch_of(model):
    return pack(
        [sample([1, 2, 3, 4], [0, 1, 1, 1]), sample([1, 5], [0, 1]), sample([1, 2, 6], [0, 0, 1])],
        [0.7, -1.3, 0.4],
        [0.1, 0.45, 0.3],
    )


def stepped(model, lr, steps, micro_tokens=100, kind="adamw"):
    learner = Learner(model, config.Optimizer(kind=kind, lr=lr), steps)

    def loss_of(micro):
        hidden = model.packed(micro.tokens, micro.positions, micro.starts)[micro.chosen - 1]
        logp = model.logits(hidden).float().log_softmax(-1)
        return -logp.gather(1, micro.tokens[micro.chosen][:, None]).squeeze(1) * micro.advantage

    for _ in range(steps):
        take_step(learner, batch_of(model), micro_tokens, loss_of)
    return learner


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_too_small_for_bfloat16_add_up(tmp_path, kind):
    narrow = world(tmp_path)[0].bfloat16()
    wide, before = copy.deepcopy(narrow).float(), copy.deepcopy(narrow)
    told = [stepped(model, 2e-6, 200, kind=kind) for model in (narrow, wide)]
    moved = [
        torch.cat([p.flatten() for p in x.parameters])
        - torch.cat([p.float().flatten() for p in before.parameters()])
        for x in told
    ]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.9
    assert 0.8 < moved[0].norm() / moved[1].norm() < 1.25
    assert all(
        torch.equal(p, m.bfloat16()) and m.dtype == torch.float32
        for p, m in zip(narrow.parameters(), told[0].parameters, strict=True)
    )
    assert any(
        not torch.equal(a, b) for a, b in zip(narrow.parameters(), before.parameters(), strict=True)
    )


def test_micro_batches_are_summed_up_in_float32(tmp_path):
    model = world(tmp_path)[0].bfloat16()
    other = copy.deepcopy(model)
    learners = [stepped(m, 1e-2, 1, micro) for m, micro in ((model, 100), (other, 1))]
    assert all(p.grad is None for x in learners for p in (*x.weights, *x.parameters))
    for a, b in zip(learners[0].parameters, learners[1].parameters, strict=True):
        assert (a - b).abs().max() < 2.1e-2  # Adam's first step is lr times a sign
    exact = world(tmp_path)[0].bfloat16().float()
    (wide,) = (stepped(exact, 1e-2, 1),)
    agree = [
        ((a - b).abs() < 1e-3).float().mean()
        for a, b in zip(learners[1].parameters, wide.parameters, strict=True)
        if a.ndim > 1
    ]
    assert min(agree) > 0.9


def test_what_is_kept_is_the_copies(tmp_path):
    model = world(tmp_path)[0].bfloat16()
    learner = stepped(model, 1e-4, 3)
    held = learner.state()
    assert all(
        held.tensors[f"weight/{i}"].dtype == torch.float32 for i in range(len(learner.weights))
    )
    fresh = world(tmp_path)[0].bfloat16()
    other = Learner(fresh, config.Optimizer(lr=1e-4), 3)
    other.restore(held)
    for a, b in zip(learner.parameters, other.parameters, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b) and b.dtype == torch.bfloat16


@pytest.mark.parametrize("algorithm", ["dr_grpo", "ppo"])
def test_stages_learn_in_bfloat16(tmp_path, algorithm):
    model, context = world(tmp_path)
    model.bfloat16()
    sft.run(model, sft_stage(steps=20), context)
    rl.run(model, rl_stage(steps=2, algorithm=algorithm), context)
    told = lines(tmp_path)
    losses = [line["values"]["loss"] for line in told if line["stage"] == "base"]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert (
        all(np.isfinite(line["values"].get("loss", 0.0)) for line in told)
        and next(model.parameters()).dtype == torch.bfloat16
    )


def test_a_critic_has_copies_too(tmp_path):
    critic = ScalarModel(world(tmp_path)[0].bfloat16())
    learner = Learner(critic, config.Optimizer(), 1)
    assert {p.dtype for p in learner.parameters} == {torch.float32} and {
        p.dtype for p in learner.weights
    } == {torch.bfloat16}


def test_check_allows_what_rounding_makes_and_counts_the_copies(tmp_path):
    model, context = world(tmp_path)
    problems = context.task.problems("test", 4, 0)
    assert check.allowed_gap(model) == 1e-3 < check.allowed_gap(copy.deepcopy(model).bfloat16())
    assert "nats" in check.sampler(context, model.bfloat16(), problems)
    shape, stage = ModelConfig("qwen3", 16, 32, 1, 2, 2, 16, 48), sft_stage()
    wide, narrow = (
        memory.peak_elements(stage, shape, 10**6, model=config.Model(dtype=d))
        for d in ("float32", "bfloat16")
    )
    assert narrow - wide == 6e6  # 20 bytes a weight, beside 16
