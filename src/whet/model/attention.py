"""Who may look at whom. The decoder is the same in training, prefill and decoding; only this differs.

An Attention gets one layer's queries, keys and values of a flat list of N tokens and returns what each query read.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

FLASH: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACK: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Attention(Protocol):
    def __call__(
        self, layer: int, q: Float[Tensor, "n h d"], k: Float[Tensor, "n kv d"], v: Float[Tensor, "n kv d"]
    ) -> Float[Tensor, "n h d"]: ...


Read = tuple[int, int, int, int]  # (first, last, begin, end): tokens first .. last - 1 also read begin .. end - 1


class Packed:
    """Causal attention inside each segment of a pack; segments never see each other, but for what `reads` allows.

    `starts` [S + 1] are the segments' offsets, ending with N. Segments of similar length are attended to together, so that
    padding, which exists only inside this class, stays below `slack` of the work. No token may be named by two of `reads`.
    """

    def __init__(self, starts: Int[Tensor, " s1"], slack: float = 0.25, reads: Sequence[Read] = ()) -> None:
        lengths = (starts[1:] - starts[:-1]).tolist()
        if not lengths or min(lengths) < 1:
            raise ValueError("Packed: every segment needs at least one token")
        self.n, self.reads = sum(lengths), reads
        offsets = starts[:-1].tolist()
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        self.buckets: list[tuple[Tensor, Tensor]] = []  # (index [B, L] into the pack, real [B, L])
        first = 0
        while first < len(order):
            longest = lengths[order[first]]
            last = first
            while last < len(order) and lengths[order[last]] >= longest * (1 - slack):
                last += 1
            rows = order[first:last]
            steps = torch.arange(longest)
            length = torch.tensor([lengths[i] for i in rows])[:, None]
            offset = torch.tensor([offsets[i] for i in rows])[:, None]
            real = steps < length
            self.buckets.append(((offset + steps.minimum(length - 1)).to(starts.device), real.to(starts.device)))
            first = last
        flat = torch.cat([index[real] for index, real in self.buckets])
        place = torch.cat([real.reshape(-1) for _, real in self.buckets]).nonzero().squeeze(1)
        self.place = torch.empty_like(flat).scatter_(0, flat, place)  # [N] of a token among all buckets' rows

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64):
            return _Attend.apply(q, k, v, self)
        if self.reads:
            raise ValueError("Packed: reads are for a CPU in float32 or float64")
        parts: list[Tensor] = []
        for index, _ in self.buckets:
            # [B, L, heads, d] -> [B, heads, L, d]. Padding stands at the end, where no causal query reads it.
            a, b, c = (x[index].transpose(1, 2) for x in (q, k, v))
            read = F.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])
            parts.append(read.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)[self.place]

    def padded(self, x: Float[Tensor, "n h d"], index: Tensor, repeat: int = 1) -> Float[Tensor, "b h l d"]:
        """A bucket's rows of x, each head as often as `repeat`."""
        rows = x.index_select(0, index.reshape(-1))
        rows = rows if repeat == 1 else rows.repeat_interleave(repeat, 1)
        return rows.view(*index.shape, *rows.shape[1:]).transpose(1, 2)

    def gathered(self, parts: list[Tensor], repeat: int = 1) -> Float[Tensor, "n h d"]:
        """[B, heads, L, d] of every bucket -> one row for each token; `repeat` heads are summed to one."""
        rows = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in parts]).index_select(0, self.place)
        return rows if repeat == 1 else rows.unflatten(1, (-1, repeat)).sum(2)


def _beside(x: Float[Tensor, "n h d"], kv: int) -> Float[Tensor, "1 kv m d"]:
    """Heads that read the same keys, as more rows of one."""
    return x.view(len(x), kv, -1, x.shape[2]).permute(1, 0, 2, 3).reshape(1, kv, -1, x.shape[2])


def _apart(x: Float[Tensor, "1 kv m d"], n: int) -> Float[Tensor, "n h d"]:
    """The inverse of `_beside`."""
    return x.view(x.shape[1], n, -1, x.shape[3]).transpose(0, 1).reshape(n, -1, x.shape[3])


class _Attend(Function):
    """Attention on a CPU. What a token reads in its segment and what it reads before it are weighed by their sums of exponentials (arXiv:2205.14135):
    with the sums of the whole, each part's gradient is that of its keys in the whole."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Packed) -> Tensor:
        kv, repeat = k.shape[1], q.shape[1] // k.shape[1]
        outs, sizes = list[Tensor](), list[Tensor]()
        for index, _ in plan.buckets:
            a, b, c = plan.padded(q, index), plan.padded(k, index, repeat), plan.padded(v, index, repeat)
            out, size = FLASH(a, b, c, 0.0, True)
            outs.append(out)
            sizes.append(size[..., None])
        out, size = plan.gathered(outs), plan.gathered(sizes).contiguous()
        for first, last, begin, end in plan.reads:
            b, c = (x[begin:end].transpose(0, 1)[None] for x in (k, v))
            also, more = FLASH(_beside(q[first:last], kv), b, c, 0.0, False)
            also, more = (_apart(x.contiguous(), last - first) for x in (also, more[..., None]))
            out[first:last].lerp_(also, torch.sigmoid(more - size[first:last]))
            size[first:last] = torch.logaddexp(more, size[first:last])
        ctx.save_for_backward(q, k, v, out, size)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        q, k, v, out, size = ctx.saved_tensors
        plan, kv, repeat = ctx.plan, k.shape[1], q.shape[1] // k.shape[1]
        grad = given[0].contiguous()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for index, real in plan.buckets:
            a, b, c = plan.padded(q, index), plan.padded(k, index, repeat), plan.padded(v, index, repeat)
            told = plan.padded(grad, index) * real[:, None, :, None]  # nothing flows from padding
            parts.append(
                FLASH_BACK(told, a, b, c, plan.padded(out, index), plan.padded(size, index)[..., 0], 0.0, True)
            )
        dq = plan.gathered([p[0] for p in parts])
        dk, dv = plan.gathered([p[1] for p in parts], repeat), plan.gathered([p[2] for p in parts], repeat)
        for first, last, begin, end in plan.reads:
            b, c = (x[begin:end].transpose(0, 1)[None] for x in (k, v))
            a, told, read, sums = (_beside(x[first:last], kv) for x in (q, grad, out, size))
            da, db, dc = FLASH_BACK(told, a, b, c, read, sums[..., 0], 0.0, False)
            dq[first:last] += _apart(da.contiguous(), last - first)
            dk[begin:end] += db[0].transpose(0, 1)
            dv[begin:end] += dc[0].transpose(0, 1)
        return dq, dk, dv, None
