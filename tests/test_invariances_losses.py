"""What must not change the gradient of a row's loss, on 1,000 random ragged batches each, in
float64, to 1e-10. The rows take turns.

The policy is a bigram (the token before decides), so that a batch costs a millisecond; what only a
network can break (neighbours in a pack, padding) is shown on a transformer of two layers.
test_invariances.py goes the whole way through the trainer.
"""

import random

import numpy as np
import pytest
import torch

from whet.algorithms import objective
from whet.algorithms.batch import pack
from whet.algorithms.table import TABLE
from whet.training.learner import policy_logprobs
from whet.types import Sample, Sampling

from .test_gradient import SAMPLING, packed, tiny

BATCHES, VOCAB, EOS, LIMIT, CLOSE = 1000, 6, 1, 12, 1e-10
ROWS = list(TABLE.values())
PI, REF = (
    torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2)
)


def sample(rng, empty=False):
    """A prompt, an answer, sometimes tool output and a second answer; EOS, which also pads,
    anywhere. `empty`: nothing was chosen.
    """
    mask = [False] * rng.randrange(1, 5)
    for turn in range(rng.choice([1, 1, 2])):
        mask += [False] * (rng.randrange(0, 4) if turn else 0) + [not empty] * rng.randrange(1, 6)
    tokens = [rng.choice([EOS, *range(VOCAB)]) for _ in mask]
    logp = np.where(mask, [-rng.random() * 3 for _ in mask], 0.0).astype(np.float32)
    return Sample(np.array(tokens), np.array(mask), logp, "", "stop")


class Case:
    """Answers of unequal length with their advantages, as some row makes them."""

    def __init__(self, seed, empty=False):
        rng = self.rng = random.Random(seed)
        row = self.row = ROWS[seed % len(ROWS)]
        sizes = [rng.randrange(1, 5) for _ in range(rng.randrange(1, 5))]
        rewards = [[rng.choice([0.0, 0.1, 1.0, -0.5]) for _ in range(n)] for n in sizes]
        right = [r > 0.5 for group in rewards for r in group]
        self.samples = [sample(rng, empty or rng.random() < 0.05) for _ in right]
        self.advantages = [
            a for group in objective.advantages(row, rewards) for a in group.tolist()
        ]
        if row.per_token:  # what a critic or a KL makes of them: a number for each token
            self.advantages = [
                np.array([rng.gauss(0, 1) for _ in range(s.length)]) for s in self.samples
            ]
        lengths = [s.length for s in self.samples]
        self.weights, self.clones = (
            objective.weights(row, lengths, LIMIT),
            objective.clone_weights(row, lengths, right),
        )

    def batch(self):
        return packed(self.samples, self.advantages, self.weights, self.clones)


def loss_of(row, batch, table):
    before, after = batch.tokens[batch.chosen - 1], batch.tokens[batch.chosen]
    spread = (table / 0.6).log_softmax(-1)
    entropy = -(spread.exp() * spread).sum(-1)[before]
    ref = (REF / 0.6).log_softmax(-1)[before, after] if row.needs_reference else None
    return objective.loss(row, spread[before, after], entropy, batch, ref).sum()


def gradient(row, batches):
    table = PI.clone().requires_grad_()
    slope = torch.autograd.grad(sum(loss_of(row, b, table) for b in batches), table)[0]
    assert slope.isfinite().all()
    return slope


def same(a, b):
    return (a - b).abs().max() < CLOSE


def test_any_split_into_ranks_and_micro_batches_gives_the_same_gradient():
    moved = 0
    for seed in range(BATCHES):
        case = Case(seed)
        batch, rng = case.batch(), case.rng
        whole = gradient(case.row, [batch])
        order, count = list(range(batch.sequences)), rng.randrange(1, 5)
        rng.shuffle(order)
        ranks = [part for i in range(count) if (part := sorted(order[i::count]))]
        pieces = [micro for part in ranks for micro in batch.take(part).split(rng.randrange(1, 60))]
        assert sum(p.sequences for p in pieces) == batch.sequences
        assert same(gradient(case.row, pieces), whole)
        moved += bool(whole.abs().max() > 1e-4)
    assert moved > 0.7 * BATCHES


def dense(case):
    """The same loss on [S, L] padded arrays: every slot is computed, then multiplied by the mask."""
    row, samples, width = case.row, case.samples, max(len(s.tokens) for s in case.samples)
    table = PI.clone().requires_grad_()
    spread, ref = (table / 0.6).log_softmax(-1), (REF / 0.6).log_softmax(-1)
    tokens = torch.full((len(samples), width), EOS)
    mask, old, advantage = (torch.zeros(len(samples), width, dtype=torch.float64) for _ in range(3))
    for i, (s, a) in enumerate(zip(samples, case.advantages, strict=True)):
        n = len(s.tokens)
        tokens[i, :n], mask[i, :n] = torch.from_numpy(s.tokens), torch.from_numpy(s.mask).double()
        old[i, :n] = torch.from_numpy(s.logp).double()
        advantage[i, :n][torch.from_numpy(s.mask)] = torch.as_tensor(
            np.broadcast_to(a, s.length).copy()
        ).double()
    mask, old, advantage = mask[:, 1:], old[:, 1:], advantage[:, 1:]
    logp = spread[tokens[:, :-1], tokens[:, 1:]]
    moved = (logp - old) * mask
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    rho = (moved.sum(1, keepdim=True) / lengths if row.ratio == "sequence" else moved).exp()
    bounded = rho.clamp(1 - row.clip_low, 1 + row.clip_high)
    if row.ratio == "none":
        term = -advantage * logp
    elif row.ratio == "weight":
        term = -bounded.detach() * advantage * logp
    else:
        term = -torch.minimum(rho * advantage, bounded * advantage)
    if row.needs_reference:
        d = ref[tokens[:, :-1], tokens[:, 1:]] - logp
        term = term + row.beta * (d**2 / 2 if row.kl == "k2" else d.exp() - d - 1)
    each = (term * mask).sum(1) + row.tau * moved.sum(1) ** 2 / 2
    weights, clones = (torch.tensor(x, dtype=torch.float64) for x in (case.weights, case.clones))
    total = (each * weights).sum() - (clones * (logp * mask).sum(1)).sum()
    return torch.autograd.grad(total, table)[0]


def test_packed_equals_padded():
    for seed in range(BATCHES):
        case = Case(seed)
        assert same(gradient(case.row, [case.batch()]), dense(case))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_was_not_chosen_may_hold_anything(poison):
    for seed in range(BATCHES // 3 + 1):
        case = Case(seed)
        clean = gradient(case.row, [case.batch()])
        case.samples = [
            Sample(
                s.tokens, s.mask, np.where(s.mask, s.logp, poison).astype(np.float32), "", "stop"
            )
            for s in case.samples
        ]
        assert torch.equal(gradient(case.row, [case.batch()]), clean)


def test_a_batch_in_which_nothing_was_chosen_gives_0():
    for seed in range(BATCHES):
        case = Case(seed, empty=True)
        batch = case.batch()
        assert float(loss_of(case.row, batch, PI)) == 0.0
        assert (gradient(case.row, [batch]) == 0).all()


def padded(s):
    n = len(s.tokens)
    tokens, mask, logp = np.full(n + 3, EOS), np.zeros(n + 3, bool), np.zeros(n + 3, np.float32)
    tokens[:n], mask[:n], logp[:n] = s.tokens, s.mask, s.logp
    return Sample(tokens, mask, logp, "", "stop")


def test_neighbours_in_a_pack_do_not_see_each_other_and_padding_is_not_read():
    """The transformer, on 1,000 samples: alone, right-padded with EOS, and in packs of any company."""
    model, rng, seen = tiny(4, vocab=VOCAB), random.Random(0), 0
    while seen < BATCHES:
        samples = [sample(rng) for _ in range(rng.randrange(2, 40))]
        batch = pack(samples, [1.0] * len(samples), [1.0] * len(samples), torch.float64)
        with torch.no_grad():
            together = policy_logprobs(model, batch, SAMPLING)[0]
            for i in rng.sample(range(len(samples)), 2):
                alone = policy_logprobs(model, batch.take([i]), SAMPLING)[0]
                assert same(alone, together[batch.sequence == i])
            wide = pack(
                [padded(s) for s in samples],
                [1.0] * len(samples),
                [1.0] * len(samples),
                torch.float64,
            )
            assert same(policy_logprobs(model, wide, Sampling(temperature=0.6))[0], together)
        seen += len(samples)
