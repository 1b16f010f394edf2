"""From an answer's number to its tokens', and what the models beside the policy do: critic,
reference, token-level reward model.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from whet import config
from whet.algorithms import objective
from whet.algorithms.batch import pack
from whet.algorithms.critic import gae, returns_to_go, value_loss
from whet.algorithms.kl import k1
from whet.algorithms.table import algorithm
from whet.model.lora import frozen
from whet.model.value_head import ScalarModel
from whet.rollout.rollout import rollout
from whet.stages import rl
from whet.training.learner import Learner, policy_logprobs
from whet.training.token_advantages import TokenAdvantages, last_tokens
from whet.types import Sample, Sampling, Score

from .helpers.tiny_world import rl_stage, world

SAMPLING = Sampling(n=4, temperature=0.7, max_tokens=8)


def naive_gae(rewards, values, after, gamma, lam):
    """The double sum of the definition."""
    v = [*values, after]
    delta = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(len(rewards))]
    return [
        sum((gamma * lam) ** (j - t) * delta[j] for j in range(t, len(delta)))
        for t in range(len(delta))
    ]


def test_gae_is_the_sum_of_its_definition_for_ragged_packs():
    rng = np.random.default_rng(0)
    lengths = [1, 4, 2, 7]
    sequence = torch.tensor(np.repeat(range(4), lengths))
    rewards, values = (torch.tensor(rng.normal(size=14)) for _ in range(2))
    after, lam = (
        torch.tensor([0.3, 0.0, -1.2, 0.7]).double(),
        torch.tensor([0.9, 0.5, 0.0, 1.0]).double(),
    )
    got = gae(rewards, values, after, sequence, 0.8, lam)
    for i in range(4):
        own = sequence == i
        want = naive_gae(
            rewards[own].tolist(), values[own].tolist(), after[i].item(), 0.8, lam[i].item()
        )
        assert got[own].tolist() == pytest.approx(want, abs=1e-12)
    sums = returns_to_go(rewards, sequence, 0.5)
    assert sums[1].item() == pytest.approx(sum(0.5**k * rewards[1 + k].item() for k in range(4)))
    assert len(gae(rewards[:0], values[:0], after[:0], sequence[:0], 1.0, lam[:0])) == 0


def drawn(tmp_path, judge=None, count=3):
    """Groups that a model of the test world really sampled."""
    judge = judge or (lambda p, t: [Score(float(i % 3 == 0)) for i in range(len(t))])
    model, context = world(tmp_path, judge)
    prompts = context.prompts(context.task.problems("train", count, 1))
    groups = rollout(
        context.engine(model, context.chat), context.reward, prompts, replace(SAMPLING, seed=4)
    )
    return model, context, groups


def parts(groups):
    samples = [s for g in groups for s in g.samples]
    return (
        samples,
        [c.correct for g in groups for c in g.scores],
        [c.value for g in groups for c in g.scores],
    )


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_kl_in_the_reward_is_what_lies_ahead_of_each_token(tmp_path):
    _, _, groups = drawn(tmp_path)
    reference = frozen(world(tmp_path, seed=9)[0])
    samples, right, rewards = parts(groups)
    row = algorithm("reinforce_pp", {"normalise": False, "beta": 0.3, "gamma": 0.9})
    batch = pack(samples, rewards, [1.0] * len(samples))
    got = TokenAdvantages(row, SAMPLING, 40, reference).compute(batch, samples, right)[0].advantage
    with torch.no_grad():
        kl = k1(batch.logp_old, policy_logprobs(reference, batch, SAMPLING)[0])
    for i in range(len(samples)):
        own = kl[batch.sequence == i].tolist()
        want = [
            rewards[i] - 0.3 * sum(0.9 ** (j - t) * own[j] for j in range(t, len(own)))
            for t in range(len(own))
        ]
        assert got[batch.sequence == i].tolist() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_critic_sees_the_state_before_each_token_and_beyond_a_cut(tmp_path, bootstrap):
    model, _, groups = drawn(tmp_path)
    samples, right, rewards = parts(groups)
    samples = [replace(s, finish="length" if i % 2 else "stop") for i, s in enumerate(samples)]
    critic = ScalarModel(model)
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(1))
    row = algorithm(
        "ppo",
        {
            "kl": "none",
            "beta": 0.0,
            "normalise": False,
            "gamma": 0.9,
            "critic": {"lam": 0.6, "bootstrap": bootstrap},
        },
    )
    batch = pack(samples, rewards, [1.0] * len(samples))
    with torch.no_grad():
        states = critic(batch.tokens, batch.positions, batch.starts)
    learner = Learner(critic, config.Optimizer(lr=1e-3), 10)
    got, figures = TokenAdvantages(row, SAMPLING, 30, None, learner).compute(batch, samples, right)
    for i, s in enumerate(samples):
        a, b = int(batch.starts[i]), int(batch.starts[i + 1])
        values = [states[a + t - 1].item() for t in range(len(s.tokens)) if s.mask[t]]
        after = states[b - 1].item() if bootstrap and i % 2 else 0.0
        want = naive_gae([0.0] * (len(values) - 1) + [rewards[i]], values, after, 0.9, 0.6)
        assert got.advantage[batch.sequence == i].tolist() == pytest.approx(want, abs=1e-5)
    assert figures["value_loss"] > 0 and learner.done == row.critic.updates


def test_the_critic_is_taught_the_state_before_each_token(tmp_path):
    """Its first loss is the mean square of what its own values were off by: (R - V)^2 / 2, R from
    its own lambda.
    """
    model, _, groups = drawn(tmp_path)
    samples, right, rewards = parts(groups)
    critic = ScalarModel(model)
    torch.nn.init.normal_(critic.value_head.weight, generator=torch.Generator().manual_seed(1))
    row = algorithm(
        "ppo_orz", {"gamma": 0.9, "critic": {"lam": 0.3, "lam_critic": 0.8, "updates": 1}}
    )
    batch = pack(samples, rewards, [1.0] * len(samples))
    with torch.no_grad():
        states = critic(batch.tokens, batch.positions, batch.starts)
    _, figures = TokenAdvantages(
        row, SAMPLING, 30, None, Learner(critic, config.Optimizer(), 10)
    ).compute(batch, samples, right)
    off = []
    for i, s in enumerate(samples):
        values = [
            states[int(batch.starts[i]) + t - 1].item() for t in range(len(s.tokens)) if s.mask[t]
        ]
        off += naive_gae([0.0] * (len(values) - 1) + [rewards[i]], values, 0.0, 0.9, 0.8)
    assert figures["value_loss"] == pytest.approx(np.mean(np.square(off)) / 2, rel=1e-4)


def test_the_critic_learns_what_answers_are_worth(tmp_path):
    """Right answers begin with the first token's id even: after enough rollouts the value of the
    state behind it says so.
    """
    model, _, groups = drawn(tmp_path, count=8)
    samples, _, _ = parts(groups)
    rewards = [float(s.tokens[s.mask][0] % 2) for s in samples]
    row = algorithm("ppo_orz", {"critic": {"updates": 3, "value_clip": 0.0}})
    tokens = TokenAdvantages(
        row, SAMPLING, 500, None, Learner(ScalarModel(model), config.Optimizer(lr=3e-3), 300)
    )
    batch = pack(samples, rewards, [1.0] * len(samples))
    figures = [tokens.compute(batch, samples, [False] * len(samples))[1] for _ in range(60)]
    assert (
        figures[0]["explained"] < 0.1 < 0.6 < figures[-1]["explained"]
        and figures[-1]["value_loss"] < 0.3 * figures[0]["value_loss"]
    )


def test_while_the_critic_warms_up_the_policy_stays(tmp_path):
    model, context, _ = drawn(tmp_path)
    before = weights_of(model)
    rl.run(
        model,
        rl_stage(algorithm="ppo_orz", steps=2, override={"warmup": 2, "critic": {"updates": 2}}),
        context,
    )
    assert torch.equal(weights_of(model), before)
    rl.run(
        model,
        rl_stage(algorithm="ppo_orz", steps=3, override={"warmup": 2, "critic": {"updates": 2}}),
        context,
    )
    assert not torch.equal(weights_of(model), before)


def test_the_reference_and_the_critic_are_models_of_their_own(tmp_path):
    model, context, groups = drawn(tmp_path)
    stage = rl_stage(algorithm="ppo", critic=config.Critic(lr=0.02))
    trainer = rl.prepared(model, stage, context)
    reference, critic = weights_of(trainer.reference), weights_of(trainer.critic.model)
    assert trainer.critic.settings.lr == 0.02 and trainer.learner.settings.lr == 3e-3
    before = weights_of(model)
    trainer.update(groups)
    assert torch.equal(weights_of(trainer.reference), reference) and not any(
        p.requires_grad for p in trainer.reference.parameters()
    )
    assert not torch.equal(weights_of(model), before) and not torch.equal(
        weights_of(trainer.critic.model), critic
    )
    assert not {id(p) for p in model.parameters()} & {
        id(p) for p in trainer.critic.model.parameters()
    }


def test_last_tokens_are_those_before_the_next_sequence():
    mask = np.array([False, True, True])
    one = Sample(np.array([1, 2, 3]), mask, np.zeros(3, np.float32), "", "stop")
    assert last_tokens(pack([one, one], [1.0, 1.0], [1.0, 1.0])).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("value", "clip", "loss", "slope"),
    [
        (0.1, 0.2, 0.405, -0.9),  # has moved by less than the clip: plain
        (
            0.5,
            0.2,
            0.32,
            0.0,
        ),  # has moved towards its target by more: the bounded value's loss, and no gradient
        (
            -0.5,
            0.2,
            1.125,
            -1.5,
        ),  # has moved away: the larger is the plain one, which pulls it back
        (0.5, 0.0, 0.125, -0.5),  # no clip
    ],
)
def test_a_value_that_has_moved_enough_gets_no_more_gradient(value, clip, loss, slope):
    at = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    each = value_loss(
        at, torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), clip
    )
    each.sum().backward()
    assert each.item() == pytest.approx(loss) and at.grad.item() == pytest.approx(slope)


def test_the_rows_value_clip_is_the_one_that_is_used(tmp_path):
    """Targets of 5 and values at 0: after the first of two mini-batches' steps a tight clip has no
    gradient left to give.
    """
    model, _, groups = drawn(tmp_path)
    samples, right, _ = parts(groups)
    moved = {}
    for clip in (0.0, 0.01):
        critic = ScalarModel(model)
        learner = Learner(critic, config.Optimizer(lr=1e-2), 40)
        tokens = TokenAdvantages(
            algorithm("ppo_orz", {"critic": {"updates": 12, "value_clip": clip}}),
            SAMPLING,
            1000,
            None,
            learner,
        )
        tokens.compute(pack(samples, [5.0] * len(samples), [1.0] * len(samples)), samples, right)
        again = tokens.values(
            pack(samples, [5.0] * len(samples), [1.0] * len(samples)),
            torch.zeros(len(samples)).bool(),
        )
        moved[clip] = float(again[0].mean())
    assert 0.0 < moved[0.01] < 0.5 * moved[0.0]


def test_a_token_level_reward_model_is_asked_before_it_learns_and_learns_which_answers_were_right(
    tmp_path,
):
    model, _, groups = drawn(tmp_path)
    samples, right, _ = parts(groups)
    judge = ScalarModel(model)
    torch.nn.init.normal_(judge.value_head.weight, generator=torch.Generator().manual_seed(2))
    row = algorithm("oreal")
    rewards = [
        a for g in objective.advantages(row, [g.rewards for g in groups]) for a in g.tolist()
    ]
    batch = pack(samples, rewards, [1.0] * len(samples))
    with torch.no_grad():
        w = judge(batch.tokens, batch.positions, batch.starts)[batch.chosen]
    tokens = TokenAdvantages(row, SAMPLING, 30, None, Learner(judge, config.Optimizer(lr=3e-3), 60))
    got, figures = tokens.compute(batch, samples, right)
    losses = []
    for i, ok in enumerate(right):
        own = w[batch.sequence == i]
        lean = [2 / (1 + np.exp(-x)) - 1 for x in own.tolist()]
        weights = [max(x if ok else -x, 0.0) for x in lean]
        assert got.advantage[batch.sequence == i].tolist() == pytest.approx(
            [rewards[i] * x for x in weights], abs=1e-5
        )
        chance = 1 / (1 + np.exp(-own.mean().item()))
        losses.append(-np.log(chance if ok else 1 - chance))
    assert figures["token_reward_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    later = [tokens.compute(batch, samples, right)[1]["token_reward_loss"] for _ in range(50)]
    assert later[-1] < 0.5 * figures["token_reward_loss"]
