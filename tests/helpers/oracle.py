"""The oracle: a policy small enough that every answer can be written down, so that expectations are
sums and exact.

Vocabulary 3, at most 3 tokens, EOS is also the pad id, temperature 0.6, float64. The expected
gradient of whet's own path from samples to a loss (objective, pack, TokenAdvantages,
policy_logprobs) is held against exact gradients of objectives. `python tests/helpers/oracle.py`
prints the table of docs/reference/algorithms/oracle.md.
"""

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from whet.algorithms import objective
from whet.algorithms.batch import pack
from whet.algorithms.table import TABLE, algorithm
from whet.training.learner import Stepped, policy_logprobs
from whet.training.token_advantages import TokenAdvantages
from whet.types import Sample, Sampling

EOS, VOCAB, LONGEST, PROMPT = 0, 3, 3, 2
SAMPLING = Sampling(temperature=0.6, max_tokens=5)
PREFIXES = [p for n in range(LONGEST) for p in itertools.product(range(VOCAB), repeat=n)]


def prefixes_in(tokens, starts):
    """The answer read so far at each token of a pack; a prompt is one token."""
    for a, b in itertools.pairwise(starts.tolist()):
        answer = tuple(tokens[a + 1 : b].tolist())
        yield from (answer[:n] for n in range(b - a))


class Tabular(nn.Module):
    """One row of logits for every prefix of an answer; a 'hidden state' is the prefix, one-hot."""

    def __init__(self, seed=7, scale=1.0, near=None):
        super().__init__()
        table = (
            scale
            * torch.randn(
                len(PREFIXES), VOCAB, generator=torch.Generator().manual_seed(seed)
            ).double()
        )
        self.table = nn.Parameter(table if near is None else near.table.detach() + table)
        self.place = {p: i for i, p in enumerate(PREFIXES)}

    def packed(self, tokens, positions, starts):
        rows = [self.place.get(p, 0) for p in prefixes_in(tokens, starts)]
        return nn.functional.one_hot(torch.tensor(rows), len(self.place)).double()

    def logits(self, hidden):
        return hidden @ self.table


class TabularCritic:
    """A value for every prefix, in the place of a learner: asked, never taught."""

    def __init__(self, value_of):
        self.value_of = value_of

    def model(self, tokens, positions, starts):
        return torch.tensor(
            [float(self.value_of(p)) for p in prefixes_in(tokens, starts)], dtype=torch.float64
        )

    def backward(self, loss):
        pass

    def step(self):
        return Stepped(0.0, 0.0)


def answers(longest=LONGEST):
    """Those that end, and those cut off at the longest."""
    every = []
    for n in range(1, longest + 1):
        for tokens in itertools.product(range(VOCAB), repeat=n):
            if EOS not in tokens[:-1] and (tokens[-1] == EOS or n == longest):
                every.append(tokens)
    return every


def reward(tokens):
    """Unequal, and not a function of the length alone."""
    return {(0,): 0.3, (1, 0): 1.0}.get(tokens, 0.7 * (2 in tokens[1:]) - 0.5 * (tokens[-1] == 1))


def binary(tokens):
    return float(reward(tokens) > 0.5)


def sample(tokens, finish="stop"):
    mask = np.array([False] + [True] * len(tokens))
    return Sample(
        np.array([PROMPT, *tokens]), mask, np.where(mask, -1.0, 0.0).astype(np.float32), "", finish
    )


class Oracle:
    """`policy` is trained, `behaviour` draws (the same one, unless a test says otherwise),
    `reference` is what a KL holds it to.
    """

    def __init__(self, reward=reward, behaviour=None, sampling=SAMPLING, longest=LONGEST):
        self.policy, self.reference = Tabular(), Tabular(seed=11, scale=0.8)
        self.behaviour = behaviour or self.policy
        self.sampling, self.longest = sampling, longest
        self.answers = answers(longest)
        self.rewards = [float(reward(a)) for a in self.answers]
        self.drawn_as = [x.detach() for x in self.logps(self.behaviour)]
        self.chance = torch.stack([x.sum() for x in self.drawn_as]).exp()

    def logps(self, policy):
        """log-probabilities [n] of each answer's tokens under what is sampled from."""
        batch = pack(
            [sample(a) for a in self.answers],
            [1.0] * len(self.answers),
            [1.0] * len(self.answers),
            torch.float64,
        )
        logp, _ = policy_logprobs(policy, batch, self.sampling)
        return [logp[batch.sequence == i] for i in range(len(self.answers))]

    # Exact gradients, by differentiating sums over all answers.

    def gradient(self, objective):
        """Of objective(log-probabilities of the policy's tokens, by answer)."""
        return torch.autograd.grad(objective(self.logps(self.policy)), self.policy.table)[0]

    def expected_reward(self, logps):
        return sum(x.sum().exp() * r for x, r in zip(logps, self.rewards, strict=True))

    def sequence_kl(self, logps):
        """KL(pi || ref) of whole answers."""
        ref = [x.detach() for x in self.logps(self.reference)]
        return sum(x.sum().exp() * (x.sum() - q.sum()) for x, q in zip(logps, ref, strict=True))

    def token_kl(self, logps):
        """sum over prefixes, each as likely as it is now, of KL(pi(.|prefix) || ref(.|prefix)):
        GKD's objective on own samples.
        """
        t = self.sampling.temperature
        pi = (self.policy.table / t).log_softmax(-1)
        ref = (self.reference.table / t).log_softmax(-1).detach()
        each = (pi.exp() * (pi - ref)).sum(-1)
        visits = torch.zeros(len(PREFIXES), dtype=torch.float64)
        for a, x in zip(self.answers, logps, strict=True):
            for n in range(len(a)):
                visits[self.policy.place[a[:n]]] += x.sum().detach().exp()
        return (visits * each).sum()

    def critic(self, beta=0.0):
        """The exact one: what the policy earns after each prefix, reward less beta x k1 of the
        tokens still to come.
        """
        logps, ref = self.logps(self.policy), self.logps(self.reference)
        value = dict.fromkeys(PREFIXES, 0.0)
        for prefix in value:
            n = len(prefix)
            own = [i for i, a in enumerate(self.answers) if a[:n] == prefix and len(a) > n]
            p = [float(logps[i].detach().sum().exp()) for i in own]
            earned = [
                self.rewards[i] - beta * float((logps[i] - ref[i]).detach()[n:].sum()) for i in own
            ]
            value[prefix] = (
                sum(x * r for x, r in zip(p, earned, strict=True)) / sum(p) if own else 0.0
            )
        return TabularCritic(lambda prefix: value.get(prefix, 0.0))

    # Expectations of whet's own gradient.

    def expected(self, row, size=3, critic=None):
        """Sum over all groups of `size` answers of P(group) x gradient of the row's loss."""
        groups = list(itertools.product(range(len(self.answers)), repeat=size))
        chances = self.chance[torch.tensor(groups)].prod(-1)
        if row.per_token or row.normalise:
            batches = [
                self.batch(row, [g], c[None], critic) for g, c in zip(groups, chances, strict=True)
            ]
        else:
            batches = [self.batch(row, groups, chances, critic)]
        total = torch.zeros_like(self.policy.table)
        for batch in batches:
            logp, entropy = policy_logprobs(self.policy, batch, self.sampling, row.entropy != 0)
            logp_ref = (
                policy_logprobs(self.reference, batch, self.sampling)[0].detach()
                if row.needs_reference
                else None
            )
            loss = objective.loss(row, logp, entropy, batch, logp_ref).sum()
            total += torch.autograd.grad(loss, self.policy.table)[0]
        return total

    def batch(self, row, groups, chances, critic):
        """Groups, each an update of its own, weighted by their chances: the loss is linear in the
        weights.
        """
        samples, advantages, weights, clones, right, old = [], [], [], [], [], []
        for group, chance in zip(groups, chances.tolist(), strict=True):
            lengths = [len(self.answers[i]) for i in group]
            own = [self.rewards[i] > 0.5 for i in group]
            advantages += objective.advantages(row, [[self.rewards[i] for i in group]])[0].tolist()
            weights += [
                w * chance for w in objective.weights(row, lengths, self.sampling.max_tokens)
            ]
            clones += [c * chance for c in objective.clone_weights(row, lengths, own)]
            samples += [self.sample(i) for i in group]
            right += own
            old += [self.drawn_as[i] for i in group]
        batch = pack(samples, advantages, weights, torch.float64, clones)
        batch = replace(batch, logp_old=torch.cat(old))  # a Sample's float32 would show at 1e-10
        if not (row.per_token or row.normalise):
            return batch
        return TokenAdvantages(row, self.sampling, 10**6, self.reference, critic).compute(
            batch, samples, right
        )[0]

    def sample(self, i):
        ended = self.answers[i][-1] == EOS or self.longest == LONGEST
        return sample(self.answers[i], "stop" if ended else "length")


def degrees(loss_gradient, objective_gradient):
    """Between the expected step and the direction of steepest ascent."""
    step, exact = -loss_gradient.flatten(), objective_gradient.flatten()
    return torch.rad2deg(
        torch.arccos((step @ exact / (step.norm() * exact.norm())).clamp(-1, 1))
    ).item()


def noisy(prefix):
    """A critic that is wrong everywhere."""
    return 0.4 * len(prefix) - 0.3 * sum(prefix)


WHOLE = {
    "normalise": False,
    "aggregation": "sum",
}  # what makes a critic's or a KL's row unbiased: nothing but sums


def claims(o):
    """Rows -> (claimed objective, its gradient)."""
    reward = o.gradient(o.expected_reward)
    kl = o.gradient(o.sequence_kl)
    return {
        name: ("E r", reward) if not row.has_kl else
        ("−Σ KL of tokens (GKD)", -o.gradient(o.token_kl)) if row.advantage == "none" else
        (f"E r − {row.beta:g} KL", reward - row.beta * kl)
        for name, row in TABLE.items()
    }  # fmt: skip


def unbiased():
    """Rows -> (what is changed in them, the group size, the factor, the critic) under which the
    claim holds to 1e-10.
    """
    o = Oracle()
    return {
        "reinforce": ({}, 3, 2 / 3, None),
        "rloo": ({}, 3, 1.0, None),
        "reinforce_pp": (WHOLE, 2, 1.0, None),
        "ppo": (WHOLE, 1, 1.0, o.critic(TABLE["ppo"].beta)),
        "ppo_orz": (WHOLE, 1, 1.0, TabularCritic(noisy)),
        "vapo": ({"aggregation": "sum", "clone": 0.0}, 1, 1.0, o.critic()),
        "dr_grpo": ({}, 3, 2 / 3 / SAMPLING.max_tokens, None),
        "kimi": ({}, 3, 2 / 3, None),
        "distil_on_policy": ({"aggregation": "sum"}, 1, 1.0, None),
    }


def error(o, name, changed, size, factor, critic):
    row = algorithm(name, changed)
    return (o.expected(row, size, critic) + factor * claims(o)[name][1]).abs().max().item()


def as_is(o, name):
    """Degrees between the row's expected step, as it stands in the table, and its claim. Critics
    are exact.
    """
    row = TABLE[name]
    critic = None
    if row.critic is not None:
        critic = o.critic(row.beta if row.rewards_kl else 0.0)
    if row.token_reward:
        critic = TabularCritic(noisy)
    size = 2 if row.per_token or row.normalise else 3
    return degrees(o.expected(row, size, critic), claims(o)[name][1])


def table(o):
    """Rows -> (claim, when it is unbiased, largest error then or None, degrees as it stands)."""
    sure, claimed, rows = unbiased(), claims(o), {}
    for name in TABLE:
        when, worst = "–", None
        if name in sure:
            when = (
                ", ".join(f"`{k} = {str(v).lower()}`" for k, v in sure[name][0].items())
                or "as it stands"
            )
            worst = error(o, name, *sure[name])
        rows[name] = (claimed[name][0], when, worst, as_is(o, name))
    return rows


def printed(rows):
    lines = [
        "| row | claimed objective | unbiased with | error then | as it stands |",
        "|---|---|---|---|---|",
    ]
    for name, (claim, when, worst, angle) in rows.items():
        small = "–" if worst is None else "< 1e-10" if worst < 1e-10 else f"{worst:.0e}"
        lines.append(f"| [{name}]({name}.md) | {claim} | {when} | {small} | {angle:.2f}° |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(printed(table(Oracle())))
