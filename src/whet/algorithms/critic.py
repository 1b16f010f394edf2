"""What a critic does: from rewards and values of tokens to advantages, and the loss its values are
trained with.

A token's value is what the critic expects of the state *before* it. All functions work on packs:
[M] numbers for the tokens the policy chose, `sequence` [M] naming the sequence of each, in order.
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
    """A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t. GAE,
    arXiv:1506.02438, eq. 16.

    `after` [S] is the value of the state behind each sequence's last token: 0 where the answer
    ended, the critic's word where it was cut off. `lam` [S], one for each sequence. Returns [M].

    >>> one = torch.tensor([0, 0])
    >>> A = gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([0.0]), one, 1.0, torch.tensor([0.5]))
    >>> A.tolist()
    [0.125, 0.75]
    """
    if not len(rewards):
        return rewards.clone()
    lengths = torch.bincount(sequence, minlength=len(after))
    first = lengths.cumsum(0) - lengths
    at = torch.arange(len(rewards), device=rewards.device) - first[sequence]
    back = (
        lengths[sequence] - 1 - at
    )  # 0 at each sequence's last token, so that all ends stand in one column
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
    """lam = 1 - 1 / (alpha l) for an answer of l tokens, not below 0: long answers look further
    ahead. VAPO, arXiv:2504.05118, sec. 4.2.

    >>> [round(x, 4) for x in adaptive_lambda(torch.tensor([10, 40, 1000]), 0.05).tolist()]
    [0.0, 0.5, 0.98]
    """
    return (1 - 1 / (alpha * lengths.clamp(min=1).double())).clamp(min=0)


def value_loss(values: M, target: M, old: M, clip: float) -> M:
    """(V - R)^2 / 2 per token; with clip > 0 the larger of it and that of V held within `clip` of
    `old`. arXiv:2005.12729, sec. 3.

    The larger: a value that has already moved by more than `clip` towards its target gets no
    further gradient.

    >>> V, R, old = torch.tensor([0.5, 0.1]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])
    >>> [round(x, 4) for x in value_loss(V, R, old, 0.2).tolist()]
    [0.32, 0.405]
    >>> [round(x, 4) for x in value_loss(V, R, old, 0.0).tolist()]
    [0.125, 0.405]
    """
    plain = (values - target).square()
    if clip <= 0:
        return plain / 2
    held = old + (values - old).clamp(-clip, clip)
    return torch.maximum(plain, (held - target).square()) / 2


def explained_variance(values: M, target: M) -> float:
    """1 - var(R - V) / var(R): 1 for a perfect critic, 0 for a constant, negative for one that
    misleads. 0 where all R are equal.

    >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    1.0
    """
    spread = float(target.double().var(correction=0)) if len(target) else 0.0
    return 1 - float((target - values).double().var(correction=0)) / spread if spread > 0 else 0.0


def token_reward_loss(
    w: M, sequence: Int[Tensor, " m"], right: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """Binary cross-entropy of sigmoid(mean_t w_t) [S] against whether the answer was right. OREAL,
    arXiv:2502.06781.

    >>> token_reward_loss(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0])).tolist()
    [0.6931471824645996, 2.1269280910491943]
    """
    total = w.new_zeros(len(right)).index_add(0, sequence, w)
    mean = total / torch.bincount(sequence, minlength=len(right)).clamp(min=1)
    return torch.nn.functional.binary_cross_entropy_with_logits(
        mean, right.to(w.dtype), reduction="none"
    )


def token_weights(w: M, right: M) -> M:
    """max(2 sigmoid(w) - 1, 0) for tokens of right answers, max(1 - 2 sigmoid(w), 0) for those of
    wrong ones. OREAL, arXiv:2502.06781.

    >>> w = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> [round(x, 4) for x in token_weights(w, torch.tensor([1.0, 1.0, 0.0, 0.0])).tolist()]
    [0.4621, 0.0, 0.0, 0.4621]
    """
    lean = 2 * torch.sigmoid(w) - 1
    return torch.where(right > 0.5, lean, -lean).clamp(min=0)
