"""The oracle: a policy small enough that every answer can be written down, so that expectations are sums and exact.

Vocabulary 3, at most 3 tokens, EOS is also the pad id, temperature 0.6, float64. The expected gradient of whet's own losses, over all
groups of 3 answers, is held against the exact gradient of J = sum_o p(o) r(o).
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from whet.algorithms import algorithm
from whet.batch import pack
from whet.learner import policy_logprobs
from whet.types import Sample, Sampling

EOS, VOCAB, LONGEST, PROMPT = 0, 3, 3, 2
SAMPLING = Sampling(temperature=0.6, max_tokens=5)
GROUP = 3


class Tabular(nn.Module):
    """One row of logits for every prefix of an answer; a 'hidden state' is the prefix, one-hot."""

    def __init__(self):
        super().__init__()
        prefixes = [p for n in range(LONGEST) for p in itertools.product(range(VOCAB), repeat=n)]
        self.place = {p: i for i, p in enumerate(prefixes)}
        self.table = nn.Parameter(
            torch.randn(len(prefixes), VOCAB, generator=torch.Generator().manual_seed(7)).double()
        )

    def packed(self, tokens, positions, starts):
        rows = []
        for a, b in itertools.pairwise(starts.tolist()):
            answer = tokens[a + 1 : b].tolist()
            rows += [self.place.get(tuple(answer[:n]), 0) for n in range(b - a)]
        return nn.functional.one_hot(torch.tensor(rows), len(self.place)).double()

    def logits(self, hidden):
        return hidden @ self.table


def answers():
    """All 15: those that end, and those cut off at the longest."""
    found = []
    for n in range(1, LONGEST + 1):
        for tokens in itertools.product(range(VOCAB), repeat=n):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or n == LONGEST):
                found.append(tokens)
    return found


def reward(tokens):
    """Unequal, and not a function of the length alone."""
    return {(0,): 0.3, (1, 0): 1.0}.get(tokens, 0.7 * (2 in tokens[1:]) - 0.5 * (tokens[-1] == 1))


def sample(tokens, logp):
    mask = np.array([False] + [True] * len(tokens))
    return Sample(np.array([PROMPT, *tokens]), mask, np.array([0.0, *logp], np.float32), "", "stop")


class Oracle:
    def __init__(self):
        self.policy, self.answers = Tabular(), answers()
        plain = pack([sample(a, [-1.0] * len(a)) for a in self.answers], [1.0] * 15, [1.0] * 15, torch.float64)
        logp, _ = policy_logprobs(self.policy, plain, SAMPLING)
        self.logp = [logp[plain.sequence == i] for i in range(15)]
        self.chance = torch.stack([x.sum() for x in self.logp]).exp()
        self.rewards = torch.tensor([reward(a) for a in self.answers], dtype=torch.float64)
        self.exact = torch.autograd.grad((self.chance * self.rewards).sum(), self.policy.table, retain_graph=True)[0]

    def expected(self, row, updates=1):
        """Sum over all groups of P(group) x gradient of the row's loss, on policy."""
        chance = self.chance.detach()
        total = torch.zeros_like(self.policy.table)
        for group in itertools.product(range(15), repeat=GROUP):
            chosen = [self.answers[i] for i in group]
            advantage = row.advantages([[self.rewards[i].item() for i in group]])[0].tolist()
            weights = row.weights([len(a) for a in chosen], SAMPLING.max_tokens)
            samples = [sample(a, self.logp[i].detach().numpy()) for a, i in zip(chosen, group, strict=True)]
            batch = pack(samples, advantage, weights, torch.float64)
            logp, entropy = policy_logprobs(self.policy, batch, SAMPLING)
            batch.logp_old.copy_(logp.detach())  # the float32 of a Sample would show at 1e-10
            loss = (row.loss(logp, entropy, batch) * batch.weight).sum()
            total += chance[list(group)].prod() * torch.autograd.grad(loss, self.policy.table)[0]
        return total


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


def test_all_answers_are_there(oracle):
    assert len(oracle.answers) == 15 and abs(oracle.chance.sum().item() - 1) < 1e-12
    assert oracle.exact.abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("rloo", 1.0),  # unbiased
        ("reinforce", (GROUP - 1) / GROUP),  # its own reward is in the baseline: a scale
        ("dr_grpo", (GROUP - 1) / GROUP / SAMPLING.max_tokens),  # the same scale, over the constant
    ],
)
def test_unbiased_rows_have_the_exact_gradient(oracle, name, factor):
    error = (oracle.expected(algorithm(name)) + factor * oracle.exact).abs().max().item()
    assert error < 1e-10


@pytest.mark.parametrize(("name", "degrees"), [("grpo", 16.90), ("dapo", 11.41)])
def test_biased_rows_point_elsewhere_by_exactly_this_much(oracle, name, degrees):
    """The angle between the expected step and the true gradient; the figure stands in the row's page."""
    step = -oracle.expected(algorithm(name, {"kl": "none", "beta": 0.0})).flatten()
    exact = oracle.exact.flatten()
    angle = torch.rad2deg(torch.arccos(step @ exact / (step.norm() * exact.norm()))).item()
    assert angle == pytest.approx(degrees, abs=0.01)
