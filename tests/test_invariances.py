"""What must not change the gradient on whet's whole path, Trainer and Learner: 1,000 random ragged
batches for each property, to 1e-10.

The rows of the table take turns, and so do variants of some. test_invariances_losses.py asks the
same of a row's loss alone.
"""

import functools
import random
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from whet.algorithms import objective
from whet.algorithms.algorithm import Algorithm
from whet.algorithms.batch import pack
from whet.training.learner import policy_logprobs
from whet.training.token_advantages import TokenAdvantages
from whet.types import Group

from .helpers.invariance_case import (
    EOS,
    ROWS,
    UNREAD,
    WHOLE,
    case,
    micro_tokens_of,
    models,
    trained,
)

CASES, FEW, NEAR = 1000, 100, 1e-10
GROUP_RELATIVE = [
    n
    for n, row in ROWS.items()
    if row.advantage in ("centred", "zscored", "leave_one_out", "cloned")
]
every_row = pytest.mark.parametrize("name", ROWS)


def seeds(name, count=CASES):
    """The rows take turns: this row's share of `count` batches."""
    return range(list(ROWS).index(name), count, len(ROWS))


@functools.cache
def plain(seed, name):
    return trained(case(seed, name))


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    monkeypatch.setattr("whet.training.trainer.pack", functools.partial(pack, dtype=torch.float64))


def far(a, b):
    """The largest difference; NaN, which no bound holds, where either has one."""
    return float((a - b).detach().abs().max())


@every_row
def test_micro_batches_and_ranks_cannot_change_the_gradient(name):
    moved = 0
    for seed in seeds(name):
        rng, whole = random.Random(seed), plain(seed, name)[0]
        split = trained(case(seed, name), micro_tokens_of(rng), ranks=rng.randrange(1, 5), rng=rng)[
            0
        ]
        assert far(split, whole) < NEAR, seed
        moved += bool(whole.norm() > 1e-6)
    assert moved > 0.6 * len(seeds(name))


def padded(rng):
    """Each sample with 0 to 5 pad ids behind it."""

    def longer(s):
        n = rng.randrange(6)
        ends = zip((s.tokens, s.mask, s.logp), (EOS, False, 0), strict=True)
        tokens, mask, logp = (np.append(x, np.full(n, end, x.dtype)) for x, end in ends)
        return replace(s, tokens=tokens, mask=mask, logp=logp)

    return longer


@every_row
def test_packed_equals_padded(name):
    critic = ROWS[name].critic
    for transformer, count in ((False, CASES), (True, FEW)):
        for seed in seeds(name, count):
            rng, one_case, packed = random.Random(seed), case(seed, name), None
            if (
                critic and critic.bootstrap
            ):  # it values the state behind a cut, which padding would move
                one_case = one_case.with_samples(lambda s: replace(s, finish="stop"))
            elif not transformer:
                packed = plain(seed, name)[0]
            packed = trained(one_case, transformer=transformer)[0] if packed is None else packed
            micro_tokens = micro_tokens_of(rng) if transformer else WHOLE
            wide = trained(
                one_case.with_samples(padded(rng)), micro_tokens, transformer=transformer
            )[0]
            assert far(packed, wide) < NEAR, (seed, transformer)


@every_row
def test_what_is_not_read_may_hold_anything(name):
    """NaN and infinities in the place of log-probabilities that nobody drew, and NaN from every
    state that no token was drawn in.
    """
    poison = np.array([np.nan, np.inf, -np.inf], np.float32)
    for seed in seeds(name):
        rng = np.random.default_rng(seed)

        def poisoned(s, rng=rng):
            read = s.mask | np.append(
                s.mask[1:], s.finish == "length"
            )  # a critic is asked what it expects behind a cut
            logp = np.where(s.mask, s.logp, rng.choice(poison, len(s.mask)))
            return replace(s, logp=logp, tokens=s.tokens + UNREAD * ~read)

        assert torch.equal(
            trained(case(seed, name).with_samples(poisoned))[0], plain(seed, name)[0]
        ), seed


@every_row
def test_the_order_of_groups_and_of_their_samples_does_not_matter(name):
    for seed in seeds(name):
        rng, one_case = random.Random(seed), case(seed, name).at_once()
        order = rng.sample(range(len(one_case.groups)), len(one_case.groups))
        within = [rng.sample(range(len(g.samples)), len(g.samples)) for g in one_case.groups]
        moved = tuple(
            Group(g.prompt, tuple(g.samples[i] for i in o), tuple(g.scores[i] for i in o))
            for g, o in ((one_case.groups[k], within[k]) for k in order)
        )
        before, advantages_before, _ = (
            trained(one_case) if one_case.row != case(seed, name).row else plain(seed, name)
        )
        after, again, _ = trained(replace(one_case, groups=moved))
        assert far(before, after) < NEAR, seed
        for k, values in zip(order, again, strict=True):
            assert values == pytest.approx(
                [advantages_before[k][i] for i in within[k]], abs=NEAR
            ), seed


def in_company(one_case, company, transformer):
    """The batch of the samples `company` names, its log-probabilities, and the loss of each token;
    rewards are the advantages.
    """
    policy, critic, reference = models(transformer)
    critic.ready()
    row = one_case.row.model_copy(update={"normalise": False})
    samples = [one_case.samples[i] for i in company]
    scores = [c for g in one_case.groups for c in g.scores]
    values = [scores[i].value for i in company]
    batch = pack(samples, values, [1.0] * len(company), torch.float64, [i + 0.5 for i in company])
    tokens = TokenAdvantages(row, one_case.sampling, WHOLE, reference, critic)
    batch, _ = tokens.compute(batch, samples, [scores[i].correct for i in company])
    logp, entropy = policy_logprobs(policy.model, batch, one_case.sampling, True)
    logp_ref = policy_logprobs(reference, batch, one_case.sampling)[0].detach()
    return batch, logp, objective.loss(row, logp, entropy, batch, logp_ref)


@every_row
def test_neighbours_in_a_pack_do_not_see_each_other(name):
    for transformer, count in ((False, CASES), (True, FEW)):
        for seed in seeds(name, count):
            one_case = case(seed, name)
            everyone = range(len(one_case.samples))
            one = random.Random(seed).choice(everyone)
            batch, logp, loss = in_company(one_case, everyone, transformer)
            _, alone, own_loss = in_company(one_case, [one], transformer)
            own = batch.sequence == one
            assert far(logp[own], alone) < NEAR and far(loss[own], own_loss) < NEAR, (
                seed,
                transformer,
            )
            got, want = (
                torch.autograd.grad(x.sum(), at)[0]
                for x, at in ((loss[own], logp), (own_loss, alone))
            )
            assert far(got[own], want) < NEAR and not got[~own].any(), (seed, transformer)


def unchosen(s):
    return replace(s, mask=np.zeros_like(s.mask))


@every_row
def test_a_batch_in_which_nothing_was_chosen_gives_0(name):
    for seed in seeds(name):
        gradient, advantages, _ = trained(
            case(seed, name).with_samples(unchosen), random.Random(seed).choice([1, WHOLE])
        )
        assert (gradient == 0).all() and not any(map(any, advantages)), seed


@every_row
def test_an_answer_without_tokens_among_others_changes_nothing(name):
    """Alone in its micro-batch, or in one with others."""
    for seed in seeds(name, FEW):
        rng = random.Random(seed)
        some = case(seed, name).with_samples(
            lambda s, rng=rng: unchosen(s) if rng.random() < 0.3 else s
        )
        assert far(trained(some, micro_tokens=1)[0], trained(some)[0]) < NEAR, seed


class Keeping(Algorithm):
    only_advantage: ClassVar[bool] = False


@every_row
def test_leaving_out_what_has_no_advantage_changes_nothing(name):
    left_out = 0
    for seed in seeds(name):
        one_case, (gradient, _, seen) = case(seed, name), plain(seed, name)
        keeping = Keeping.model_construct(**dict(one_case.row))
        every, _, all_seen = trained(replace(one_case, row=keeping))
        assert far(gradient, every) < NEAR and all_seen == len(one_case.samples), seed
        left_out += all_seen - seen
    row = ROWS[name]
    assert not left_out if not row.only_advantage else left_out or name not in GROUP_RELATIVE


@pytest.mark.parametrize("name", GROUP_RELATIVE)
def test_rewards_that_differ_between_prompts_only_are_no_signal(name):
    """Prompt i pays i: one baseline for all prompts, or a sample in the wrong group, would leave
    something.
    """
    row = ROWS[name]
    for seed in range(GROUP_RELATIVE.index(name), CASES, len(GROUP_RELATIVE)):
        paid = replace(case(seed, name).with_rewards(float), row=row)
        assert all(
            (a == 0).all() for a in objective.advantages(row, [g.rewards for g in paid.groups])
        ), seed
        _, advantages, seen = trained(paid)
        assert not any(map(any, advantages)) and seen == (
            0 if row.only_advantage else len(paid.samples)
        ), seed
