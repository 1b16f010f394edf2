"""The cache of a GPU's decode steps. From one step to the next nothing in it changes place or
shape, so that a step can be replayed (graph.py).

A row's own keys and values lie in slots, those of its first token first. What changes - tokens
read, whose prompt a row reads - are numbers in tensors; room for rows, slots and prompts comes in
steps, so that it seldom changes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from whet.engines.cache import BLOCK, Cache, Prefill
from whet.model.config import ModelConfig
from whet.model.flash_attention import Kernel, Spans

FIRST = 128  # slots that a row has at first


def stepped(n: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, … that is not below n.

    >>> [stepped(n) for n in (1, 5, 7, 13, 100, 256)]
    [1, 6, 8, 16, 128, 256]
    """
    power = 1 << max(0, n - 1).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


class StaticCache(Cache):
    """Prompts' keys and values [layer, 2, seat, P, kv, d] and rows' own [layer, 2, row, C, kv, d],
    read through `kernel`.

    There is room for more rows and seats than are in use; rows beyond them read seat 0 and nobody
    reads what they make. `column` counts steps: a row writes slot `column` - `start`, and for ever
    its last slot once it has all that a sample may have.
    """

    def __init__(self, config: ModelConfig, most: int, weight: Tensor, kernel: Kernel) -> None:
        super().__init__(config, most, weight)
        c = config
        self.compiled, self.kernel, self.column = None, kernel, 0
        self.prompt = weight.new_zeros(c.layers, 2, 0, 0, c.kv_heads, c.head_dim)
        self.own = weight.new_zeros(c.layers, 2, 0, 0, c.kv_heads, c.head_dim)
        self.members = 0  # rows of a seat at most
        self.now = torch.zeros(
            1, dtype=torch.int64, device=weight.device
        )  # `column`, where the step reads it
        self.shape = (0, 0, 0, 0, 0)

    def admit_prompts(self, lengths: Sequence[int], free: Sequence[int]) -> NDArray[np.int64]:
        wanted, longest = len(lengths), max(lengths)
        seats, width = self.prompt.shape[2:4]
        new = max(0, wanted - len(free))
        if new or longest > width:
            room = stepped(seats + new) if seats and new else seats + new
            sizes = list(self.prompt.shape)
            sizes[2:4] = room, -(-max(width, longest) // BLOCK) * BLOCK
            grown = self.like.new_zeros(sizes)
            grown[:, :, :seats, :width] = self.prompt
            self.prompt = grown
            self.lengths = np.append(self.lengths, np.zeros(room - seats, dtype=np.int64))
        given = np.array([*free[:wanted], *range(seats, seats + new)], dtype=np.int64)
        self.lengths[given] = lengths
        return given

    def admit_rows(self, rows: NDArray[np.int64], seat: NDArray[np.int64]) -> None:
        if len(self.seat):
            self.seat[rows], self.start[rows] = seat, self.column
            return
        self.seat, self.start = seat.copy(), np.full_like(seat, self.column)
        sizes = list(self.own.shape)
        sizes[2:4] = stepped(len(rows)), min(FIRST, self.most)
        self.own = self.like.new_zeros(sizes)

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64], rows: int) -> None:
        device = self.own.device
        if len(sources):
            self.seat[targets], self.start[targets] = self.seat[sources], self.start[sources]
            old, new = (torch.from_numpy(x).to(device) for x in (sources, targets))
            for layer in self.own:
                layer[:, new] = layer[:, old]
        self.seat, self.start = self.seat[:rows], self.start[:rows]
        if stepped(rows) >= self.own.shape[2]:
            return
        self.own = self.own[:, :, : stepped(rows)]
        used, seat = np.unique(self.seat, return_inverse=True)
        if len(used) < len(self.lengths):
            self.seat, self.lengths = seat, self.lengths[used]
            self.prompt = self.prompt.index_select(2, torch.from_numpy(used).to(device))

    def open_column(self) -> None:
        """Makes room for the next step: half as many slots again."""
        wanted, slots = min(self.column - int(self.start.min()) + 1, self.most), self.own.shape[3]
        if wanted > slots:
            sizes = list(self.own.shape)
            sizes[3] = min(self.most, -(-max(wanted, slots * 3 // 2) // BLOCK) * BLOCK)
            grown = self.like.new_zeros(sizes)
            grown[:, :, :, :slots] = self.own
            self.own = grown
            self.arrange()

    def arrange(self) -> None:
        """Tells the tensors that the step reads which rows there are. They are made anew where the
        room for them is another.
        """
        (room, slots), (seats, width) = self.own.shape[2:4], self.prompt.shape[2:4]
        seat = np.append(self.seat, np.zeros(room - len(self.seat), dtype=np.int64))
        start = np.append(self.start, np.full(room - len(self.start), self.column))
        order, counts = np.argsort(seat, kind="stable"), np.bincount(seat, minlength=seats)
        repeat = self.config.heads // self.config.kv_heads
        bounds = np.append(0, np.cumsum(counts) * repeat).astype(np.int32)
        told = (start, order, np.argsort(order), bounds, self.lengths.astype(np.int32))
        shape = room, slots, seats, width, self.prompt.data_ptr()
        members = stepped(int(counts.max()))
        if shape == self.shape and members <= self.members:
            for tensor, numbers in zip(self.told, told, strict=True):
                tensor.copy_(torch.from_numpy(numbers))
            return
        device = self.own.device
        self.told = [torch.from_numpy(x.copy()).to(device) for x in told]
        self.rows = torch.arange(room, device=device)
        self.own_asks, self.own_keys_at, keys_at = (
            torch.arange(n + 1, device=device, dtype=torch.int32) * size
            for n, size in ((room, repeat), (room, slots), (seats, width))
        )
        self.reads = Spans(self.told[3], keys_at, (members * repeat, width), used=self.told[4])
        self.shape, self.members = shape, members
        self.views += 1

    def begin(self) -> None:
        """The first thing in a step: where each row writes, and how much of its own it then reads."""
        slots = self.own.shape[3]
        self.slot = (self.now - self.told[0]).clamp(0, slots - 1)
        used, longest = (
            (self.slot + 1).to(torch.int32),
            (self.config.heads // self.config.kv_heads, slots),
        )
        self.own_reads = Spans(self.own_asks, self.own_keys_at, longest, used=used)

    def prefill(self, starts: Int[Tensor, " s1"], seats: NDArray[np.int64]) -> Prefill:
        return _Prefill(self, starts, seats)

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "r h d"],
        k: Float[Tensor, "r kv d"],
        v: Float[Tensor, "r kv d"],
    ) -> Float[Tensor, "r h d"]:
        """As the base's. The heads that read the same keys are so many queries of one head."""
        rows, kv, d = k.shape
        for kept, new in zip(self.own[layer], (k, v), strict=True):
            kept.index_put_((self.rows, self.slot), new)
        asked = q.view(rows, kv, -1, d).transpose(1, 2).contiguous()  # [R, repeat, kv, d]
        own, own_size = self._read(asked, self.own[layer], self.own_reads)
        _, order, back, _, _ = self.told
        prompt, size = self._read(asked.index_select(0, order), self.prompt[layer], self.reads)
        prompt, size = prompt.index_select(0, back), size.index_select(1, back)
        share = (size - own_size).sigmoid().permute(1, 2, 0)[..., None]
        return torch.lerp(own, prompt, share.to(own.dtype)).transpose(1, 2).reshape(q.shape)

    def _read(self, asked: Tensor, kept: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
        """What is read [R, repeat, kv, d] of keys and values [2, n, m, kv, d], and its log-sum-exp
        [kv, R, repeat].
        """
        keys, values = kept.flatten(1, 2)
        out, size = self.kernel.forward((asked.flatten(0, 1), keys, values), spans)
        return out.view(asked.shape), size.view(-1, *asked.shape[:2])


class _Prefill(Prefill):
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.prompt[layer]
        keys[self.seats, self.places], values[self.seats, self.places] = k, v
        return self.inside(layer, q, k, v)
