"""Per-token policy losses: [M] in, [M] out. No model, no config, no reduction (weights are the batch's)."""

import torch
from jaxtyping import Float
from torch import Tensor

M = Float[Tensor, " m"]


def policy_gradient(logp: M, advantage: M) -> M:
    """-A log pi: the score-function estimator. Williams 1992.

    >>> policy_gradient(torch.tensor([-2.0]), torch.tensor([0.5])).tolist()
    [1.0]
    """
    return -advantage * logp


def clipped(logp: M, logp_old: M, advantage: M, low: float, high: float) -> M:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_old. PPO, arXiv:1707.06347, eq. 7; low != high: DAPO, arXiv:2503.14476, eq. 8.

    `min` whatever the sign of A: the clip only ever removes an incentive to move further away.

    >>> logp, old = torch.tensor([1.5, 1.5, 0.5, 0.5]).log(), torch.zeros(4)
    >>> [round(x, 2) for x in clipped(logp, old, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2, 0.28).tolist()]
    [-1.28, 1.5, -0.5, 0.8]
    """
    ratio = torch.exp(logp - logp_old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def clip_acts(logp: M, logp_old: M, advantage: M, low: float, high: float) -> Tensor:
    """True [M] where the clip removes the gradient: rho above 1 + high with A > 0, or below 1 - low with A < 0.

    >>> clip_acts(torch.tensor([1.5, 1.5]).log(), torch.zeros(2), torch.tensor([1.0, -1.0]), 0.2, 0.28).tolist()
    [True, False]
    """
    ratio = torch.exp(logp - logp_old)
    return ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))
