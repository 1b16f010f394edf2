"""The distribution that is sampled from, and log-probabilities under it. Sampler and trainer both come here.

The one place that shifts: the token at index t is predicted by the hidden state at t - 1.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import checkpoint

MAX_LOGITS = 1 << 24  # numbers of [tokens x vocabulary] held at once; more are made again in the backward pass


def processed(
    logits: Float[Tensor, "m v"],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    keep: Int[Tensor, " m"] | None = None,
) -> Float[Tensor, "m v"]:
    """log-probabilities [M, V] of the distribution that is sampled from: temperature, then top-k, then top-p, renormalised.

    temperature 0 (greedy) gives those at temperature 1. Excluded tokens get -inf; `keep` names one token a row that is never
    excluded (the trainer's, where the policy has moved on since it sampled). top-p keeps the smallest set of most likely
    tokens whose probability reaches top_p (arXiv:1904.09751), always at least one.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    >>> [round(x, 4) for x in processed(logits, temperature=0.5)[0].exp().tolist()]
    [0.0159, 0.1173, 0.8668]
    >>> [round(x, 4) for x in processed(logits, top_k=2)[0].exp().tolist()]
    [0.0, 0.2689, 0.7311]
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if temperature not in (0.0, 1.0):
        wide = wide / temperature
    if (top_k <= 0 or top_k >= wide.shape[-1]) and top_p >= 1.0:
        return wide.log_softmax(-1)
    ordered, index = wide.detach().sort(dim=-1, descending=True, stable=True)
    out = torch.zeros_like(ordered, dtype=torch.bool)
    if 0 < top_k < wide.shape[-1]:
        out[:, top_k:] = True
    probability = ordered.masked_fill(out, -torch.inf).softmax(-1)
    out |= probability.cumsum(-1) - probability >= top_p
    out[:, 0] = False
    excluded = torch.zeros_like(out).scatter(1, index, out)
    if keep is not None:
        excluded.scatter_(1, keep[:, None], False)
    return wide.masked_fill(excluded, -torch.inf).log_softmax(-1)


def before(states: Float[Tensor, " *n"], chosen: Int[Tensor, " m"]) -> Float[Tensor, " *m"]:
    """The state (row, or number) of the N that each of the M chosen tokens was drawn in. Raises ValueError where one has no predecessor in the pack."""
    if len(chosen) and int(chosen.min()) < 1:
        raise ValueError("the first token of a pack has no predecessor")
    return states[chosen - 1]


def chosen_logprobs(
    hidden: Float[Tensor, "n h"],
    head: Callable[[Tensor], Tensor],
    tokens: Int[Tensor, " n"],
    chosen: Int[Tensor, " m"],
    shape: Callable[[Tensor, Tensor], Tensor],
    entropy_grad: bool = False,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """log pi(tokens[chosen]) [M] and the entropy [M] of the distributions they were drawn from.

    `head` turns hidden rows into logits; `shape(logits [m, V], target [m])` turns those into log-probabilities (`processed`,
    with the sampling's settings). Only the M rows that predict a chosen token are projected, in chunks of at most MAX_LOGITS
    numbers that are computed again in the backward pass, so that [N x V] is never held. The entropy carries gradient only
    where `entropy_grad` asks for it.
    Raises ValueError where a chosen token has no predecessor in the pack.
    """
    rows, targets = before(hidden, chosen), tokens[chosen]

    def chunk(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logp = shape(head(rows), targets)
        spread = logp if entropy_grad else logp.detach()
        finite = spread.masked_fill(spread == -torch.inf, 0.0)
        return logp.gather(1, targets[:, None]).squeeze(1), -(spread.exp() * finite).sum(-1)

    with torch.no_grad():
        vocabulary = head(rows[:1]).shape[-1] if len(rows) else 1
    size = max(1, MAX_LOGITS // vocabulary)
    if len(rows) <= size:
        return chunk(rows, targets)
    again = cast(Callable[..., tuple[Tensor, Tensor]], checkpoint.checkpoint)  # pyright: ignore[reportUnknownMemberType]
    parts = [
        again(chunk, rows[i : i + size], targets[i : i + size], use_reentrant=False) for i in range(0, len(rows), size)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
