"""From groups to optimizer steps: corrections, mini-batches, prompts by failure, and what a stage
refuses.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from whet import config
from whet.algorithms import objective
from whet.algorithms.table import algorithm
from whet.errors import ModelError, RecipeError
from whet.rollout.curriculum import Prioritised
from whet.stages import rl
from whet.training.learner import Learner
from whet.training.token_advantages import shares
from whet.training.trainer import Trainer
from whet.types import Group, Problem, Prompt, Sample, Score

from .helpers.tiny_world import lines, rl_stage, world
from .test_token_advantages import SAMPLING, drawn


def test_a_sampler_that_differs_is_corrected(tmp_path):
    """Log-probabilities that are off by a constant: the weight is what they are off by, bounded;
    ratios start from 1.
    """
    model, _, groups = drawn(tmp_path)
    shift = 0.4

    def moved(s):
        return Sample(
            s.tokens,
            s.mask,
            np.where(s.mask, s.logp - shift, 0).astype(np.float32),
            s.text,
            s.finish,
        )

    off = [Group(g.prompt, tuple(moved(s) for s in g.samples), g.scores) for g in groups]

    def gradient(cells, scored):
        net = copy.deepcopy(model)
        learner = Learner(net, config.Optimizer(lr=1e-9, max_grad_norm=1e9), 1)
        figures, _ = Trainer(learner, algorithm("rloo", cells), SAMPLING, 1000).update(scored)
        return figures

    plain = gradient({}, groups)["grad_norm"]
    for cap, factor in ((2.0, np.exp(shift)), (1.2, 1.2)):
        figures = gradient({"correction": "token", "cap": cap}, off)
        assert figures["grad_norm"] == pytest.approx(plain * factor, rel=1e-3)
        assert figures["sampler_gap"] == pytest.approx(shift, abs=1e-3) and figures[
            "corrected"
        ] == float(cap < 1.4)
        assert figures["gap"] < 1e-4
    assert gradient({"correction": "sequence", "cap": 2.0}, off)["grad_norm"] == pytest.approx(
        plain, rel=1e-3
    )
    assert gradient({"correction": "sequence", "cap": 1.2}, off)["grad_norm"] == 0.0


def test_a_rollouts_mini_batches_are_its_groups_in_turn(tmp_path):
    assert [list(s) for s in shares(5, 2)] == [[0, 1], [2, 3, 4]] and [
        list(s) for s in shares(2, 4)
    ] == [[0], [1]]
    model, _, groups = drawn(tmp_path, count=5)
    learner = Learner(model, config.Optimizer(lr=1e-4), 4)
    _, advantages = Trainer(learner, algorithm("rloo", {"updates": 2}), SAMPLING, 1000).update(
        groups
    )
    assert learner.done == 2 and [len(a) for a in advantages] == [4] * 5
    want = objective.advantages(algorithm("rloo"), [g.rewards for g in groups])
    assert all(a == pytest.approx(w.tolist()) for a, w in zip(advantages, want, strict=True))


def test_kimi_forgets_the_optimizer_with_every_rollout(tmp_path):
    model, _, groups = drawn(tmp_path)
    for cells, steps in (
        ({"fresh_optimizer": True, "updates": 1, "tau": 0.0}, 1.0),
        ({"fresh_optimizer": False, "updates": 1, "tau": 0.0}, 2.0),
    ):
        learner = Learner(copy.deepcopy(model), config.Optimizer(lr=1e-4), 4)
        trainer = Trainer(learner, algorithm("kimi", cells), SAMPLING, 1000)
        trainer.update(groups)
        trainer.update(groups)
        state = next(iter(learner.optimizers[0].state.values()))
        assert float(state["step"]) == steps


def group(problem, right):
    one = Sample(np.array([1, 2]), np.array([False, True]), np.zeros(2, np.float32), "", "stop")
    return Group(Prompt(problem, (1,)), (one,) * len(right), tuple(Score(float(r)) for r in right))


def test_prompts_come_in_proportion_to_failure():
    problems = [Problem(str(i), ({"role": "user", "content": str(i)},)) for i in range(4)]
    pool = Prioritised(iter(problems), 4, seed=0)
    pool.learn(
        [group(p, r) for p, r in zip(problems, ([1, 1], [1, 0], [0, 0], [1, 1]), strict=True)]
    )
    counts = [0] * 4
    for _ in range(4000):
        counts[int(pool.draw(1)[0].id)] += 1
    assert counts[0] == counts[3] == 0 and counts[2] / counts[1] == pytest.approx(2.0, rel=0.12)
    assert {p.id for p in pool.draw(4)} == {"0", "1", "2", "3"}  # solved ones fill up
    assert len(pool.draw(6)) == 6
    pool.learn([group(problems[2], [1, 1]), group(problems[1], [1, 1])])
    assert {pool.draw(1)[0].id for _ in range(60)} == {"0", "1", "2", "3"}


def test_keys_that_a_row_does_not_read_are_refused(tmp_path):
    model, context = world(tmp_path)
    for keys, words in (
        ({"critic": config.Critic()}, "trains no critic"),
        ({"reference": "elsewhere"}, "has no KL"),
        ({"pool": 9}, "in order"),
        ({"algorithm": "distil_on_policy"}, "name it"),
    ):
        with pytest.raises(RecipeError, match=words):
            rl.run(model, rl_stage(**keys), context)
    other = copy.deepcopy(model)
    other.config = replace(other.config, vocab=99)
    with pytest.raises(ModelError, match="the same tokens"):
        rl.run(
            model,
            rl_stage(algorithm="distil_on_policy", reference="big"),
            replace(context, model=lambda name: other),
        )


def test_a_teachers_distribution_is_learnt_from_own_samples(tmp_path):
    model, context = world(tmp_path)
    teacher = world(tmp_path, seed=8)[0]
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.15)
    context = replace(context, model=lambda name: teacher)
    stage = rl_stage(
        algorithm="distil_on_policy",
        reference="teacher",
        steps=30,
        prompts=16,
        optimizer=config.Optimizer(lr=5e-3),
    )
    rl.run(model, stage, context)
    kl = [line["values"]["kl"] for line in lines(tmp_path)]
    assert np.mean(kl[-3:]) < 0.65 * np.mean(kl[:3])
