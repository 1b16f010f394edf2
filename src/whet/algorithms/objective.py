"""The objective that a row of the table describes: advantages of answers, weights and loss of tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from whet.algorithms.advantages import ADVANTAGES
from whet.algorithms.algorithm import Algorithm
from whet.algorithms.batch import PolicyBatch
from whet.algorithms.kl import KL
from whet.algorithms.losses import (
    clip_acts,
    clipped,
    log_ratio,
    policy_gradient,
    proximal,
    sequence_log_ratio,
    weighted,
)

M = Float[Tensor, " m"]


def advantages(row: Algorithm, rewards: Sequence[Sequence[float]]) -> list[Float[Tensor, " g"]]:
    """One advantage for each answer of each group, in float64."""
    return ADVANTAGES[row.advantage]([torch.tensor(r, dtype=torch.float64) for r in rewards])


def weights(row: Algorithm, lengths: Sequence[int], limit: int) -> list[float]:
    """The weight [S] of each token of a sequence in the loss of one update.

    `lengths` [S] are those of ALL sequences of the update.

    sequence_mean   1 / (S |o_i|)     mean over tokens, then sequences   arXiv:2402.03300, eq. 3
    token_mean      1 / sum_j |o_j|   every token alike                  arXiv:2503.14476, eq. 8
    sum_over_limit  1 / (S limit)     length is not rewarded             arXiv:2503.20783, sec. 3.2
    sum             1 / S             log-probability of whole answers   arXiv:2402.14740
    """
    count, total = len(lengths), sum(lengths)
    match row.aggregation:
        case "sequence_mean":
            return [1 / (count * max(n, 1)) for n in lengths]
        case "token_mean":
            return [1 / max(total, 1)] * count
        case "sum_over_limit":
            return [1 / (count * limit)] * count
        case "sum":
            return [1 / count] * count


def clone_weights(row: Algorithm, lengths: Sequence[int], right: Sequence[bool]) -> list[float]:
    """The weight [S] of the log-likelihood of each token of a right answer; 0 for wrong ones.

    `clone` / (tokens of right answers). VAPO, arXiv:2504.05118, sec. 4.3.
    """
    tokens = sum(n for n, r in zip(lengths, right, strict=True) if r)
    return [row.clone / max(tokens, 1) if r else 0.0 for r in right]


def loss(
    row: Algorithm, logp: M, entropy: M, batch: PolicyBatch, logp_ref: Tensor | None = None
) -> M:
    """The loss of each token, times its weight: the sum over an update's batch is its loss.

    `logp_ref` [M] are the reference's log-probabilities, for a row that `needs_reference`.
    """
    if row.ratio == "none":
        each = policy_gradient(logp, batch.advantage)
    elif row.ratio == "weight":
        rho = log_rho(row, logp, batch)
        each = weighted(logp, rho, batch.advantage, row.clip_low, row.clip_high)
    else:
        each = clipped(log_rho(row, logp, batch), batch.advantage, row.clip_low, row.clip_high)
    if row.needs_reference:
        if logp_ref is None:
            raise ValueError(
                f"{row.name}: beta = {row.beta} needs the reference's log-probabilities"
            )
        each = each + row.beta * KL[row.kl](logp, logp_ref)
    if row.tau:
        each = each + row.tau * proximal(logp, batch.logp_old, batch.sequence)
    if row.entropy:
        each = each - row.entropy * entropy
    each = each * batch.weight
    return each - batch.clone * logp if row.clone else each


def log_rho(row: Algorithm, logp: M, batch: PolicyBatch) -> M:
    """The log of the importance ratio of each token: its own, or its answer's."""
    if row.ratio == "sequence":
        return sequence_log_ratio(logp, batch.logp_old, batch.sequence)
    return log_ratio(logp, batch.logp_old)


def bounded(row: Algorithm, logp: M, batch: PolicyBatch) -> Tensor:
    """True [M] where the clip removes a token's gradient, or bounds its weight."""
    if row.ratio == "none":
        return torch.zeros_like(logp, dtype=torch.bool)
    rho = log_rho(row, logp, batch)
    if row.ratio == "weight":
        return (rho.exp() > 1 + row.clip_high) | (rho.exp() < 1 - row.clip_low)
    return clip_acts(rho, batch.advantage, row.clip_low, row.clip_high)
