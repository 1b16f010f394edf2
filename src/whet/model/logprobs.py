"""The distribution that tokens are sampled from, and log-probabilities under it.

Sampler and trainer share this file. It is the one place that shifts logits against tokens: the
token at index t is predicted by the hidden state at t - 1.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.utils import checkpoint

from whet.kernels import compiled, usable

# Logits [tokens x vocabulary] in memory at once; more are computed again in the backward pass.
MAX_LOGITS, MAX_ELSEWHERE = {"cpu": 1 << 22}, 1 << 26


def processed(
    logits: Float[Tensor, "m v"],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    keep: Int[Tensor, " m"] | None = None,
) -> Float[Tensor, "m v"]:
    """Returns log-probabilities [M, V] of the sampling distribution.

    Temperature comes first, then top-k, then top-p; what is left is renormalised. Temperature 0
    (greedy) gives the distribution at temperature 1. top-p keeps the smallest set of most likely
    tokens whose probability reaches top_p (arXiv:1904.09751), always at least one. Excluded tokens
    get -inf. `keep` names a token per row that is never excluded: the sampled one, when a policy
    that has been updated since is asked.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    >>> [round(x, 4) for x in processed(logits, temperature=0.5)[0].exp().tolist()]
    [0.0159, 0.1173, 0.8668]
    >>> [round(x, 4) for x in processed(logits, top_k=2)[0].exp().tolist()]
    [0.0, 0.2689, 0.7311]
    """
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    wide = logits if temperature in (0.0, 1.0) else logits.to(kind) / temperature
    if (top_k <= 0 or top_k >= wide.shape[-1]) and top_p >= 1.0:
        return wide.log_softmax(-1, dtype=kind)
    wide = wide.to(kind)
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


def rows_at_once(vocabulary: int, device: str) -> int:
    """Returns how many rows of logits to hold at once on a device: on a CPU, what its cache holds."""
    return max(1, MAX_LOGITS.get(device, MAX_ELSEWHERE) // vocabulary)


def before(states: Float[Tensor, " *n"], chosen: Int[Tensor, " m"]) -> Float[Tensor, " *m"]:
    """Returns, of N states, the one that each of M chosen tokens was drawn from.

    Raises ValueError where a chosen token has no predecessor in the pack.
    """
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
    """Returns log pi(tokens[chosen]) [M] and the entropy [M] of their distributions.

    `head` turns hidden rows into logits; `shape(logits [m, V], targets [m])` turns logits into
    log-probabilities (`processed`, with the sampling's settings). Only the M rows that predict a
    chosen token are projected, in chunks of `rows_at_once` that are computed again in the backward
    pass, so that [N x V] is never in memory. The entropy has a gradient with `entropy_grad` only.
    Raises ValueError where a chosen token has no predecessor in the pack.
    """
    rows, targets = before(hidden, chosen), tokens[chosen]

    def chunk(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logp = shape(head(rows), targets)
        every = logp if entropy_grad else logp.detach()
        finite = every.masked_fill(every == -torch.inf, 0.0)
        return logp.gather(1, targets[:, None]).squeeze(1), -(every.exp() * finite).sum(-1)

    with torch.no_grad():
        vocabulary = head(rows[:1]).shape[-1] if len(rows) else 1
    size = rows_at_once(vocabulary, rows.device.type)
    if len(rows) <= size:
        return chunk(rows, targets)
    again = cast(Callable[..., tuple[Tensor, Tensor]], checkpoint.checkpoint)  # pyright: ignore[reportUnknownMemberType]
    parts = [
        again(chunk, rows[i : i + size], targets[i : i + size], use_reentrant=False)
        for i in range(0, len(rows), size)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def linear_logprobs(
    hidden: Float[Tensor, "n h"],
    weight: Float[Tensor, "v h"],
    tokens: Int[Tensor, " n"],
    chosen: Int[Tensor, " m"],
    temperature: float,
    entropy_grad: bool = False,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """`chosen_logprobs` of the logits hidden x weight^T, shaped by a temperature alone.

    The gradient by the logits z is in closed form, d logp / dz_j = (1[j is chosen] - p_j) /
    temperature and d entropy / dz_j = -p_j (log p_j + entropy) / temperature. It is written over
    the logits, so that forward and backward hold one tensor of logits per chunk.
    """
    rows, targets = before(hidden, chosen), tokens[chosen]
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _Chosen.apply)  # pyright: ignore[reportUnknownMemberType]
    logp, entropy = apply(rows, weight, targets, 1 / (temperature or 1.0))
    return logp, entropy if entropy_grad else entropy.detach()


def summarized(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the targets' log-probabilities [m], entropy [m] and log-sum-exp [m] of logits * scale.

    logits: [m, V]; targets: [m].
    """
    if usable(logits):
        logp, entropy, size = (logits.new_empty(len(logits)) for _ in range(3))
        tensors = (logits, targets, logp, entropy, size)
        compiled().call("logprobs", tensors, *logits.shape, float(scale), work=logits.numel())
        return logp, entropy, size
    logp, at = _scaled(logits, scale), targets[:, None]
    chosen = logp.gather(1, at).squeeze(1)
    size = logits.gather(1, at).squeeze(1).to(logp.dtype) * scale - chosen
    return chosen, -(logp.exp() * logp).sum(-1), size


def summarized_back(
    logits: Tensor, summary: tuple[Tensor, ...], g: Tensor, h: Tensor | None, scale: float
) -> Tensor:
    """Returns the gradient [m, V] by the logits of sum(g logp + h entropy), perhaps over the logits.

    summary: targets, entropy, log-sum-exp.
    """
    targets, entropy = summary[:2]
    if usable(logits):
        tensors = (logits, *summary, g, h)
        compiled().call("logprobs_back", tensors, *logits.shape, float(scale), work=logits.numel())
        return logits
    logp, g = _scaled(logits, scale), g[:, None] * scale
    by = g if h is None else g + h[:, None] * scale * (logp + entropy[:, None])
    by = logp.exp_().mul_(-by) if h is None else logp.exp() * -by
    return by.scatter_add_(1, targets[:, None], g).to(logits.dtype)


def _scaled(logits: Tensor, scale: float) -> Tensor:
    """log-probabilities of logits * scale, in float32 at least."""
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return (logits if scale == 1.0 else logits.to(kind) * scale).log_softmax(-1, dtype=kind)


class _Chosen(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        size = rows_at_once(len(weight), rows.device.type)
        chunks: list[tuple[Tensor, ...]] = []
        buffer = rows.new_empty(min(size, len(rows)), len(weight))
        for i in range(0, len(rows), size):
            logits = torch.mm(rows[i : i + size], weight.t(), out=buffer[: len(rows) - i])
            chunks.append(summarized(logits, targets[i : i + size], scale))
        logp, entropy, sums = (
            (torch.cat(x) for x in zip(*chunks, strict=True)) if chunks else rows.new_empty(3, 0)
        )
        kept = buffer if len(chunks) == 1 else None  # else logits are computed again
        ctx.save_for_backward(rows, weight, targets, entropy, sums, kept)
        ctx.scale, ctx.size = scale, size
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows, weight, targets, entropy, sums, kept = ctx.saved_tensors
        g, h = (x.contiguous() for x in grads)
        h = h if h.any() else None
        back, by_weight = torch.empty_like(rows), torch.zeros_like(weight)
        buffer = rows.new_empty(min(ctx.size, len(rows)), len(weight))
        for i in range(0, len(rows), ctx.size):
            at, logits = slice(i, i + ctx.size), buffer[: len(rows) - i]
            if kept is None:
                torch.mm(rows[at], weight.t(), out=logits)
            else:
                logits.copy_(kept)
            summary, part = (targets[at], entropy[at], sums[at]), None if h is None else h[at]
            by = summarized_back(logits, summary, g[at], part, ctx.scale)
            torch.mm(by, weight, out=back[at])
            by_weight.addmm_(by.t(), rows[at])
        return back, by_weight, None, None
