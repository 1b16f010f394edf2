"""Advantages of answers from rewards, in float64: a tensor [G] per group in, one per group out.

Equal rewards give an advantage of exactly 0, even where their mean is rounded: a group without
signal has no gradient.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Rewards = Float[Tensor, " g"]  # of one group, float64
Advantage = Callable[[Sequence[Tensor]], list[Tensor]]


def _equal(rewards: Tensor) -> bool:
    return len(rewards) == 0 or bool(rewards.max() == rewards.min())


def centred(groups: Sequence[Rewards]) -> list[Rewards]:
    """A_i = r_i - mean(r) within the group, not divided by the deviation.

    Dr. GRPO, arXiv:2503.20783, sec. 3.2.

    >>> [a.tolist() for a in centred([torch.tensor([1.0, 0.0, 0.0, 0.0])])]
    [[0.75, -0.25, -0.25, -0.25]]
    """
    return [torch.zeros_like(r) if _equal(r) else r - r.mean() for r in groups]


def zscored(groups: Sequence[Rewards], eps: float = 1e-6) -> list[Rewards]:
    """A_i = (r_i - mean(r)) / (std(r) + eps) within the group; std without Bessel's correction.

    GRPO, arXiv:2402.03300, sec. 4.1.2.

    >>> (advantages,) = zscored([torch.tensor([1.0, 0.0, 0.0, 0.0]).double()])
    >>> [round(x, 4) for x in advantages.tolist()]
    [1.732, -0.5773, -0.5773, -0.5773]
    """
    return [
        a if _equal(r) else a / (r.std(correction=0) + eps)
        for r, a in zip(groups, centred(groups), strict=True)
    ]


def leave_one_out(groups: Sequence[Rewards]) -> list[Rewards]:
    """A_i = r_i - mean of the other rewards of the group: an unbiased baseline.

    A group of one has no other reward, and advantage 0. RLOO, arXiv:2402.14740.

    >>> [a.tolist() for a in leave_one_out([torch.tensor([1.0, 0.0, 0.0])])]
    [[1.0, -0.5, -0.5]]
    """
    return [
        torch.zeros_like(r) if _equal(r) else (len(r) * r - r.sum()) / (len(r) - 1) for r in groups
    ]


def batch_centred(groups: Sequence[Rewards]) -> list[Rewards]:
    """A_i = r_i - mean over all samples of the batch: one baseline for all prompts.

    REINFORCE, Williams 1992.

    >>> [a.tolist() for a in batch_centred([torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0])])]
    [[0.5, 0.5], [-0.5, -0.5]]
    """
    rewards = torch.cat(list(groups))
    baseline = rewards[:1].sum() if _equal(rewards) else rewards.mean()
    return [r - baseline for r in groups]


def raw(groups: Sequence[Rewards]) -> list[Rewards]:
    """A_i = r_i: for rows whose baseline is a critic's value or the mean of the batch.

    >>> [a.tolist() for a in raw([torch.tensor([1.0, 0.0])])]
    [[1.0, 0.0]]
    """
    return list(groups)


def none(groups: Sequence[Rewards]) -> list[Rewards]:
    """A_i = 0: the reward is not read; the KL to a teacher is the only signal.

    >>> [a.tolist() for a in none([torch.tensor([1.0, 0.0])])]
    [[0.0, 0.0]]
    """
    return [torch.zeros_like(r) for r in groups]


def cloned(groups: Sequence[Rewards]) -> list[Rewards]:
    """A_i = 1 for right answers (r > 1/2), -k / (G - 1) for wrong ones; k answers are right.

    OREAL, arXiv:2502.06781. Equal rewards give 0. The paper's derivation weighs a failure by 1 - p,
    p the success rate. Its preprocessing F, the leave-one-out baseline of paper and released code
    alike, makes that -p, so that a failure weighs little where success is rare. This is the latter.

    >>> [a.tolist() for a in cloned([torch.tensor([1.0, 0.0, 0.0])])]
    [[1.0, -0.5, -0.5]]
    """
    advantages: list[Rewards] = []
    for r in groups:
        right = (r > 0.5).to(r.dtype)
        wrong = -right.sum() / max(len(r) - 1, 1)
        signed = torch.where(right > 0, 1.0, wrong)
        advantages.append(torch.zeros_like(r) if _equal(right) else signed)
    return advantages


def whitened(values: Float[Tensor, " m"], eps: float = 1e-8) -> Float[Tensor, " m"]:
    """(x - mean) / (std + eps) over all M numbers; std without Bessel's correction.

    Equal numbers give exactly 0. PPO's and REINFORCE++'s normalisation.

    >>> [round(x, 4) for x in whitened(torch.tensor([1.0, 2.0, 3.0]).double()).tolist()]
    [-1.2247, 0.0, 1.2247]
    """
    if _equal(values):
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.std(correction=0) + eps)


ADVANTAGES: dict[str, Advantage] = {
    "raw": raw,
    "none": none,
    "cloned": cloned,
    "centred": centred,
    "zscored": zscored,
    "leave_one_out": leave_one_out,
    "batch_centred": batch_centred,
}
