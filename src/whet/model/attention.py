"""Who may look at whom. The decoder is the same in training, prefill and decoding; only this
differs.

An Attention gets one layer's queries, keys and values of a flat list of N tokens and returns what
each query read.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from whet.kernels import attention_room, kernels, usable

FLASH: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACK: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Attention(Protocol):
    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "n h d"],
        k: Float[Tensor, "n kv d"],
        v: Float[Tensor, "n kv d"],
    ) -> Float[Tensor, "n h d"]: ...


Read = tuple[
    int, int, int, int
]  # (first, last, begin, end): tokens first .. last - 1 also read begin .. end - 1


class Packed:
    """Causal attention inside each segment of a pack; segments never see each other, but for what
    `reads` allows: the segments from `first` on read the whole one that stands right before them.
    `starts` [S + 1] are the segments' offsets, ending with N.

    Compiled, nothing is padded. Else segments of similar length are attended to together, and
    padding, which exists only inside this class, stays below `slack` of the work. Raises ValueError
    for an empty segment, and for `reads` that are not so.
    """

    def __init__(
        self, starts: Int[Tensor, " s1"], slack: float = 0.25, reads: Sequence[Read] = ()
    ) -> None:
        self.bounds: list[int] = starts.tolist()
        self.lengths = [last - first for first, last in pairwise(self.bounds)]
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("Packed: every segment needs at least one token")
        whole, ends = set(pairwise(self.bounds)), set(self.bounds)
        if any(
            (begin, end) not in whole or end != first or last not in ends
            for first, last, begin, end in reads
        ):
            raise ValueError(
                "Packed: what is read must be the whole segment before those that read it"
            )
        self.device, self.slack, self.reads = starts.device, slack, reads

    @cached_property
    def buckets(self) -> list[tuple[Tensor, Tensor]]:
        """(index [B, L] into the pack, real [B, L]) of segments of similar length."""
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        made: list[tuple[Tensor, Tensor]] = []
        first = 0
        while first < len(order):
            longest = self.lengths[order[first]]
            last = first
            while last < len(order) and self.lengths[order[last]] >= longest * (1 - self.slack):
                last += 1
            rows = order[first:last]
            steps = torch.arange(longest)
            length = torch.tensor([self.lengths[i] for i in rows])[:, None]
            offset = torch.tensor([self.bounds[i] for i in rows])[:, None]
            made.append(
                (
                    (offset + steps.minimum(length - 1)).to(self.device),
                    (steps < length).to(self.device),
                )
            )
            first = last
        return made

    @cached_property
    def place(self) -> Tensor:
        """[N] of a token among all buckets' rows."""
        flat = torch.cat([index[real] for index, real in self.buckets])
        place = torch.cat([real.reshape(-1) for _, real in self.buckets]).nonzero().squeeze(1)
        return torch.empty_like(flat).scatter_(0, flat, place)

    @cached_property
    def plan(self) -> tuple[Tensor, Tensor]:
        """Of each segment its tokens and what they read besides [S, 4]; the first segment of each
        run [R + 1], as kernels/attention.c has them.
        """
        bounds = np.array(self.bounds)
        segments = np.stack([bounds[:-1], bounds[1:], bounds[:-1], bounds[:-1]], 1)
        alone = np.ones(len(bounds), dtype=bool)
        for first, last, begin, end in self.reads:
            i, j = np.searchsorted(bounds, [first, last])
            segments[i:j, 2:] = begin, end
            alone[i:j] = False
        return torch.from_numpy(segments), torch.from_numpy(np.flatnonzero(alone))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if usable(q, k, v):
            return _Compiled.apply(q, k, v, self)
        if q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64):
            return _Attend.apply(q, k, v, self)
        if self.reads:
            raise ValueError("Packed: reads are for a CPU in float32 or float64")
        parts: list[Tensor] = []
        for index, _ in self.buckets:
            # [B, L, heads, d] -> [B, heads, L, d]. Padding stands at the end, where no causal query
            # reads it.
            a, b, c = (x[index].transpose(1, 2) for x in (q, k, v))
            read = F.scaled_dot_product_attention(
                a, b, c, is_causal=True, enable_gqa=k.shape[1] != q.shape[1]
            )
            parts.append(read.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)[self.place]

    def padded(
        self, x: Float[Tensor, "n h d"], index: Tensor, repeat: int = 1
    ) -> Float[Tensor, "b h l d"]:
        """A bucket's rows of x, each head as often as `repeat`."""
        rows = x.index_select(0, index.reshape(-1))
        rows = rows if repeat == 1 else rows.repeat_interleave(repeat, 1)
        return rows.view(*index.shape, *rows.shape[1:]).transpose(1, 2)

    def gathered(self, parts: list[Tensor], repeat: int = 1) -> Float[Tensor, "n h d"]:
        """[B, heads, L, d] of every bucket -> one row for each token; `repeat` heads are summed to
        one.
        """
        rows = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in parts]).index_select(
            0, self.place
        )
        return rows if repeat == 1 else rows.unflatten(1, (-1, repeat)).sum(2)


def _beside(x: Float[Tensor, "n h d"], kv: int) -> Float[Tensor, "1 kv m d"]:
    """Heads that read the same keys, as more rows of one."""
    return x.view(len(x), kv, -1, x.shape[2]).permute(1, 0, 2, 3).reshape(1, kv, -1, x.shape[2])


def _apart(x: Float[Tensor, "1 kv m d"], n: int) -> Float[Tensor, "n h d"]:
    """The inverse of `_beside`."""
    return x.view(x.shape[1], n, -1, x.shape[3]).transpose(0, 1).reshape(n, -1, x.shape[3])


class _Attend(Function):
    """Attention on a CPU. What a token reads in its segment and what it reads before it are weighed
    by their sums of exponentials (arXiv:2205.14135): with the sums of the whole, each part's
    gradient is that of its keys in the whole.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Packed) -> Tensor:
        kv, repeat = k.shape[1], q.shape[1] // k.shape[1]
        outs, sizes = list[Tensor](), list[Tensor]()
        for index, _ in plan.buckets:
            a, b, c = (
                plan.padded(q, index),
                plan.padded(k, index, repeat),
                plan.padded(v, index, repeat),
            )
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
            a, b, c = (
                plan.padded(q, index),
                plan.padded(k, index, repeat),
                plan.padded(v, index, repeat),
            )
            told = plan.padded(grad, index) * real[:, None, :, None]  # nothing flows from padding
            parts.append(
                FLASH_BACK(
                    told,
                    a,
                    b,
                    c,
                    plan.padded(out, index),
                    plan.padded(size, index)[..., 0],
                    0.0,
                    True,
                )
            )
        dq = plan.gathered([p[0] for p in parts])
        dk, dv = (
            plan.gathered([p[1] for p in parts], repeat),
            plan.gathered([p[2] for p in parts], repeat),
        )
        for first, last, begin, end in plan.reads:
            b, c = (x[begin:end].transpose(0, 1)[None] for x in (k, v))
            a, told, read, sums = (_beside(x[first:last], kv) for x in (q, grad, out, size))
            da, db, dc = FLASH_BACK(told, a, b, c, read, sums[..., 0], 0.0, False)
            dq[first:last] += _apart(da.contiguous(), last - first)
            dk[begin:end] += db[0].transpose(0, 1)
            dv[begin:end] += dc[0].transpose(0, 1)
        return dq, dk, dv, None


class _Compiled(Function):
    """The same without padding, in kernels/attention.c."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Packed) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        segments, _ = plan.plan
        out, size = torch.empty_like(q), q.new_empty(q.shape[:2])
        room = _room(plan, q)
        compiled, sizes = (
            kernels(),
            (len(segments), q.shape[1], k.shape[1], q.shape[2], room.shape[1]),
        )
        assert compiled is not None
        compiled.call("attention", (q, k, v, segments, out, size, room), *sizes, work=q.numel())
        ctx.save_for_backward(q, k, v, out, size)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        q, k, v, out, size = ctx.saved_tensors
        segments, runs = ctx.plan.plan
        dq, dk, dv, room = (
            torch.empty_like(q),
            torch.zeros_like(k),
            torch.zeros_like(v),
            _room(ctx.plan, q),
        )
        compiled, sizes = (
            kernels(),
            (len(runs) - 1, q.shape[1], k.shape[1], q.shape[2], room.shape[1]),
        )
        assert compiled is not None
        tensors = (given[0].contiguous(), q, k, v, out, size, segments, runs, dq, dk, dv, room)
        compiled.call("attention_back", tensors, *sizes, work=q.numel())
        return dq, dk, dv, None


def _room(plan: Packed, q: Tensor) -> Tensor:
    """[threads, numbers] to work in."""
    read = max((end - begin for _, _, begin, end in plan.reads), default=0)
    return q.new_empty(torch.get_num_threads(), attention_room(max(plan.lengths), read, q.shape[2]))
