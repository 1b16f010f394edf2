"""The optimizer's step: its gradient, however the loss was split."""

import copy
from dataclasses import replace

import pytest
import torch

from whet import config
from whet.algorithms.batch import pack
from whet.algorithms.losses import policy_gradient
from whet.algorithms.table import algorithm
from whet.engines import engine_for
from whet.model.config import ModelConfig
from whet.model.transformer import Transformer
from whet.stages import rl, sft
from whet.stages.rl import Trainer
from whet.training.learner import Learner
from whet.types import Group, Problem, Prompt, Sampling, Score

from .helpers.tiny_world import lines, rl_stage, sample, sft_stage, take_step, world

SAMPLING = Sampling(temperature=0.6, max_tokens=9)


class Recorder:
    """In an optimizer's place: keeps the gradients and the learning rate of every step, and changes
    nothing.
    """

    def __init__(self, learner):
        self.parameters, self.param_groups, self.steps = learner.parameters, [{"lr": 1.0}], []
        learner.optimizers, learner.base_lr = [self], [[1.0]]

    def step(self):
        gradient = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        self.steps.append((self.param_groups[0]["lr"], gradient))

    def zero_grad(self, set_to_none):
        for p in self.parameters:
            p.grad = None


def recorded(model, **settings):
    learner = Learner(model, config.Optimizer(**{"lr": 1.0, "max_grad_norm": 1e9, **settings}), 6)
    return learner, Recorder(learner)


def batch_of(dtype=torch.float64):
    samples = [
        sample([1, 2, 3, 4], [0, 1, 1, 1]),
        sample([1, 5], [0, 1]),
        sample([1, 2, 6], [0, 0, 1]),
    ]
    return pack(samples, [0.7, -1.3, 0.4], [0.1, 0.45, 0.3], dtype)


def by_hand(model, batch, temperature=0.6):
    """The gradient of sum_t w A (-log pi) over chosen tokens, one sequence at a time."""
    total = 0.0
    for i in range(batch.sequences):
        one = batch.take([i])
        logits = model.logits(model.packed(one.tokens, one.positions, one.starts)) / temperature
        logp = logits.log_softmax(-1)[one.chosen - 1, one.tokens[one.chosen]]
        total = total - (logp * one.advantage * one.weight).sum()
    grads = torch.autograd.grad(
        total, [p for p in model.parameters() if p.requires_grad], allow_unused=True
    )
    return torch.cat([g.flatten() for g in grads if g is not None])


def loss_of(model):
    from whet.training.learner import policy_logprobs

    return lambda micro: policy_gradient(
        policy_logprobs(model, micro, SAMPLING)[0], micro.advantage
    )


@pytest.mark.parametrize("micro_tokens", [1, 5, 1000])
def test_a_step_sees_the_weighted_gradient_and_starts_afresh(tmp_path, micro_tokens):
    model = world(tmp_path)[0].double()
    learner, record = recorded(model)
    batch = batch_of()
    want = by_hand(model, batch)
    for _ in range(2):  # the second must not carry the first one's gradient
        take_step(learner, batch, micro_tokens, loss_of(model))
    assert all((gradient - want).abs().max() < 1e-10 for _, gradient in record.steps)


def test_the_gradient_is_clipped_and_the_schedule_followed(tmp_path):
    model = world(tmp_path)[0].double()
    learner, record = recorded(model, max_grad_norm=0.01, schedule="linear", warmup=2)
    steps = [take_step(learner, batch_of(), 100, loss_of(model)) for _ in range(4)]
    want = by_hand(model, batch_of())
    for (rate, gradient), share in zip(record.steps, [0.5, 1.0, 1.0, 0.75], strict=True):
        assert gradient.norm().item() == pytest.approx(0.01, rel=1e-3) and rate == share
        assert torch.allclose(gradient / gradient.norm(), want / want.norm())
    assert steps[0].grad_norm == pytest.approx(want.norm().item())


def test_right_and_wrong_answers_both_move_the_policy(tmp_path):
    """The trainer's own path from groups to a step, against the sum written out."""
    model = world(tmp_path)[0].double()
    learner, record = recorded(model)
    problem = Problem("p", ())
    samples = tuple(
        sample(tokens, [0, 0] + [1] * (len(tokens) - 2))
        for tokens in ([1, 2, 3, 4], [1, 2, 5], [1, 2, 6, 6, 4])
    )
    group = Group(Prompt(problem, (1, 2)), samples, (Score(1.0), Score(0.0), Score(0.25)))
    row = algorithm("rloo")
    Trainer(learner, row, SAMPLING, 100).update([group])
    batch = pack(samples, [1 - 0.125, -0.625, 0.25 - 0.5], [1 / 3] * 3, torch.float64)
    assert (record.steps[0][1] - by_hand(model, batch)).abs().max() < 1e-6


def test_every_step_draws_with_a_seed_of_its_own(tmp_path):
    seeds = []

    def spied(policy, chat):
        engine = engine_for(policy, chat)
        plain = engine.generate

        def generate(prompts, sampling, progress=None):
            seeds.append(sampling.seed)
            return plain(prompts, sampling, progress)

        engine.generate = generate
        return engine

    model, context = world(tmp_path)
    context = replace(context, engine=spied)
    rl.run(model, rl_stage(steps=3), context)
    rl.run(model, rl_stage(steps=3), replace(context, seed=context.seed + 1))
    assert len(seeds) == len(set(seeds)) == 6


def test_sft_loss_is_the_mean_over_response_tokens(tmp_path):
    """Ragged responses: the mean over tokens is not the mean over documents."""
    model, context = world(tmp_path)
    untouched = copy.deepcopy(model)
    stage = sft_stage(steps=1, batch=6, mix={"direct": 0.5, "careful": 0.5})
    pairs = context.task.corpus(stage.mix, 4096, context.seed * 100_003)[:6]
    sft.run(model, stage, context)
    total = count = 0.0
    for problem, response in pairs:
        made = context.example(problem, response)
        one = pack([made], [1.0], [1.0])
        hidden = untouched.packed(one.tokens, one.positions, one.starts)
        logp = untouched.logits(hidden).log_softmax(-1)[one.chosen - 1, one.tokens[one.chosen]]
        total, count = total - logp.sum().item(), count + len(logp)
    assert len({len(r) for _, r in pairs}) > 1
    assert lines(tmp_path)[0]["values"]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_broken_gradient_leaves_the_weights_alone(tmp_path):
    model, _ = world(tmp_path)
    learner = Learner(model, config.Optimizer(lr=1.0), 1)
    before = copy.deepcopy(model.state_dict())
    batch = pack([sample([1, 2, 3], [False, True, True])], [float("nan")], [1.0])
    stepped = take_step(
        learner,
        batch,
        100,
        lambda m: model.logits(model.packed(m.tokens, m.positions, m.starts)).sum() * m.advantage,
    )
    assert stepped.lost and learner.done == 0
    assert all((before[k] == v).all() for k, v in model.state_dict().items())


def test_schedules():
    model = Transformer(ModelConfig("qwen3", 5, 8, 1, 2, 2, 4, 8))
    rates = {}
    for schedule in ("constant", "linear", "cosine"):
        learner = Learner(model, config.Optimizer(lr=1.0, schedule=schedule, warmup=2), 6)
        rates[schedule] = []
        for learner.done in range(6):
            rates[schedule].append(round(learner.lr_scale, 4))
    assert rates["constant"] == [0.5, 1.0, 1, 1, 1, 1]
    assert rates["linear"] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates["cosine"] == [0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464]
