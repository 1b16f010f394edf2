"""The gradient of an update: unequal constants, ragged lengths, pad = EOS, temperature != 1,
float64.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from whet.algorithms import objective
from whet.algorithms.batch import PolicyBatch, pack
from whet.algorithms.table import TABLE, algorithm
from whet.model import logprobs
from whet.model.config import ModelConfig
from whet.model.logprobs import chosen_logprobs, linear_logprobs
from whet.model.transformer import Transformer
from whet.training.learner import policy_logprobs
from whet.types import Sample, Sampling

EOS = 1  # also the pad id: nothing may infer a mask from ids
SAMPLING = Sampling(temperature=0.6, max_tokens=11)
ROWS = [*TABLE, "grpo/entropy", "grpo/k2", "dapo/updates"]


def row_of(name):
    base, _, change = name.partition("/")
    cells = {
        "entropy": {"entropy": 0.03},
        "k2": {"kl": "k2", "beta": 0.07},
        "updates": {"updates": 2},
    }.get(change, {})
    return algorithm(base, cells)


def tiny(seed=0, vocab=13):
    config = ModelConfig("qwen3", vocab, 16, 2, 4, 2, 8, 24, qk_norm=True)
    model = Transformer(config).initialize(torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(
                torch.randn(
                    p.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=p.dtype
                )
                * 0.2
            )
    return model


def ragged(rng, count, vocab=13):
    """Samples of unequal length, with a second stretch of tool output in some, EOS inside the
    prompt and at the end.
    """
    samples = []
    for _ in range(count):
        prompt, answer, tool = rng.randrange(1, 6), rng.randrange(1, 9), rng.randrange(0, 4)
        mask = [False] * prompt + [True] * answer + ([False] * tool + [True] if tool else [])
        tokens = [rng.randrange(vocab) for _ in mask]
        tokens[-1] = EOS
        tokens[0] = EOS
        logp = np.where(mask, [-rng.random() * 3 for _ in mask], 0.0).astype(np.float32)
        samples.append(Sample(np.array(tokens), np.array(mask), logp, "", "stop"))
    return samples


def gradient(model, row, batch, reference, micro_tokens, sampling=SAMPLING):
    model.zero_grad()
    for micro in batch.split(micro_tokens):
        logp, entropy = policy_logprobs(model, micro, sampling, row.entropy != 0)
        logp_ref = (
            policy_logprobs(reference, micro, sampling)[0].detach() if row.needs_reference else None
        )
        objective.loss(row, logp, entropy, micro, logp_ref).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def packed(samples, advantages, weights, clones=None):
    """As `pack`, in float64; an advantage is a number, or an array with one for each token."""
    batch = pack(samples, [0.0] * len(samples), weights, torch.float64, clones)
    rows = [np.broadcast_to(a, s.length) for s, a in zip(samples, advantages, strict=True)]
    return replace(batch, advantage=torch.as_tensor(np.concatenate(rows)).double())


def packed_case(name, seed=0, count=12):
    rng = random.Random(seed)
    row = row_of(name)
    samples = ragged(rng, count)
    rewards = [[rng.choice([0.0, 1.0, 0.3]) for _ in range(4)] for _ in range(count // 4)]
    advantages = [a for g in objective.advantages(row, rewards) for a in g.tolist()]
    if row.per_token:
        advantages = [np.array([rng.gauss(0, 1) for _ in range(s.length)]) for s in samples]
    weights = objective.weights(row, [s.length for s in samples], SAMPLING.max_tokens)
    clones = objective.clone_weights(
        row, [s.length for s in samples], [bool(i % 3) for i in range(count)]
    )
    return row, samples, advantages, weights, clones


@pytest.mark.parametrize("name", ROWS)
def test_micro_batch_size_cannot_change_the_gradient(name):
    row, samples, advantages, weights, clones = packed_case(name)
    model, reference = tiny(3), tiny(5)
    batch = packed(samples, advantages, weights, clones)
    whole = gradient(model, row, batch, reference, 10**6)
    assert whole.norm() > 1e-4
    for tokens in (1, 17, 40):
        assert len(list(batch.split(tokens))) > 1
        assert (gradient(model, row, batch, reference, tokens) - whole).abs().max() < 1e-10


@pytest.mark.parametrize("name", ROWS)
def test_gradient_equals_a_padded_loop_over_samples(name):
    """The same loss, written the naive way: one padded row at a time, masks multiplied, sums
    divided at the end.
    """
    row, samples, advantages, weights, clones = packed_case(name, seed=2)
    model, reference = tiny(3), tiny(5)
    ours = gradient(model, row, packed(samples, advantages, weights, clones), reference, 10**6)
    imitated = sum(s.length for i, s in enumerate(samples) if i % 3)
    model.zero_grad()
    widest = max(len(s.tokens) for s in samples)
    total = torch.zeros((), dtype=torch.float64)
    denominators = {
        "sequence_mean": lambda s: len(samples) * s.length,
        "token_mean": lambda s: sum(x.length for x in samples),
        "sum_over_limit": lambda s: len(samples) * SAMPLING.max_tokens,
        "sum": lambda s: len(samples),
    }
    for i, (sample, own) in enumerate(zip(samples, advantages, strict=True)):
        padded = torch.full((widest,), EOS)
        padded[: len(sample.tokens)] = torch.from_numpy(sample.tokens)
        logits = {}
        for key, net in (("pi", model), ("ref", reference)):
            hidden = net.packed(padded, torch.arange(widest), torch.tensor([0, widest]))
            logits[key] = (net.logits(hidden)[:-1] / SAMPLING.temperature).log_softmax(-1)
        places = [t for t in range(1, len(sample.tokens)) if sample.mask[t]]
        moved = [logits["pi"][t - 1, padded[t]] - float(sample.logp[t]) for t in places]
        for t, step, advantage in zip(
            places, moved, np.broadcast_to(own, len(places)).tolist(), strict=True
        ):
            logp = logits["pi"][t - 1, padded[t]]
            rho = torch.exp(sum(moved) / len(moved) if row.ratio == "sequence" else step)
            bounded = rho.clamp(1 - row.clip_low, 1 + row.clip_high)
            if row.ratio == "none":
                term = -advantage * logp
            elif row.ratio == "weight":
                term = -float(bounded.detach()) * advantage * logp
            else:
                term = -min(rho * advantage, bounded * advantage)
            if row.needs_reference:
                d = logits["ref"][t - 1, padded[t]].detach() - logp
                term = term + row.beta * {"k2": d**2 / 2, "k3": torch.exp(d) - d - 1}[row.kl]
            if row.entropy:
                p = logits["pi"][t - 1]
                term = term + row.entropy * (p.exp() * p).sum()
            total = total + term / denominators[row.aggregation](sample)
            if i % 3:
                total = total - row.clone * logp / imitated
        total = total + row.tau * sum(moved) ** 2 / 2 / denominators[row.aggregation](sample)
    total.backward()
    naive = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (ours - naive).abs().max() < 1e-10


@pytest.mark.parametrize("name", [n for n in ROWS if row_of(n).only_advantage])
def test_leaving_out_samples_without_advantage_changes_nothing(name):
    row, samples, advantages, weights, _ = packed_case(name, seed=4)
    advantages[:4] = [0.0] * 4
    model = tiny(3)
    every = gradient(model, row, packed(samples, advantages, weights), None, 10**6)
    keep = [i for i, a in enumerate(advantages) if np.any(a)]
    assert 0 < len(keep) < len(samples)
    some = packed(*([x[i] for i in keep] for x in (samples, advantages, weights)))
    assert (gradient(model, row, some, None, 10**6) - every).abs().max() < 1e-10


def test_neighbours_in_a_pack_do_not_see_each_other():
    model, rng = tiny(1), random.Random(7)
    samples = ragged(rng, 9)
    batch = pack(samples, [1.0] * 9, [1.0] * 9, torch.float64)
    together = policy_logprobs(model, batch, SAMPLING)[0]
    alone = [policy_logprobs(model, batch.take([i]), SAMPLING)[0] for i in range(9)]
    assert (together - torch.cat(alone)).abs().max() < 1e-12


def test_what_the_policy_did_not_choose_cannot_reach_the_loss():
    row, samples, advantages, weights, _ = packed_case("dapo", seed=5)
    poisoned = [
        Sample(s.tokens, s.mask, np.where(s.mask, s.logp, np.nan).astype(np.float32), "", "stop")
        for s in samples
    ]
    clean, dirty = (packed(x, advantages, weights) for x in (samples, poisoned))
    model = tiny(3)
    assert torch.equal(gradient(model, row, clean, None, 50), gradient(model, row, dirty, None, 50))


def test_pack_keeps_each_token_beside_its_own_numbers():
    samples = ragged(random.Random(3), 5)
    batch = pack(samples, [1.0, 2.0, 3.0, 4.0, 5.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    for i, sample in enumerate(samples):
        own = batch.sequence == i
        assert batch.tokens[batch.chosen[own]].tolist() == sample.tokens[sample.mask].tolist()
        assert np.allclose(batch.logp_old[own], sample.logp[sample.mask])
        assert set(batch.advantage[own].tolist()) == {float(i + 1)}
        assert batch.positions[batch.starts[i] : batch.starts[i + 1]].tolist() == list(
            range(len(sample.tokens))
        )
    pieces = list(batch.split(12))
    assert torch.equal(torch.cat([p.tokens for p in pieces]), batch.tokens)
    assert sum(len(p.chosen) for p in pieces) == len(batch.chosen)
    with pytest.raises(ValueError, match="no samples"):
        pack([], [], [])


def test_the_token_at_t_is_predicted_from_t_minus_1():
    hidden = torch.eye(4, dtype=torch.float64)
    table = torch.randn(4, 6, dtype=torch.float64)
    tokens, chosen = torch.tensor([5, 2, 0, 3]), torch.tensor([1, 3])
    logp, _ = chosen_logprobs(
        hidden, lambda h: h @ table, tokens, chosen, lambda x, t: x.log_softmax(-1)
    )
    want = [table[0].log_softmax(-1)[2], table[2].log_softmax(-1)[3]]
    assert torch.allclose(logp, torch.stack(want))
    with pytest.raises(ValueError, match="predecessor"):
        chosen_logprobs(
            hidden, lambda h: h @ table, tokens, torch.tensor([0]), lambda x, t: x.log_softmax(-1)
        )


@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(temperature=0.7, top_k=9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_of_the_vocabulary_change_neither_value_nor_gradient(monkeypatch, sampling, dtype):
    model, batch = (
        tiny(2).to(dtype),
        pack(ragged(random.Random(1), 8), [1.0] * 8, [1.0] * 8, torch.float64),
    )

    def run():
        model.zero_grad()
        logp, entropy = policy_logprobs(model, batch, sampling, entropy_grad=True)
        (logp * torch.linspace(0.1, 2, len(logp)) - 0.3 * entropy).sum().backward()
        return (
            logp.detach(),
            entropy.detach(),
            torch.cat([p.grad.flatten() for p in model.parameters()]),
        )

    whole = run()
    monkeypatch.setitem(logprobs.MAX_LOGITS, "cpu", 13 * 5)
    parts, within = run(), 1e-12 if dtype == torch.float64 else 1e-5
    assert all((a - b).abs().max() < within for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy_grad", [True, False])
def test_the_gradient_in_closed_form_is_autograd_s(temperature, entropy_grad):
    """Compiled float32 and plain float64 against autograd through log_softmax."""
    batch = pack(ragged(random.Random(3), 8), [1.0] * 8, [1.0] * 8, torch.float64)
    results = []
    for dtype, closed in ((torch.float32, True), (torch.float64, True), (torch.float64, False)):
        hidden = (
            torch.randn(len(batch.tokens), 6, generator=torch.Generator().manual_seed(1))
            .to(dtype)
            .requires_grad_(True)
        )
        table = (
            torch.randn(13, 6, generator=torch.Generator().manual_seed(2))
            .to(dtype)
            .requires_grad_(True)
        )
        if closed:
            outputs = linear_logprobs(
                hidden, table, batch.tokens, batch.chosen, temperature, entropy_grad
            )
        else:
            head, shape = (
                lambda h, w=table: h @ w.t(),
                lambda x, t: (x / temperature).log_softmax(-1),
            )
            outputs = chosen_logprobs(hidden, head, batch.tokens, batch.chosen, shape, entropy_grad)
        (outputs[0] * torch.linspace(0.1, 2, len(outputs[0])) - 0.3 * outputs[1]).sum().backward()
        results.append([*outputs, hidden.grad, table.grad])
    for compiled, plain, exact in zip(*results, strict=True):
        assert (plain - exact).abs().max() < 1e-12
        assert (compiled - exact).abs().max() < 2e-5


def test_a_batch_travels_whole():
    batch = pack(ragged(random.Random(0), 3), [1.0] * 3, [1.0] * 3)
    again = batch.to("cpu")
    assert isinstance(again, PolicyBatch) and torch.equal(again.logp_old, batch.logp_old)
