"""Losses per token, [M] in and [M] out, and the loss of ranked responses. Nothing is reduced.

Where a loss works on whole answers, `sequence` [M] is the index of each token's answer.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

M = Float[Tensor, " m"]


def policy_gradient(logp: M, advantage: M) -> M:
    """-A log pi: the score-function estimator. Williams 1992.

    >>> policy_gradient(torch.tensor([-2.0]), torch.tensor([0.5])).tolist()
    [1.0]
    """
    return -advantage * logp


def log_ratio(logp: M, logp_old: M) -> M:
    """log rho_t = log pi - log pi_old of each token.

    >>> log_ratio(torch.tensor([-1.0]), torch.tensor([-3.0])).tolist()
    [2.0]
    """
    return logp - logp_old


def sequence_log_ratio(logp: M, logp_old: M, sequence: Int[Tensor, " m"]) -> M:
    """log s_i = (1/|o_i|) sum_t log rho_it: the log of the geometric mean of an answer's ratios.

    Each token of o_i has the same. GSPO, arXiv:2507.18071, eq. 7.

    >>> answer = torch.tensor([0, 0, 1])
    >>> sequence_log_ratio(torch.tensor([1.0, 2.0, 5.0]), torch.zeros(3), answer).tolist()
    [1.5, 1.5, 5.0]
    """
    total = sequence_sum(logp - logp_old, sequence)
    return total / torch.bincount(sequence)[sequence]


def sequence_sum(x: M, sequence: Int[Tensor, " m"]) -> M:
    """For each token, the sum over its sequence.

    >>> sequence_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1])).tolist()
    [3.0, 3.0, 5.0]
    """
    if not len(x):
        return x
    return x.new_zeros(int(sequence.max()) + 1).index_add(0, sequence, x)[sequence]


def clipped(log_rho: M, advantage: M, low: float, high: float) -> M:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A).

    PPO, arXiv:1707.06347, eq. 7; low != high: DAPO, arXiv:2503.14476, eq. 8. The `min` holds for
    either sign of A, so that the clip only removes an incentive to move further away.

    >>> rho, A = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> [round(x, 2) for x in clipped(rho.log(), A, 0.2, 0.28).tolist()]
    [-1.28, 1.5, -0.5, 0.8]
    """
    ratio = torch.exp(log_rho)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def clip_acts(log_rho: M, advantage: M, low: float, high: float) -> Tensor:
    """True [M] where the clip removes the gradient.

    There rho is above 1 + high with A > 0, or below 1 - low with A < 0.

    >>> clip_acts(torch.tensor([1.5, 1.5]).log(), torch.tensor([1.0, -1.0]), 0.2, 0.28).tolist()
    [True, False]
    """
    ratio = torch.exp(log_rho)
    return ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))


def weighted(logp: M, log_rho: M, advantage: M, low: float, high: float) -> M:
    """-sg(clip(rho, 1 - low, 1 + high)) A log pi: the ratio is a bounded weight without gradient.

    No token loses its gradient to the clip. CISPO, arXiv:2506.13585, eq. 4.

    >>> logp = torch.tensor([-2.0, -2.0], requires_grad=True)
    >>> loss = weighted(logp, logp + torch.tensor([5.0, 2.0]), torch.tensor([1.0, 1.0]), 1.0, 3.0)
    >>> [round(x, 2) for x in loss.tolist()], torch.autograd.grad(loss.sum(), logp)[0].tolist()
    ([8.0, 2.0], [-4.0, -1.0])
    """
    return -torch.exp(log_rho).clamp(1 - low, 1 + high).detach() * advantage * logp


def proximal(logp: M, logp_old: M, sequence: Int[Tensor, " m"]) -> M:
    """(log pi(o)/pi_old(o))^2 / 2 of the whole answer o, shared out over its tokens.

    The tokens' values sum to the answer's, and so do their gradients. Kimi k1.5, arXiv:2501.12599,
    eq. 3.

    >>> proximal(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0, 0])).tolist()
    [1.5, 3.0]
    """
    moved = logp - logp_old
    return sequence_sum(moved, sequence) * moved / 2


def pairs(
    group: Int[Tensor, " s"], rank: Int[Tensor, " s"]
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """(better, worse): the indices of all P pairs of responses of one group and unequal rank.

    K ranked responses make K (K - 1) / 2 pairs.

    >>> [x.tolist() for x in pairs(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([2, 0, 1, 0, 0]))]
    [[1, 1, 2], [0, 2, 0]]
    """
    better, worse = ((group[:, None] == group) & (rank[:, None] < rank)).nonzero().unbind(1)
    return better, worse


def bradley_terry(
    score: Float[Tensor, " s"], group: Int[Tensor, " s"], rank: Int[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """-log sigmoid(score of the better - score of the worse), at the better response of each pair.

    A group's pairs are averaged, so that K ranked responses weigh as much as two. InstructGPT,
    arXiv:2203.02155, eq. 1. With score = beta log pi(o) / pi_ref(o) it is the loss of DPO,
    arXiv:2305.18290, eq. 7. Returns [S].

    >>> score, group = torch.tensor([1.0, 0.0, 0.0, 0.0, 3.0]), torch.tensor([0, 0, 0, 1, 1])
    >>> [round(x, 4) for x in bradley_terry(score, group, torch.tensor([0, 1, 2, 1, 0])).tolist()]
    [0.2088, 0.231, 0.0, 0.0, 0.0486]
    """
    better, worse = pairs(group, rank)
    if not len(better):
        return score * 0
    loss = (
        torch.nn.functional.softplus(score[worse] - score[better])
        / torch.bincount(group[better])[group[better]]
    )
    return torch.zeros_like(score).index_add(0, better, loss)
