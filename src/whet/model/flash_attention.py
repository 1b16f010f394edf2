"""Attention over a pack on a GPU: flash kernels over ragged segments, without padding.

Segments that share a prefix all read it, as on a CPU (attention.py). `attention_for` chooses between
the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.model.attention import QKV, Attend, Attention, Output, Packed, Read


@dataclass(frozen=True, eq=False)
class Spans:
    """Which rows of queries read which rows of keys, in one kernel call.

    Segment i has the queries of rows queries[i] .. queries[i + 1] - 1 and the keys of rows keys[i]
    .. keys[i + 1] - 1, of which `used` leaves the first used[i]. All are int32, on the device of the
    queries. longest: the most queries and the most keys of a segment. causal: a segment has as many
    keys as queries, and a query reads the keys up to its own.
    """

    queries: Int[Tensor, " s1"]
    keys: Int[Tensor, " s1"]
    longest: tuple[int, int]
    causal: bool = False
    used: Int[Tensor, " s"] | None = None


class Kernel(Protocol):
    """Attention over Spans. The log-sum-exps of an Output are [h, n], float32 or wider."""

    def forward(self, qkv: QKV, spans: Spans) -> Output: ...
    def backward(self, grad: Tensor, qkv: QKV, output: Output, spans: Spans) -> QKV:
        """Returns the gradients by queries, keys and values.

        `output` may be of a softmax over more keys than these; then so are the gradients.
        """
        ...


class Flash:
    """Torch's own flash kernels (arXiv:2307.08691): bfloat16 and float16, heads of at most 256."""

    def forward(self, qkv: QKV, spans: Spans) -> Output:
        out, size, *_ = torch.ops.aten._flash_attention_forward(
            *qkv, spans.queries, spans.keys, *spans.longest, 0.0, spans.causal, False,
            seqused_k=spans.used,
        )  # fmt: skip
        return out, size

    def backward(self, grad: Tensor, qkv: QKV, output: Output, spans: Spans) -> QKV:
        # The state of a dropout that there is none of: the kernel does not read it.
        unread = grad.new_zeros(2, dtype=torch.uint64), grad.new_empty(0)
        return torch.ops.aten._flash_attention_backward(
            grad, *qkv, *output, spans.queries, spans.keys, *spans.longest, 0.0, spans.causal, *unread
        )  # fmt: skip


class Plain:
    """The same formulas over one matrix of scores [h, n, m]: the reference for the kernels."""

    def forward(self, qkv: QKV, spans: Spans) -> Output:
        q, k, v = qkv
        scores = self._scores(q, k, spans)
        size = scores.logsumexp(-1)
        weights = (scores - size[..., None]).exp().nan_to_num()
        return torch.einsum("hnm,mhd->nhd", weights.to(v.dtype), self._repeated(v, q)), size

    def backward(self, grad: Tensor, qkv: QKV, output: Output, spans: Spans) -> QKV:
        q, k, v = qkv
        out, size = output
        weights = (self._scores(q, k, spans) - size[..., None]).exp().nan_to_num().to(q.dtype)
        dv = torch.einsum("hnm,nhd->mhd", weights, grad)
        by_weight = torch.einsum("nhd,mhd->hnm", grad, self._repeated(v, q))
        by = by_weight - (grad * out).sum(-1).t()[..., None]
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
        of_query = torch.bucketize(n, spans.queries[1:].long(), right=True)  # the segment
        of_key = torch.bucketize(m, spans.keys[1:].long(), right=True)
        seen = of_query[:, None] == of_key
        place = m - spans.keys[of_key.clamp_max(len(spans.keys) - 2)]
        if spans.causal:
            own = n - spans.queries[of_query.clamp_max(len(spans.queries) - 2)]
            seen = seen & (place <= own[:, None])
        if spans.used is not None:
            seen = seen & (place < spans.used[of_key.clamp_max(len(spans.used) - 1)])
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        scores = torch.einsum("nhd,mhd->hnm", q, self._repeated(k, q)).to(wide) * q.shape[2] ** -0.5
        return scores.masked_fill(~seen, -torch.inf)


FLASH = Flash()


def kernel_for(weight: Tensor, head_dim: int) -> Kernel | None:
    """Returns the kernel for a model of weights like this one, or None where torch has none."""
    if weight.device.type != "cuda" or torch.version.cuda is None:
        return None
    if weight.dtype not in (torch.bfloat16, torch.float16) or head_dim % 8 or head_dim > 256:
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return None
    return FLASH if torch.cuda.get_device_capability(weight.device)[0] >= 8 else None


def can_share_prefixes(weight: Tensor, head_dim: int) -> bool:
    """Whether attention for a model of weights like this one takes `reads`."""
    on_cpu = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return on_cpu or kernel_for(weight, head_dim) is not None


def attention_for(
    starts: Int[Tensor, " s1"], weight: Tensor, head_dim: int, reads: Sequence[Read] = ()
) -> Attention:
    """Returns attention inside the segments of a pack, for a model of weights like this one."""
    kernel = kernel_for(weight, head_dim)
    if kernel is None:
        return Packed(starts, reads=reads)
    return Ragged(starts, kernel, reads, weight.device)


class Ragged:
    """`Packed` by a kernel: one call reads each token's own segment, one call all shared prefixes."""

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
            readers = [torch.arange(first, last) for first, last, _, _ in reads]
            prefixes = [torch.arange(begin, end) for _, _, begin, end in reads]
            counts = [len(x) for x in readers], [len(x) for x in prefixes]
            queries, keys = (
                torch.tensor([0, *x]).cumsum(0).to(device, torch.int32) for x in counts
            )
            self.before = Spans(queries, keys, (max(counts[0]), max(counts[1])))
            self.readers = torch.cat(readers).to(device)
            self.prefix = torch.cat(prefixes).to(device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Attend.apply(q, k, v, self)

    def forward(self, qkv: QKV) -> Output:
        out, size = self.kernel.forward(qkv, self.own)
        if self.before is not None:
            own = out.index_select(0, self.readers), size.index_select(1, self.readers)
            prefix = self.kernel.forward(self._selected(qkv), self.before)
            out_both, size_both = merged(own, prefix)
            out.index_copy_(0, self.readers, out_both)
            size.index_copy_(1, self.readers, size_both)
        return out, size

    def backward(self, grad: Tensor, qkv: QKV, output: Output) -> QKV:
        out, size = output
        dq, dk, dv = self.kernel.backward(grad, qkv, output, self.own)
        if self.before is not None:
            by, read = (x.index_select(0, self.readers) for x in (grad, out))
            sums = size.index_select(1, self.readers)
            da, db, dc = self.kernel.backward(by, self._selected(qkv), (read, sums), self.before)
            dq.index_add_(0, self.readers, da)
            dk.index_add_(0, self.prefix, db)
            dv.index_add_(0, self.prefix, dc)
        return dq, dk, dv

    def _selected(self, qkv: QKV) -> QKV:
        """Queries of the readers, keys and values of the prefixes."""
        q, k, v = qkv
        return (
            q.index_select(0, self.readers),
            k.index_select(0, self.prefix),
            v.index_select(0, self.prefix),
        )


def merged(one: Output, other: Output) -> Output:
    """Attention over two sets of keys together, from attention over each (arXiv:2205.14135)."""
    (out, size), (out_2, size_2) = one, other
    share = torch.sigmoid(size_2 - size).t()[..., None]
    wide = torch.lerp(out.to(share.dtype), out_2.to(share.dtype), share)
    return wide.to(out.dtype), torch.logaddexp(size_2, size)
