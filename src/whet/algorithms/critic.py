"""GAE, and the losses of critics and token-level reward models.

A token's value is the return that the critic expects in the state *before* the token. All functions
work on packs: [M] numbers for the tokens that the policy chose, in order; `sequence` [M] is the
index of each token's sequence.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

M = Float[Tensor, " m"]


def gae(
    rewards: M,
    values: M,
    after: Float[Tensor, " s"],
    sequence: Int[Tensor, " m"],
    gamma: float,
    lam: Tensor,
) -> M:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t.

    GAE, arXiv:1506.02438, eq. 16. `after` [S] is the value of the state behind each sequence's last
    token: 0 where the answer ended, the critic's value where it was cut off. `lam` [S] has one
    lambda for each sequence. Returns [M].

    >>> rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25])
    >>> ended, one, half = torch.tensor([0.0]), torch.tensor([0, 0]), torch.tensor([0.5])
    >>> gae(rewards, values, ended, one, 1.0, half).tolist()
    [0.125, 0.75]
    """
    if not len(rewards):
        return rewards.clone()
    lengths = torch.bincount(sequence, minlength=len(after))
    first = lengths.cumsum(0) - lengths
    at = torch.arange(len(rewards), device=rewards.device) - first[sequence]
    back = lengths[sequence] - 1 - at  # 0 at the last token: all ends stand in one column
    shape = (len(after), int(lengths.max()))

    def aligned(x: Tensor) -> Tensor:
        return x.new_zeros(shape).index_put((sequence, back), x)

    r, v = aligned(rewards), aligned(values)
    ahead, advantage = after.to(values.dtype), torch.zeros_like(after, dtype=values.dtype)
    columns: list[Tensor] = []
    for k in range(shape[1]):
        advantage = r[:, k] + gamma * ahead - v[:, k] + gamma * lam.to(values.dtype) * advantage
        columns.append(advantage)
        ahead = v[:, k]
    return torch.stack(columns, 1)[sequence, back]


def returns_to_go(rewards: M, sequence: Int[Tensor, " m"], gamma: float) -> M:
    """sum_{l >= t} gamma^(l - t) r_l within the sequence of each token.

    >>> returns_to_go(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1]), 0.5).tolist()
    [2.0, 2.0, 4.0]
    """
    sequences = int(sequence.max()) + 1 if len(sequence) else 0
    flat = rewards.new_zeros(sequences)
    return gae(rewards, torch.zeros_like(rewards), flat, sequence, gamma, flat + 1)


def adaptive_lambda(lengths: Int[Tensor, " s"], alpha: float) -> Float[Tensor, " s"]:
    """lam = max(1 - 1 / (alpha l), 0) for an answer of l tokens: long answers look further ahead.

    VAPO, arXiv:2504.05118, sec. 4.2.

    >>> [round(x, 4) for x in adaptive_lambda(torch.tensor([10, 40, 1000]), 0.05).tolist()]
    [0.0, 0.5, 0.98]
    """
    return (1 - 1 / (alpha * lengths.clamp(min=1).double())).clamp(min=0)


def value_loss(values: M, target: M, old: M, clip: float) -> M:
    """max((V - R)^2, (V' - R)^2) / 2 per token, V' = V bounded to `old` ± `clip`; no V' at clip 0.

    A value that has already moved by more than `clip` towards its target has no further gradient.
    arXiv:2005.12729, sec. 3.

    >>> V, R, old = torch.tensor([0.5, 0.1]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])
    >>> [round(x, 4) for x in value_loss(V, R, old, 0.2).tolist()]
    [0.32, 0.405]
    >>> [round(x, 4) for x in value_loss(V, R, old, 0.0).tolist()]
    [0.125, 0.405]
    """
    plain = (values - target).square()
    if clip <= 0:
        return plain / 2
    bounded = old + (values - old).clamp(-clip, clip)
    return torch.maximum(plain, (bounded - target).square()) / 2


def explained_variance(values: M, target: M) -> float:
    """1 - var(R - V) / var(R): 1 for a perfect critic, 0 for a constant, negative for a wrong one.

    0 where all R are equal.

    >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    1.0
    """
    spread = float(target.double().var(correction=0)) if len(target) else 0.0
    return 1 - float((target - values).double().var(correction=0)) / spread if spread > 0 else 0.0


def token_reward_loss(
    w: M, sequence: Int[Tensor, " m"], right: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """Binary cross-entropy [S] of sigmoid(mean_t w_t) against whether the answer was right.

    OREAL, arXiv:2502.06781.

    >>> w, sequence = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0, 0, 1])
    >>> token_reward_loss(w, sequence, torch.tensor([1.0, 0.0])).tolist()
    [0.6931471824645996, 2.1269280910491943]
    """
    total = w.new_zeros(len(right)).index_add(0, sequence, w)
    mean = total / torch.bincount(sequence, minlength=len(right)).clamp(min=1)
    return torch.nn.functional.binary_cross_entropy_with_logits(
        mean, right.to(w.dtype), reduction="none"
    )


def token_weights(w: M, right: M) -> M:
    """max(2 sigmoid(w) - 1, 0) for tokens of right answers, max(1 - 2 sigmoid(w), 0) for others.

    OREAL, arXiv:2502.06781.

    >>> w = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> [round(x, 4) for x in token_weights(w, torch.tensor([1.0, 1.0, 0.0, 0.0])).tolist()]
    [0.4621, 0.0, 0.0, 0.4621]
    """
    lean = 2 * torch.sigmoid(w) - 1
    return torch.where(right > 0.5, lean, -lean).clamp(min=0)
