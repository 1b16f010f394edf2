"""Whet's rows beside TRL's own trainers: the same tokens, rewards and log-probabilities in, the
same loss and gradient out.

Where the two differ by choice, a test says how, and shows that nothing else differs. What of TRL is
replaced: trl_case.py.
"""

import copy
import importlib.metadata
import importlib.util
from dataclasses import fields, replace

import pytest
import torch

from whet.algorithms import objective
from whet.algorithms.advantages import centred, leave_one_out
from whet.algorithms.batch import pack
from whet.algorithms.losses import clipped, log_ratio, sequence_sum
from whet.algorithms.table import algorithm
from whet.training.learner import policy_logprobs
from whet.training.token_advantages import TokenAdvantages
from whet.types import Sampling

from .helpers.trl_case import COUNT, GROUP, LIMIT, PROMPTS, TOKENS, theirs, trainer, world

VERSION = "1.16.0"  # what is compared with; another may compute something else
BETA = 0.04
EXACT = 1e-12

# whet's row and its cells -> what makes TRL's GRPOTrainer compute the same
ROWS = {
    "grpo": ({"clip_high": 0.28}, {"loss_type": "grpo", "beta": BETA}),
    "grpo without KL": ({"clip_high": 0.28, "kl": "none", "beta": 0.0}, {"loss_type": "grpo"}),
    "dr_grpo": ({"clip_high": 0.28}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dr_grpo with KL": (
        {"clip_high": 0.28, "kl": "k3", "beta": BETA},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": BETA},
    ),
    "dapo": ({}, {"loss_type": "dapo"}),
    "dapo with KL": ({"kl": "k3", "beta": BETA}, {"loss_type": "dapo", "beta": BETA}),
    "gspo": (
        {},
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "cispo": ({}, {"loss_type": "cispo", "epsilon_high": 5.0}),
}


@pytest.fixture(scope="module")
def trl():
    if importlib.util.find_spec("trl") is None:
        pytest.skip(f"trl is not installed; pip install trl=={VERSION}")
    return importlib.import_module("trl")


def row_of(name):
    return algorithm(name.split(" ")[0], ROWS[name][0])


def ours(row, w, advantages=None, weights=None):
    """Loss, gradient by the table, gradient by the entropies."""
    samples = w.samples
    if advantages is None:
        advantages = torch.cat(objective.advantages(row, w.rewards)).tolist()
    weights = (
        objective.weights(row, [s.length for s in samples], LIMIT) if weights is None else weights
    )
    batch = pack(samples, advantages, weights, torch.float64)
    ids = batch.tokens[batch.chosen]
    now, entropy = w.now.clone().requires_grad_(), w.entropy.clone().requires_grad_()
    loss = objective.loss(row, now[ids], entropy[ids], batch, w.ref[ids]).sum()
    grads = torch.autograd.grad(loss, (now, entropy), allow_unused=True)
    return loss.item(), *(torch.zeros_like(w.now) if g is None else g for g in grads)


def their_zscored(w):
    """The deviation with Bessel's correction, and 1e-4 beside it."""
    groups = [torch.tensor(r, dtype=torch.float64) for r in w.rewards]
    return [
        x / (r.std() + 1e-4)
        for r, a in zip(groups, centred(groups), strict=True)
        for x in a.tolist()
    ]


def alike(a, b):
    assert abs(a[0] - b[0]) < EXACT
    assert a[1].abs().max() > 1e-3  # something to compare
    assert (a[1] - b[1]).abs().max() < EXACT and (a[2] - b[2]).abs().max() < EXACT


def test_the_version_compared_with_is_the_one_named(trl):
    assert importlib.metadata.version("trl") == VERSION


def test_the_case_is_a_hard_one():
    w, row = world(), algorithm("dapo")
    samples = w.samples
    batch = pack(
        samples,
        torch.cat(objective.advantages(row, w.rewards)).tolist(),
        [1.0] * COUNT,
        torch.float64,
    )
    bound = objective.bounded(row, w.now[batch.tokens[batch.chosen]], batch)
    assert 5 < bound.sum() < len(bound) / 2
    assert len({s.length for s in samples}) > 5 and min(s.length for s in samples) == 0
    assert {a == 0 for a in batch.advantage.tolist()} == {True, False}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", ROWS)
def test_loss_and_gradient_are_theirs(trl, name, steps, seed):
    """z-scored rows with TRL's deviation in place of ours; nothing else is changed."""
    w, row = world(seed), row_of(name)
    advantages = their_zscored(w) if row.advantage == "zscored" else None
    alike(ours(row, w, advantages), theirs(trl, w, steps=steps, **ROWS[name][1]))


@pytest.mark.parametrize("name", ["grpo without KL", "dapo"])
def test_the_deviation_is_all_that_differs(trl, name):
    """Choice: no correction and 1e-6 beside it, against G - 1 and 1e-4. A factor on the gradient of
    each group: .894 at G = 5.
    """
    w, row = world(), row_of(name)
    (_, mine, _), (_, their, _, advantages) = ours(row, w), theirs(trl, w, **ROWS[name][1])
    own = objective.advantages(row, w.rewards)
    for g, rewards in enumerate(w.rewards):
        r = torch.tensor(rewards, dtype=torch.float64)
        factor = (r.std(correction=0) + 1e-6) / (r.std() + 1e-4)
        places = range(g * GROUP, (g + 1) * GROUP)
        assert (own[g] * factor - advantages[list(places)]).abs().max() < EXACT
        ids = torch.tensor([token for i in places for token in w.answers[i]])
        assert (mine[ids] * factor - their[ids]).abs().max() < EXACT
        assert g == 1 or abs(factor - 0.8944) < 1e-3


def test_equal_rewards_leave_nothing_here_and_a_residue_there(trl):
    """Choice: float64, and exactly 0. TRL's rewards are float32, and rounding divided by 1e-4 is an
    advantage.
    """
    w = world()
    w.rewards = [[0.1] * 10] * 2
    made = trainer(
        trl, "GRPOTrainer", w, 1, {"num_generations": 10, "reward_weights": torch.ones(1)}
    )
    del made._calculate_rewards
    there = made._prepare_inputs([{"prompt": ""}] * COUNT)["advantages"].abs()
    assert there.min() > 7e-5 and there.max() < 8e-5
    assert torch.equal(
        torch.cat(objective.advantages(algorithm("grpo"), w.rewards)),
        torch.zeros(COUNT, dtype=torch.float64),
    )


def test_groups_without_signal_stay_in_the_denominator_there(trl):
    """Choice: `sampling = "dynamic"` leaves them out before the update counts its tokens. Theirs
    keeps them, and every token weighs less.
    """
    w, row = world(), algorithm("dapo")
    lengths = [sum(c) for c in w.chosen]
    kept = [i for i in range(COUNT) if len(set(w.rewards[i // GROUP])) > 1]
    weight = objective.weights(row, [lengths[i] for i in kept], LIMIT)[0]
    share = sum(lengths[i] for i in kept) / sum(lengths)
    mine, there = ours(row, w, their_zscored(w), [weight] * COUNT), theirs(trl, w, loss_type="dapo")
    assert share < 0.9 and (mine[1] * share - there[1]).abs().max() < EXACT


def test_bnpo_is_the_token_mean_of_each_micro_batch(trl):
    """Choice: the denominator of `token_mean` is the update's, so that micro-batches cannot be
    seen. Theirs, loss_type bnpo: each micro-batch's.
    """
    w, row = world(), algorithm("dapo")
    alike(ours(row, w, their_zscored(w)), theirs(trl, w, loss_type="bnpo"))
    torch.manual_seed(0)
    parts = torch.randperm(COUNT).chunk(4)  # as TRL shuffles
    weights = [0.0] * COUNT
    for part in parts:
        for i in part.tolist():
            weights[i] = 1 / 4 / sum(sum(w.chosen[j]) for j in part.tolist())
    there = theirs(trl, w, steps=4, loss_type="bnpo")
    alike(ours(row, w, their_zscored(w), weights), there)
    assert (ours(row, w, their_zscored(w))[1] - there[1]).abs().max() > 1e-3


def test_dapo_over_several_updates_divides_by_their_mean(trl):
    """Choice: each update's own tokens. Theirs: a rollout's tokens / its updates, so an update of
    short answers weighs less.
    """
    w, row = world(), algorithm("dapo")
    loss, there, *_ = theirs(
        trl, w, loss_type="dapo", steps_per_generation=2, gradient_accumulation_steps=1
    )
    torch.manual_seed(0)
    part = torch.randperm(COUNT)[: COUNT // 2].tolist()
    lengths = [sum(c) for c in w.chosen]
    here, total = sum(lengths[i] for i in part), sum(lengths)
    weights = [
        objective.weights(row, [lengths[j] for j in part], LIMIT)[0] if i in part else 0.0
        for i in range(COUNT)
    ]
    mine = ours(row, w, their_zscored(w), weights)
    assert here * 2 != total
    factor = here / (total / 2)
    assert abs(mine[0] * factor - loss) < EXACT and (mine[1] * factor - there).abs().max() < EXACT


def test_the_first_update_has_ratio_1_there_whatever_the_sampler_said(trl):
    """Choice: without `correction` the ratio is against the sampler's log-probabilities, from the
    first update on. Theirs: the trainer's own.
    """
    w, row = world(), row_of("grpo")
    there = theirs(trl, w, num_iterations=1, **ROWS["grpo"][1])
    w.now = w.now.float().double()
    same = theirs(trl, w, num_iterations=1, **ROWS["grpo"][1])
    alike(ours(row, replace(w, old=w.now), their_zscored(w)), same)
    assert (ours(row, w, their_zscored(w))[1] - there[1]).abs().max() > 1e-3


def test_their_entropy_bonus_is_a_token_mean_whatever_the_loss(trl):
    """Choice: the bonus has the row's own weights. Theirs is the mean over a micro-batch's tokens."""
    w, cells = world(), {"entropy_coef": 0.03}
    dapo, grpo = (
        algorithm(n, {"entropy": 0.03, "kl": "none", "beta": 0.0}) for n in ("dapo", "grpo")
    )
    alike(ours(dapo, w, their_zscored(w)), theirs(trl, w, loss_type="dapo", **cells))
    there = theirs(trl, w, loss_type="grpo", **cells)
    assert (
        (ours(dapo, w)[2] - there[2]).abs().max()
        < EXACT
        < 1e-4
        < (ours(grpo, w)[2] - there[2]).abs().max()
    )


# --- RLOO
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
def test_rloo_is_theirs_where_the_policy_has_not_moved(trl, steps):
    """The gradient. As numbers the losses differ: -A log pi(o) here, -A rho with rho = 1 there."""
    w, row = world(tools=False), algorithm("rloo")
    w.now = w.old
    loss, there, _, advantages = theirs(trl, w, "RLOOTrainer", steps)
    mine = ours(row, w)
    assert (mine[1] - there).abs().max() < EXACT and there.abs().max() > 1e-3
    assert (torch.cat(objective.advantages(row, w.rewards)) - advantages).abs().max() < EXACT
    assert abs(loss + advantages.mean()) < EXACT


def test_rloo_off_policy_has_a_clipped_ratio_of_whole_answers_there(trl):
    """Choice: no ratio, one update. Theirs is whet's `clipped` of the product of an answer's
    ratios, and each answer's gradient rho times ours.
    """
    w, row = world(tools=False), algorithm("rloo")
    loss, there, _, _ = theirs(trl, w, "RLOOTrainer", epsilon_high=0.28)
    samples, own = w.samples, torch.cat(objective.advantages(row, w.rewards))
    batch = pack(samples, own.tolist(), [1 / COUNT / s.length for s in samples], torch.float64)
    ids, now = batch.tokens[batch.chosen], w.now.clone().requires_grad_()
    moved = sequence_sum(log_ratio(now[ids], batch.logp_old), batch.sequence)
    built = (clipped(moved, batch.advantage, 0.2, 0.28) * batch.weight).sum()
    alike(
        (built.item(), torch.autograd.grad(built, now)[0], torch.zeros(1)),
        (loss, there, torch.zeros(1)),
    )
    rho = moved.exp().detach()
    stopped = ((rho > 1.28) & (batch.advantage > 0)) | ((rho < 0.8) & (batch.advantage < 0))
    assert 0 < stopped.sum() < len(stopped)
    assert (ours(row, w)[1][ids] * rho * ~stopped - there[ids]).abs().max() < EXACT


def test_rloo_with_kl_in_the_reward_charges_past_tokens_and_the_others_there(trl):
    """Choice: a token pays for the KL from itself on. Theirs: for all of its answer's, less the
    mean of the other answers'; both terms have expectation 0.
    """
    w, beta = world(tools=False), 0.05
    row = algorithm("rloo", {"kl": "k1", "kl_in": "reward", "beta": beta})
    advantages = theirs(trl, w, "RLOOTrainer", beta=beta)[3]
    batch = pack(
        w.samples,
        torch.cat(objective.advantages(row, w.rewards)).tolist(),
        [1.0] * COUNT,
        torch.float64,
    )
    ids, s = batch.tokens[batch.chosen], batch.sequence
    kl = w.old[ids] - w.ref[ids]
    whole = torch.zeros(COUNT, dtype=torch.float64).index_add(0, s, kl)
    rewards = torch.tensor(w.rewards, dtype=torch.float64) - beta * whole.view(PROMPTS, GROUP)
    assert (torch.cat(leave_one_out(list(rewards))) - advantages).abs().max() < EXACT

    class KnownKL(TokenAdvantages):
        def kl(self, batch):
            return kl

    mine = KnownKL(row, Sampling(), 10**6).compute(batch, w.samples, [False] * COUNT)[0].advantage
    past = torch.cat([kl[s == i].cumsum(0) - kl[s == i] for i in range(COUNT)])
    others = torch.cat([(g.sum() - g) / (GROUP - 1) for g in whole.view(PROMPTS, GROUP)])
    assert (mine - beta * past + beta * others[s] - advantages[s]).abs().max() < EXACT


# --- the model
# ------------------------------------------------------------------------------------------


def test_temperature_padding_and_the_shift_are_theirs_on_a_model(trl):
    """A tiny Qwen3 at temperature 0.6: packed here, padded left and right there. TRL's head
    computes in float32, which is the bound.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from whet.model.config import ModelConfig
    from whet.model.huggingface import HuggingFaceModel

    torch.manual_seed(3)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    size = {
        "vocab_size": TOKENS,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    there = Qwen3ForCausalLM(Qwen3Config(**size, **heads, initializer_range=0.4)).double()
    here = HuggingFaceModel(
        copy.deepcopy(there), ModelConfig("qwen3", TOKENS, 16, 2, 4, 2, 8, 24, qk_norm=True)
    )
    add_fused_lm_head(there.eval(), temperature=0.6, outputs=("log_probs", "entropy"))
    w, row, sampling = world(), algorithm("dapo"), Sampling(temperature=0.6)
    lengths, advantages = [s.length for s in w.samples], their_zscored(w)

    def logprobs():
        batch = pack(w.samples, advantages, objective.weights(row, lengths, LIMIT), torch.float64)
        return batch, *policy_logprobs(here, batch, sampling)

    batch, logp, _ = logprobs()
    w.old[batch.tokens[batch.chosen]] = (
        (logp.detach() - 0.3 * torch.rand(len(logp)).double()).float().double()
    )
    batch, logp, entropy = logprobs()
    mine = objective.loss(row, logp, entropy, batch).sum()
    mine.backward()
    made = trainer(trl, "GRPOTrainer", w, 1, {"loss_type": "dapo"})
    loss = made.compute_loss(there, made._prepare_inputs([{"prompt": ""}] * COUNT))
    loss.backward()
    assert abs(mine.item() - loss.item()) < 1e-6
    for (name, p), q in zip(there.named_parameters(), here.hf.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() < 1e-5 * max(1e-2, p.grad.abs().max()), name


def test_defaults_that_differ(trl):
    """Choice: a row is its paper's. Theirs, for every loss: no KL for GRPO, KL for RLOO, DAPO's
    aggregation.
    """
    grpo, rloo = (
        {f.name: f.default for f in fields(getattr(trl, k))} for k in ("GRPOConfig", "RLOOConfig")
    )
    assert (grpo["loss_type"], grpo["beta"], grpo["scale_rewards"], grpo["epsilon"]) == (
        "dapo",
        0.0,
        "group",
        0.2,
    )
    assert (rloo["beta"], rloo["epsilon"], rloo["normalize_advantages"]) == (0.05, 0.2, False)
    assert algorithm("grpo").beta == BETA and algorithm("grpo").aggregation == "sequence_mean"
    assert algorithm("rloo").beta == 0 and algorithm("rloo").ratio == "none"
