"""Attention over a pack of sequences: what it is, its gradient, and a CPU's way to compute it.

The decoder is the same in training, prefill and decoding; only its Attention differs. A GPU's way is
flash_attention.py; attention from a cache of keys and values is engines/cache.py.
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

from whet.kernels import attention_room, compiled, usable

FLASH: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACK: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# (first, last, begin, end): tokens first .. last - 1 also read tokens begin .. end - 1.
Read = tuple[int, int, int, int]
QKV = tuple[Tensor, Tensor, Tensor]  # queries [n, h, d], keys and values [m, kv, d]
Output = tuple[Tensor, Tensor]  # what queries read [n, h, d], log-sum-exp of their scores


class Attention(Protocol):
    """Turns one layer's queries, keys and values of N tokens into what each query reads."""

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "n h d"],
        k: Float[Tensor, "n kv d"],
        v: Float[Tensor, "n kv d"],
    ) -> Float[Tensor, "n h d"]: ...


class Method(Protocol):
    """A way to compute attention and its gradient, for `Attend`."""

    def forward(self, qkv: QKV) -> Output: ...
    def backward(self, grad: Tensor, qkv: QKV, output: Output) -> QKV: ...


class Attend(Function):
    """Attention by a Method, as one step of autograd.

    A token reads its own segment and perhaps a prefix before it. The two reads are weighed by their
    sums of exponentials (arXiv:2205.14135). With the log-sum-exp over both, the gradient of either
    part is that of its keys in the whole.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, method: Method) -> Tensor:
        out, size = method.forward((q, k, v))
        ctx.save_for_backward(q, k, v, out, size)
        ctx.method = method
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, size = ctx.saved_tensors
        return *ctx.method.backward(grads[0].contiguous(), (q, k, v), (out, size)), None


class Packed:
    """Causal attention inside each segment of a pack; segments see nothing of one another.

    `starts` [S + 1] are the segments' offsets, ending with N. `reads` makes an exception: segments
    from `first` on also read the whole segment right before them, their shared prefix.

    The compiled kernel needs no padding. Without it, segments of similar length are attended to
    together; padding exists only inside this class and stays below `slack` of the work. Raises
    ValueError for an empty segment, and for `reads` of anything but the segment right before.
    """

    def __init__(
        self, starts: Int[Tensor, " s1"], slack: float = 0.25, reads: Sequence[Read] = ()
    ) -> None:
        self.bounds: list[int] = starts.tolist()
        self.lengths = [last - first for first, last in pairwise(self.bounds)]
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("Packed: every segment needs at least one token")
        segments, ends = set(pairwise(self.bounds)), set(self.bounds)
        for first, last, begin, end in reads:
            if (begin, end) not in segments or end != first or last not in ends:
                raise ValueError("Packed: a prefix must be the whole segment before its readers")
        self.device, self.slack, self.reads = starts.device, slack, reads

    @cached_property
    def buckets(self) -> list[tuple[Tensor, Tensor]]:
        """(index [B, L] into the pack, real [B, L]) of segments of similar length."""
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        buckets: list[tuple[Tensor, Tensor]] = []
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
            index, real = offset + steps.minimum(length - 1), steps < length
            buckets.append((index.to(self.device), real.to(self.device)))
            first = last
        return buckets

    @cached_property
    def place(self) -> Tensor:
        """[N] the row of each token among all buckets' rows."""
        flat = torch.cat([index[real] for index, real in self.buckets])
        place = torch.cat([real.reshape(-1) for _, real in self.buckets]).nonzero().squeeze(1)
        return torch.empty_like(flat).scatter_(0, flat, place)

    @cached_property
    def layout(self) -> tuple[Tensor, Tensor]:
        """The pack as kernels/attention.c reads it: segments [S, 4] and runs [R + 1].

        A segment is its first token, the token after its last, and the same two of its prefix. A
        run is the index of its first segment: a prefix and its readers, or one segment alone.
        """
        bounds = np.array(self.bounds)
        segments = np.stack([bounds[:-1], bounds[1:], bounds[:-1], bounds[:-1]], 1)
        begins = np.ones(len(bounds), dtype=bool)
        for first, last, begin, end in self.reads:
            i, j = np.searchsorted(bounds, [first, last])
            segments[i:j, 2:] = begin, end
            begins[i:j] = False
        return torch.from_numpy(segments), torch.from_numpy(np.flatnonzero(begins))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if usable(q, k, v):
            return Attend.apply(q.contiguous(), k.contiguous(), v.contiguous(), Compiled(self))
        if q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64):
            return Attend.apply(q, k, v, Padded(self))
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


class Padded:
    """Attention over a pack in torch's kernels for a CPU, bucket by bucket."""

    def __init__(self, pack: Packed) -> None:
        self.pack = pack

    def forward(self, qkv: QKV) -> Output:
        q, k, v = qkv
        kv, repeat = k.shape[1], q.shape[1] // k.shape[1]
        outs, sizes = list[Tensor](), list[Tensor]()
        for index, _ in self.pack.buckets:
            out, size = FLASH(*_padded_qkv(qkv, index, repeat), 0.0, True)
            outs.append(out)
            sizes.append(size[..., None])
        out, size = self._gathered(outs), self._gathered(sizes).contiguous()
        for first, last, begin, end in self.pack.reads:
            b, c = (x[begin:end].transpose(0, 1)[None] for x in (k, v))
            prefix, prefix_size = FLASH(_heads_as_rows(q[first:last], kv), b, c, 0.0, False)
            prefix, prefix_size = (
                _rows_as_heads(x.contiguous(), last - first)
                for x in (prefix, prefix_size[..., None])
            )
            out[first:last].lerp_(prefix, torch.sigmoid(prefix_size - size[first:last]))
            size[first:last] = torch.logaddexp(prefix_size, size[first:last])
        return out, size

    def backward(self, grad: Tensor, qkv: QKV, output: Output) -> QKV:
        q, k, v = qkv
        out, size = output
        kv, repeat = k.shape[1], q.shape[1] // k.shape[1]
        parts: list[QKV] = []
        for index, real in self.pack.buckets:
            by = _padded(grad, index) * real[:, None, :, None]  # nothing flows from padding
            read = _padded(out, index), _padded(size, index)[..., 0]
            parts.append(FLASH_BACK(by, *_padded_qkv(qkv, index, repeat), *read, 0.0, True))
        dq, dk, dv = (
            self._gathered([p[i] for p in parts], times)
            for i, times in enumerate((1, repeat, repeat))
        )
        for first, last, begin, end in self.pack.reads:
            b, c = (x[begin:end].transpose(0, 1)[None] for x in (k, v))
            a, by, read, sums = (_heads_as_rows(x[first:last], kv) for x in (q, grad, out, size))
            da, db, dc = FLASH_BACK(by, a, b, c, read, sums[..., 0], 0.0, False)
            dq[first:last] += _rows_as_heads(da.contiguous(), last - first)
            dk[begin:end] += db[0].transpose(0, 1)
            dv[begin:end] += dc[0].transpose(0, 1)
        return dq, dk, dv

    def _gathered(self, parts: list[Tensor], repeat: int = 1) -> Float[Tensor, "n h d"]:
        """[B, heads, L, d] of every bucket -> a row per token, `repeat` heads summed to one."""
        rows = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in parts])
        rows = rows.index_select(0, self.pack.place)
        return rows if repeat == 1 else rows.unflatten(1, (-1, repeat)).sum(2)


def _padded(x: Float[Tensor, "n h d"], index: Tensor, repeat: int = 1) -> Float[Tensor, "b h l d"]:
    """A bucket's rows of x, each head `repeat` times."""
    rows = x.index_select(0, index.reshape(-1))
    rows = rows if repeat == 1 else rows.repeat_interleave(repeat, 1)
    return rows.view(*index.shape, *rows.shape[1:]).transpose(1, 2)


def _padded_qkv(qkv: QKV, index: Tensor, repeat: int) -> QKV:
    q, k, v = qkv
    return _padded(q, index), _padded(k, index, repeat), _padded(v, index, repeat)


def _heads_as_rows(x: Float[Tensor, "n h d"], kv: int) -> Float[Tensor, "1 kv m d"]:
    """Query heads that read the same keys, as further rows of one head."""
    return x.view(len(x), kv, -1, x.shape[2]).permute(1, 0, 2, 3).reshape(1, kv, -1, x.shape[2])


def _rows_as_heads(x: Float[Tensor, "1 kv m d"], n: int) -> Float[Tensor, "n h d"]:
    """The inverse of `_heads_as_rows`."""
    return x.view(x.shape[1], n, -1, x.shape[3]).transpose(0, 1).reshape(n, -1, x.shape[3])


class Compiled:
    """Attention over a pack in kernels/attention.c, without padding."""

    def __init__(self, pack: Packed) -> None:
        self.pack = pack

    def forward(self, qkv: QKV) -> Output:
        q, k, v = qkv
        segments, _ = self.pack.layout
        out, size, scratch = torch.empty_like(q), q.new_empty(q.shape[:2]), self._scratch(q)
        sizes = len(segments), q.shape[1], k.shape[1], q.shape[2], scratch.shape[1]
        tensors = (q, k, v, segments, out, size, scratch)
        compiled().call("attention", tensors, *sizes, work=q.numel())
        return out, size

    def backward(self, grad: Tensor, qkv: QKV, output: Output) -> QKV:
        q, k, v = qkv
        segments, runs = self.pack.layout
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scratch = self._scratch(q)
        sizes = len(runs) - 1, q.shape[1], k.shape[1], q.shape[2], scratch.shape[1]
        tensors = (grad, q, k, v, *output, segments, runs, dq, dk, dv, scratch)
        compiled().call("attention_back", tensors, *sizes, work=q.numel())
        return dq, dk, dv

    def _scratch(self, q: Tensor) -> Tensor:
        """[threads, numbers] for the kernel to work in."""
        prefix = max((end - begin for _, _, begin, end in self.pack.reads), default=0)
        room = attention_room(max(self.pack.lengths), prefix, q.shape[2])
        return q.new_empty(torch.get_num_threads(), room)
