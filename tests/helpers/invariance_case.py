"""Random ragged batches, and their gradients in float64 by whet's own path, Trainer and Learner.

The policy is a table: the state of a token is a hash of its prefix. A state that no chosen token is
drawn in can be marked UNREAD: the policy, the reference and the critic answer NaN there.
"""

import functools
import random
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import torch
from torch import nn

from whet import config
from whet.algorithms.algorithm import Algorithm
from whet.algorithms.batch import Pack, PolicyBatch
from whet.algorithms.table import TABLE, algorithm
from whet.training.learner import Learner
from whet.training.trainer import Trainer
from whet.types import Group, Problem, Prompt, Sample, Sampling, Score

from ..test_gradient import tiny

EOS, VOCAB, STATES, UNREAD, WHOLE = 1, 13, 97, 1000, 10**6
SAMPLINGS = [
    Sampling(temperature=t, top_p=p, max_tokens=15) for t, p in ((0.6, 1.0), (1.0, 1.0), (1.7, 0.8))
]
VARIANTS = {
    "dapo/entropy": {"entropy": 0.03, "updates": 2},
    "grpo/k2": {"kl": "k2", "beta": 0.07},
    "rloo/token": {"correction": "token", "ratio": "token"},
    "dr_grpo/sequence": {"correction": "sequence", "cap": 4.0},
}
ROWS = {
    **TABLE,
    **{name: algorithm(name.partition("/")[0], cells) for name, cells in VARIANTS.items()},
}


class Table(nn.Module):
    """`width` numbers for each state; states are whole numbers, so that they are exact whatever
    stands before a segment.
    """

    def __init__(self, seed, width):
        super().__init__()
        made = torch.randn(
            STATES + 1, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        made[STATES] = torch.nan
        self.table = nn.Parameter(made)
        self.factor = torch.tensor([random.Random(t).randrange(1, STATES) for t in range(64)])

    def packed(self, tokens, positions, starts):
        sums = torch.cat(
            [starts[:1] * 0, ((tokens % UNREAD + 1) * self.factor[positions]).cumsum(0)]
        )
        before = sums[starts[:-1]].repeat_interleave(starts.diff())
        return torch.where(tokens >= UNREAD, STATES, (sums[1:] - before) % STATES)

    def logits(self, states):
        return self.table[states]


class TableCritic(Table):
    def forward(self, tokens, positions, starts):
        return self.table[self.packed(tokens, positions, starts), 0]


class Still:
    """In the place of an optimizer: adds up the gradients of all steps, and moves nothing."""

    def __init__(self, parameters):
        self.parameters, self.param_groups, self.state, self.total = parameters, [], {}, 0.0

    def step(self):
        self.total = self.total + torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters]
        )

    def zero_grad(self, set_to_none):
        for p in self.parameters:
            p.grad = None


class Observed(Learner):
    """A learner whose weights stay, and whose gradients can be looked at."""

    def __init__(self, model):
        super().__init__(model, config.Optimizer(max_grad_norm=1e9), 1)

    def ready(self):
        self.optimizers, self.base_lr = [Still(self.parameters)], [[]]
        self.forget()

    @property
    def gradient(self):
        return self.optimizers[0].total + torch.zeros(sum(p.numel() for p in self.parameters))


@contextmanager
def dealt(ranks, rng):
    """Training deals the sequences of a batch out to `ranks`, each with micro-batches of its own.

    Yields the sizes of the policy's mini-batches. What is computed without gradient stays in order.
    """
    split, sizes = Pack.split, []

    def dealing(batch, tokens):
        if not torch.is_grad_enabled():
            return split(batch, tokens)
        if isinstance(batch, PolicyBatch):
            sizes.append(batch.sequences)
        if ranks < 2:
            return split(batch, tokens)
        owner = [rng.randrange(ranks) for _ in range(batch.sequences)]
        parts = [[i for i, r in enumerate(owner) if r == rank] for rank in range(ranks)]
        return [micro for part in parts for micro in split(batch.take(part), micro_tokens_of(rng))]

    with mock.patch.object(Pack, "split", dealing):
        yield sizes


def micro_tokens_of(rng):
    """From every sequence alone to two or three micro-batches."""
    return rng.choice([1, 30, 50, 70, 90])


@dataclass(frozen=True)
class Case:
    row: Algorithm
    groups: tuple[Group, ...]
    sampling: Sampling

    @property
    def samples(self):
        return [s for g in self.groups for s in g.samples]

    def with_samples(self, change):
        return replace(
            self,
            groups=tuple(replace(g, samples=tuple(map(change, g.samples))) for g in self.groups),
        )

    def with_rewards(self, reward_of):
        """`reward_of` the group's place, for all its samples."""
        groups = (
            replace(g, scores=(Score(reward_of(i)),) * len(g.scores))
            for i, g in enumerate(self.groups)
        )
        return replace(self, groups=tuple(groups))

    def at_once(self):
        """In one optimizer step, so that it does not matter which mini-batch a group falls into."""
        critic = self.row.critic and self.row.critic.model_copy(update={"updates": 1})
        row = self.row.model_copy(update={"updates": 1, "critic": critic})
        return replace(self, row=row)


def completion(rng, prompt):
    """Answers of one token and more, tool output inside and at the end, a cut in some; EOS, which
    is also the pad id, anywhere.
    """
    answer, tool, tail = rng.randrange(1, 8), rng.randrange(-4, 4), rng.randrange(-8, 4)
    mask = [False] * len(prompt) + [True] * answer
    mask += [False] * tool + [True] * rng.randrange(1, 4) if tool > 0 else []
    last = len(mask) - 1
    mask += [False] * tail
    tokens = [*prompt, *(rng.randrange(VOCAB) for _ in mask[len(prompt) :])]
    finish = "length" if tail <= 0 and rng.random() < 0.3 else "stop"
    if finish == "stop":
        tokens[last] = EOS
    logp = np.where(mask, [-rng.uniform(0.5, 4.5) for _ in mask], 0.0).astype(np.float32)
    return Sample(np.array(tokens), np.array(mask), logp, "", finish)


@functools.cache
def case(seed, name):
    rng = random.Random(seed)
    groups = list[Group]()
    for i in range(rng.choice([1, 2, 2, 3])):
        size = rng.randrange(1, 5)
        prompt = [rng.choice([EOS, rng.randrange(VOCAB)]) for _ in range(rng.randrange(1, 6))]
        kind = rng.choice(["equal", "binary", "binary", "real"])
        rewards = {
            "equal": [0.1] * size,
            "binary": [float(rng.random() < 0.5) for _ in range(size)],
        }
        scores = rewards.get(kind, [rng.gauss(0, 1) for _ in range(size)])
        problem = Prompt(Problem(str(i), ()), tuple(prompt))
        groups.append(
            Group(
                problem, tuple(completion(rng, prompt) for _ in scores), tuple(map(Score, scores))
            )
        )
    made = Case(ROWS[name], tuple(groups), SAMPLINGS[seed % len(SAMPLINGS)])
    return made if seed % 4 == 0 else made.at_once()


@functools.cache
def models(transformer=False):
    """The policy and the critic that learn, and the reference."""
    policy, reference = (tiny(3), tiny(5)) if transformer else (Table(1, VOCAB), Table(2, VOCAB))
    return Observed(policy), Observed(TableCritic(4, 1)), reference


def trained(case, micro_tokens=WHOLE, ranks=1, transformer=False, rng=None):
    """The gradients of policy and critic, added over all optimizer steps; the advantages; the
    number of sequences that the policy read.
    """
    policy, critic, reference = models(transformer)
    for learner in (policy, critic):
        learner.ready()
    trainer = Trainer(
        policy, case.row, case.sampling, micro_tokens, reference, critic, rollouts=WHOLE
    )
    with dealt(ranks, rng) as sizes:
        advantages = trainer.update(case.groups)[1]
    return torch.cat([policy.gradient, critic.gradient]), advantages, sum(sizes)
