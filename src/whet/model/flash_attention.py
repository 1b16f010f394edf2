"""Attention over ragged segments: what one kernel call computes, the kernels there are, and a
pack's attention made of two such calls.

A GPU's path. There is no padding, and what sequences begin with in common is read by all of them,
as on a CPU (attention.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from whet.model.attention import Attention, Packed, Read

Given = tuple[Tensor, Tensor, Tensor]  # queries [n, h, d], keys and values [m, kv, d]
Told = tuple[
    Tensor, Tensor
]  # what was read [n, h, d], and the log-sum-exp of each query's scores [h, n], float32 or wider


@dataclass(frozen=True, eq=False)
class Spans:
    """Segment i's queries are the rows queries[i] .. queries[i + 1] - 1, its keys keys[i] .. keys[i
    + 1] - 1; with `used` only the first used[i] of them.

    int32, on the device of what is attended to. longest: queries and keys of a segment at most.
    causal: as many keys as queries, and a query reads those up to its own.
    """

    queries: Int[Tensor, " s1"]
    keys: Int[Tensor, " s1"]
    longest: tuple[int, int]
    causal: bool = False
    used: Int[Tensor, " s"] | None = None


class Kernel(Protocol):
    def forward(self, given: Given, spans: Spans) -> Told: ...
    def backward(self, grad: Tensor, given: Given, told: Told, spans: Spans) -> Given:
        """Gradients by queries, keys and values. `told` may be of a softmax over more keys than
        these; then so are the gradients.
        """
        ...


class Flash:
    """The kernels that torch brings (arXiv:2307.08691): bfloat16 and float16, heads of at most 256
    numbers.
    """

    def forward(self, given: Given, spans: Spans) -> Told:
        told = torch.ops.aten._flash_attention_forward(
            *given,
            spans.queries,
            spans.keys,
            *spans.longest,
            0.0,
            spans.causal,
            False,
            seqused_k=spans.used,
        )
        return told[0], told[1]

    def backward(self, grad: Tensor, given: Given, told: Told, spans: Spans) -> Given:
        unread = (
            grad.new_zeros(2, dtype=torch.uint64),
            grad.new_empty(0),
        )  # of the dropout that there is none of
        return torch.ops.aten._flash_attention_backward(
            grad,
            *given,
            *told,
            spans.queries,
            spans.keys,
            *spans.longest,
            0.0,
            spans.causal,
            *unread,
        )


class Plain:
    """The same formulas over one matrix of scores [h, n, m]: what the kernels are held to."""

    def forward(self, given: Given, spans: Spans) -> Told:
        q, k, v = given
        scores = self._scores(q, k, spans)
        size = scores.logsumexp(-1)
        weights = (scores - size[..., None]).exp().nan_to_num()
        return torch.einsum("hnm,mhd->nhd", weights.to(v.dtype), self._repeated(v, q)), size

    def backward(self, grad: Tensor, given: Given, told: Told, spans: Spans) -> Given:
        q, k, v = given
        out, size = told
        weights = (self._scores(q, k, spans) - size[..., None]).exp().nan_to_num().to(q.dtype)
        dv = torch.einsum("hnm,nhd->mhd", weights, grad)
        by = (
            torch.einsum("nhd,mhd->hnm", grad, self._repeated(v, q))
            - (grad * out).sum(-1).t()[..., None]
        )
        by = by * weights * q.shape[2] ** -0.5
        dk = torch.einsum("hnm,nhd->mhd", by, q)
        dq = torch.einsum("hnm,mhd->nhd", by, self._repeated(k, q))
        dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
        return dq, dk, dv

    @staticmethod
    def _repeated(x: Tensor, q: Tensor) -> Tensor:
        return x.repeat_interleave(q.shape[1] // x.shape[1], 1)

    def _scores(self, q: Tensor, k: Tensor, spans: Spans) -> Float[Tensor, "h n m"]:
        """-inf where a query does not look."""
        n, m = (torch.arange(len(x), device=q.device) for x in (q, k))
        asks = torch.bucketize(n, spans.queries[1:].long(), right=True)
        holds = torch.bucketize(m, spans.keys[1:].long(), right=True)
        seen = asks[:, None] == holds
        place = m - spans.keys[holds.clamp_max(len(spans.keys) - 2)]
        if spans.causal:
            seen = seen & (
                place <= (n - spans.queries[asks.clamp_max(len(spans.queries) - 2)])[:, None]
            )
        if spans.used is not None:
            seen = seen & (place < spans.used[holds.clamp_max(len(spans.used) - 1)])
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        scores = torch.einsum("nhd,mhd->hnm", q, self._repeated(k, q)).to(wide) * q.shape[2] ** -0.5
        return scores.masked_fill(~seen, -torch.inf)


FLASH = Flash()


def kernel_for(weight: Tensor, head_dim: int) -> Kernel | None:
    """What attends for a model of weights like this one; None where torch has nothing for it."""
    there = (
        weight.device.type == "cuda"
        and torch.version.cuda is not None
        and weight.dtype in (torch.bfloat16, torch.float16)
    )
    if (
        not there
        or head_dim % 8
        or head_dim > 256
        or not torch.backends.cuda.is_flash_attention_available()
    ):
        return None
    return FLASH if torch.cuda.get_device_capability(weight.device)[0] >= 8 else None


def can_share_prefixes(weight: Tensor, head_dim: int) -> bool:
    """Whether attention over a pack can have `reads`."""
    plain = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return plain or kernel_for(weight, head_dim) is not None


def attention_for(
    starts: Int[Tensor, " s1"], weight: Tensor, head_dim: int, reads: Sequence[Read] = ()
) -> Attention:
    """Attention inside the segments of a pack for a model of weights like this one."""
    kernel = kernel_for(weight, head_dim)
    return (
        Packed(starts, reads=reads)
        if kernel is None
        else Ragged(starts, kernel, reads, weight.device)
    )


class Ragged:
    """What `Packed` is, through a kernel: one call for what tokens read in their own segments, one
    for all that they read before them.
    """

    def __init__(
        self,
        starts: Int[Tensor, " s1"],
        kernel: Kernel,
        reads: Sequence[Read] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        lengths = starts.diff()
        if not len(lengths) or int(lengths.min()) < 1:
            raise ValueError("Ragged: every segment needs at least one token")
        self.kernel = kernel
        bounds, most = starts.to(device, torch.int32), int(lengths.max())
        self.own = Spans(bounds, bounds, (most, most), causal=True)
        self.before: Spans | None = None
        if reads:
            asks, holds = (
                [last - first for first, last, _, _ in reads],
                [end - begin for _, _, begin, end in reads],
            )
            bounds, held = (
                torch.tensor([0, *x]).cumsum(0).to(device, torch.int32) for x in (asks, holds)
            )
            self.before = Spans(bounds, held, (max(asks), max(holds)))
            self.readers = torch.cat([torch.arange(first, last) for first, last, _, _ in reads]).to(
                device
            )
            self.read = torch.cat([torch.arange(begin, end) for _, _, begin, end in reads]).to(
                device
            )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _Attend.apply(q, k, v, self)


def weighed(one: Told, other: Told) -> Told:
    """What is read of two sets of keys together, from what is read of each (arXiv:2205.14135)."""
    (out, size), (also, more) = one, other
    share = torch.sigmoid(more - size).t()[..., None]
    wide = torch.lerp(out.to(share.dtype), also.to(share.dtype), share)
    return wide.to(out.dtype), torch.logaddexp(more, size)


class _Attend(Function):
    """With the sums of the whole, each part's gradient is that of its keys in the whole."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Ragged) -> Tensor:
        out, size = plan.kernel.forward((q, k, v), plan.own)
        if plan.before is not None:
            asked = (
                q.index_select(0, plan.readers),
                k.index_select(0, plan.read),
                v.index_select(0, plan.read),
            )
            mine = out.index_select(0, plan.readers), size.index_select(1, plan.readers)
            whole, sums = weighed(mine, plan.kernel.forward(asked, plan.before))
            out.index_copy_(0, plan.readers, whole)
            size.index_copy_(1, plan.readers, sums)
        ctx.save_for_backward(q, k, v, out, size)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        q, k, v, out, size = ctx.saved_tensors
        plan: Ragged = ctx.plan
        grad = given[0].contiguous()
        dq, dk, dv = plan.kernel.backward(grad, (q, k, v), (out, size), plan.own)
        if plan.before is not None:
            a, told, read = (x.index_select(0, plan.readers) for x in (q, grad, out))
            b, c = (x.index_select(0, plan.read) for x in (k, v))
            sums = size.index_select(1, plan.readers)
            da, db, dc = plan.kernel.backward(told, (a, b, c), (read, sums), plan.before)
            dq.index_add_(0, plan.readers, da)
            dk.index_add_(0, plan.read, db)
            dv.index_add_(0, plan.read, dc)
        return dq, dk, dv, None
