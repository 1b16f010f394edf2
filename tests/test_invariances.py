"""What must not change the gradient: 1,000 random ragged batches for each property, float64, to 1e-10, every row of the table among them.

A batch goes through whet's own path, Trainer and Learner, in front of a policy that is a table: the state of a token is a hash of its
prefix. A state that no chosen token is drawn in can be marked UNREAD: the policy, the reference and the judge answer NaN there.
"""

import functools
import random
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from torch import nn

from whet import config
from whet.algorithms import TABLE, algorithm
from whet.batch import PolicyBatch, pack
from whet.credit import Credit
from whet.learner import Learner, policy_logprobs
from whet.row import Algorithm
from whet.trainer import Trainer
from whet.types import Group, Problem, Prompt, Sample, Sampling, Score

from .test_gradient import tiny

CASES, TRANSFORMER_CASES, NEAR = 1000, 100, 1e-10
EOS, VOCAB, STATES, UNREAD, WHOLE = 1, 13, 97, 1000, 10**6
SAMPLINGS = [Sampling(temperature=t, top_p=p, max_tokens=15) for t, p in ((0.6, 1.0), (1.0, 1.0), (1.7, 0.8))]
VARIANTS = {
    "dapo/entropy": {"entropy": 0.03, "updates": 2},
    "grpo/k2": {"kl": "k2", "beta": 0.07},
    "rloo/token": {"correction": "token", "ratio": "token"},
    "dr_grpo/sequence": {"correction": "sequence", "cap": 1.8},
}
ROWS = {**TABLE, **{name: algorithm(name.partition("/")[0], cells) for name, cells in VARIANTS.items()}}
GROUP_RELATIVE = [n for n, row in ROWS.items() if row.advantage in ("centred", "zscored", "leave_one_out", "cloned")]
every_row = pytest.mark.parametrize("name", ROWS)


class Table(nn.Module):
    """`width` numbers for each state; states are whole numbers, so that they are exact whatever stands before a segment."""

    def __init__(self, seed, width):
        super().__init__()
        made = torch.randn(STATES + 1, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        made[STATES] = torch.nan
        self.table = nn.Parameter(made)
        self.factor = torch.tensor([random.Random(t).randrange(1, STATES) for t in range(64)])

    def packed(self, tokens, positions, starts):
        sums = torch.cat([starts[:1] * 0, ((tokens % UNREAD + 1) * self.factor[positions]).cumsum(0)])
        before = sums[starts[:-1]].repeat_interleave(starts.diff())
        return torch.where(tokens >= UNREAD, STATES, (sums[1:] - before) % STATES)

    def logits(self, states):
        return self.table[states]


class Judge(Table):
    def forward(self, tokens, positions, starts):
        return self.table[self.packed(tokens, positions, starts), 0]


class Kept:
    """In the place of an optimizer: adds up the gradients that it is shown, and moves nothing."""

    def __init__(self, parameters):
        self.parameters, self.param_groups, self.total = parameters, [], 0.0

    def step(self):
        self.total = self.total + torch.cat([(p.detach() * 0 if p.grad is None else p.grad).flatten() for p in self.parameters])

    def zero_grad(self, set_to_none):
        for p in self.parameters:
            p.grad = None
