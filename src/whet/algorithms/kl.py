"""Estimators of KL(pi || ref), [M], from log-probabilities of tokens that were drawn from pi.

An estimator's gradient through pi is not that of its value:

    k1   value unbiased             expected gradient 0: useless in a loss, exact in the reward
    k2   value biased               expected gradient that of KL(pi || ref): the one for a loss
    k3   value unbiased, never < 0  expected gradient that of KL(ref || pi): GRPO's choice

Source: J. Schulman, "Approximating KL divergence" (2020); GRPO, arXiv:2402.03300, eq. 4.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

M = Float[Tensor, " m"]


def k1(logp: M, logp_ref: M) -> M:
    """log pi - log ref.

    >>> k1(torch.tensor([-1.0]), torch.tensor([-2.0])).tolist()
    [1.0]
    """
    return logp - logp_ref


def k2(logp: M, logp_ref: M) -> M:
    """(log pi - log ref)^2 / 2.

    >>> k2(torch.tensor([-1.0]), torch.tensor([-3.0])).tolist()
    [2.0]
    """
    return (logp - logp_ref).square() / 2


def k3(logp: M, logp_ref: M) -> M:
    """x - 1 - log x with x = ref / pi.

    >>> round(k3(torch.tensor([-1.0]), torch.tensor([-2.0])).item(), 4)
    0.3679
    """
    d = logp_ref - logp
    return torch.expm1(d) - d


KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
