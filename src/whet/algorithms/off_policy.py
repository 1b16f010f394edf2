"""Weights of tokens from a sampler that differs from the trainer: another engine, older weights.

`log_ratio` [M] is the trainer's log-probability, before its update, less the sampler's. Weights
carry no gradient.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.algorithms.losses import sequence_log_ratio

M = Float[Tensor, " m"]


def truncated(log_ratio: M, cap: float) -> M:
    """min(rho, cap) for each token: truncated importance sampling.

    Ionides 2008; for rollouts Yao et al. 2025.

    >>> [round(x, 2) for x in truncated(torch.tensor([0.5, 3.0]).log(), 2.0).tolist()]
    [0.5, 2.0]
    """
    return log_ratio.exp().clamp(max=cap)


def masked(log_ratio: M, sequence: Int[Tensor, " m"], cap: float) -> M:
    """1 for tokens of answers whose geometric mean ratio lies within [1/cap, cap], else 0.

    >>> masked(torch.tensor([0.1, 0.1, 2.0]), torch.tensor([0, 0, 1]), 2.0).tolist()
    [1.0, 1.0, 0.0]
    """
    mean = sequence_log_ratio(log_ratio, torch.zeros_like(log_ratio), sequence)
    return (mean.abs() <= torch.tensor(cap).log()).to(log_ratio.dtype)
