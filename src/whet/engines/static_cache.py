"""The cache of keys and values of a GPU: tensors that keep address and shape from step to step.

So a decode step can be replayed as a CUDA graph (cuda_graph.py). A row's own keys and values lie in
slots, from its first token's on. Counts of tokens and the seats of rows are numbers in tensors.
Room for rows, slots and prompts grows in coarse steps, so that it seldom changes.
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

FIRST = 128  # slots of a row at first


def stepped(n: int) -> int:
    """Returns the least of 1, 2, 3, 4, 6, 8, 12, 16, … that is not below n.

    >>> [stepped(n) for n in (1, 5, 7, 13, 100, 256)]
    [1, 6, 8, 16, 128, 256]
    """
    power = 1 << max(0, n - 1).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


class StaticCache(Cache):
    """Prompts' keys and values [layer, 2, seat, P, kv, d] and rows' own [layer, 2, row, C, kv, d],
    read through `kernel`.

    There is room for more rows and seats than are in use. A spare row reads seat 0, and its output
    is not used. `column` counts steps: a row writes slot `column` - `start`, and once it has as many
    tokens as a sample may have, its last slot again.
    """

    def __init__(self, config: ModelConfig, most: int, weight: Tensor, kernel: Kernel) -> None:
        super().__init__(config, most, weight)
        c = config
        self.compiled, self.kernel, self.column = None, kernel, 0
        self.prompt = weight.new_zeros(c.layers, 2, 0, 0, c.kv_heads, c.head_dim)
        self.own = weight.new_zeros(c.layers, 2, 0, 0, c.kv_heads, c.head_dim)
        self.members = 0  # the most rows of a seat
        # `column`, where a replayed step reads it.
        self.now = torch.zeros(1, dtype=torch.int64, device=weight.device)
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
        taken = np.array([*free[:wanted], *range(seats, seats + new)], dtype=np.int64)
        self.lengths[taken] = lengths
        return taken

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
        """Makes room for the next step: adds half as many slots where they are used up."""
        wanted, slots = min(self.column - int(self.start.min()) + 1, self.most), self.own.shape[3]
        if wanted > slots:
            sizes = list(self.own.shape)
            sizes[3] = min(self.most, -(-max(wanted, slots * 3 // 2) // BLOCK) * BLOCK)
            grown = self.like.new_zeros(sizes)
            grown[:, :, :, :slots] = self.own
            self.own = grown
            self.arrange()

    def arrange(self) -> None:
        """Writes the present rows to the tensors that a step reads.

        The tensors are made anew where the room for rows, slots or prompts has changed.
        """
        (room, slots), (seats, width) = self.own.shape[2:4], self.prompt.shape[2:4]
        seat = np.append(self.seat, np.zeros(room - len(self.seat), dtype=np.int64))
        start = np.append(self.start, np.full(room - len(self.start), self.column))
        order, counts = np.argsort(seat, kind="stable"), np.bincount(seat, minlength=seats)
        repeat = self.config.heads // self.config.kv_heads
        bounds = np.append(0, np.cumsum(counts) * repeat).astype(np.int32)
        indices = (start, order, np.argsort(order), bounds, self.lengths.astype(np.int32))
        shape = room, slots, seats, width, self.prompt.data_ptr()
        members = stepped(int(counts.max()))
        if shape == self.shape and members <= self.members:
            for tensor, numbers in zip(self.indices, indices, strict=True):
                tensor.copy_(torch.from_numpy(numbers))
            return
        device = self.own.device
        self.indices = [torch.from_numpy(x.copy()).to(device) for x in indices]
        self.rows = torch.arange(room, device=device)
        self.own_queries, self.own_keys, prompt_keys = (
            torch.arange(n + 1, device=device, dtype=torch.int32) * size
            for n, size in ((room, repeat), (room, slots), (seats, width))
        )
        self.reads = Spans(
            self.indices[3], prompt_keys, (members * repeat, width), used=self.indices[4]
        )
        self.shape, self.members = shape, members
        self.views += 1

    def begin(self) -> None:
        """Begins a step: finds the slot that each row writes, and how many slots it then reads."""
        slots = self.own.shape[3]
        self.slot = (self.now - self.indices[0]).clamp(0, slots - 1)
        used = (self.slot + 1).to(torch.int32)
        longest = self.config.heads // self.config.kv_heads, slots
        self.own_reads = Spans(self.own_queries, self.own_keys, longest, used=used)

    def prefill(self, starts: Int[Tensor, " s1"], seats: NDArray[np.int64]) -> Prefill:
        return _Prefill(self, starts, seats)

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "r h d"],
        k: Float[Tensor, "r kv d"],
        v: Float[Tensor, "r kv d"],
    ) -> Float[Tensor, "r h d"]:
        """As `Cache` does. Heads that read the same keys are several queries of one head."""
        rows, kv, d = k.shape
        for kept, new in zip(self.own[layer], (k, v), strict=True):
            kept.index_put_((self.rows, self.slot), new)
        queries = q.view(rows, kv, -1, d).transpose(1, 2).contiguous()  # [R, repeat, kv, d]
        own, own_size = self._read(queries, self.own[layer], self.own_reads)
        _, order, back, _, _ = self.indices
        prompt, size = self._read(queries.index_select(0, order), self.prompt[layer], self.reads)
        prompt, size = prompt.index_select(0, back), size.index_select(1, back)
        share = (size - own_size).sigmoid().permute(1, 2, 0)[..., None]
        return torch.lerp(own, prompt, share.to(own.dtype)).transpose(1, 2).reshape(q.shape)

    def _read(self, queries: Tensor, kept: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
        """Attends to keys and values [2, n, m, kv, d].

        Returns the output [R, repeat, kv, d] and the log-sum-exp of its scores [kv, R, repeat].
        """
        keys, values = kept.flatten(1, 2)
        out, size = self.kernel.forward((queries.flatten(0, 1), keys, values), spans)
        return out.view(queries.shape), size.view(-1, *queries.shape[:2])


class _Prefill(Prefill):
    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.prompt[layer]
        keys[self.seats, self.places], values[self.seats, self.places] = k, v
        return self.inside(layer, q, k, v)
