"""The cache of keys and values (KV cache) of a CPU, and attention from it.

A row is a sample that is being drawn. Samples of a group share their prompt's keys and values, in a
seat [kv, P, d] of `prompt`. The keys and values of a row's own tokens are in [kv, C, d] of `own`. At
a step all rows write the same column; a row sees the columns from its `start` on.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from whet.kernels import Kernels, kernels, usable
from whet.model.config import ModelConfig
from whet.model.flash_attention import attention_for

BLOCK = 32  # columns are allocated in multiples of this
# The fewest columns to attend to: below, torch's CPU products and softmax are several times slower.
LEAST = 17
AT_ONCE = 1 << 28  # numbers; a cache up to this size is allocated for max_tokens from the start


def _blocks(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


class Cache:
    """Prompts' keys and values [layer, 2, seat, kv, P, d] and rows' own [layer, 2, row, kv, C, d].

    `column` is the column that the next step writes. A row has at most `most` columns. Call
    `arrange` after a change of rows or seats.
    """

    def __init__(self, config: ModelConfig, most: int, weight: Tensor) -> None:
        c = config
        self.config, self.most, self.like = config, most, weight
        self.compiled = kernels() if usable(weight) else None
        self.prompt = weight.new_empty(c.layers, 2, 0, c.kv_heads, 0, c.head_dim)
        self.own = weight.new_empty(c.layers, 2, 0, c.kv_heads, 0, c.head_dim)
        self.lengths = np.zeros(0, dtype=np.int64)  # [seats] tokens of the prompt that sits there
        self.seat = np.zeros(0, dtype=np.int64)  # [R] the seat of each row's prompt
        self.start = np.zeros(0, dtype=np.int64)  # [R] each row's first column
        self.column = LEAST - 1
        self.views = 0  # how often rows, seats or room have changed

    def admit_prompts(self, lengths: Sequence[int], free: Sequence[int]) -> NDArray[np.int64]:
        """Returns seats for prompts of these lengths: the seats in `free`, then new ones."""
        wanted, longest = len(lengths), max(lengths)
        _, _, seats, _, width, _ = self.prompt.shape
        new = max(0, wanted - len(free))
        if new or longest > width:
            c = self.config
            grown = self.like.new_zeros(
                c.layers, 2, seats + new, c.kv_heads, max(width, longest, LEAST), c.head_dim
            )
            grown[:, :, :seats, :, :width] = self.prompt
            self.prompt = grown
        taken = np.array([*free[:wanted], *range(seats, seats + new)], dtype=np.int64)
        self.lengths = np.concatenate([self.lengths, np.zeros(new, dtype=np.int64)])
        self.lengths[taken] = lengths
        return taken

    def admit_rows(self, rows: NDArray[np.int64], seat: NDArray[np.int64]) -> None:
        """Starts rows at the next column: all rows of a new cache, or some that are free."""
        if not len(self.seat):
            self.seat, self.start = seat.copy(), np.full_like(seat, self.column)
            shape = list(self.own.shape)
            shape[2] = len(rows)
            whole = 2 * shape[0] * shape[2] * shape[3] * shape[5] * self.most
            shape[4] = self.column + (self.most if whole <= AT_ONCE else BLOCK)
            self.own = self.like.new_empty(shape)
            self.own[..., : self.column, :] = 0
            return
        self.seat[rows], self.start[rows] = seat, self.column

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64], rows: int) -> None:
        """Moves row sources[i] to row targets[i], then drops all but the first `rows` rows.

        Seats that no row uses are dropped once they are a quarter of all.
        """
        if len(sources):
            self.seat[targets], self.start[targets] = self.seat[sources], self.start[sources]
            first = int(self.start[:rows].min())
            old, new = (torch.from_numpy(x).to(self.own.device) for x in (sources, targets))
            live = self.own[..., first : self.column, :]
            for layer in live:
                layer[:, new] = layer[:, old]
        self.seat, self.start, self.own = self.seat[:rows], self.start[:rows], self.own[:, :, :rows]
        used, seat = np.unique(self.seat, return_inverse=True)
        if len(used) * 4 <= len(self.lengths) * 3:
            self.seat, self.lengths = seat, self.lengths[used]
            width = max(int(self.lengths.max()), LEAST)
            self.prompt = self.prompt[..., :width, :].index_select(
                2, torch.from_numpy(used).to(self.own.device)
            )

    def arrange(self) -> None:
        """Makes the views and masks for the present rows and seats."""
        c, device = self.config, self.own.device
        # Rows, sorted by their seat.
        self.order = torch.from_numpy(np.argsort(self.seat, kind="stable"))
        if self.compiled:
            return self._views()
        counts = np.bincount(self.seat, minlength=len(self.lengths))
        members = int(counts.max())
        order = self.order.numpy()
        place = (
            np.arange(len(order))
            - np.repeat(np.cumsum(counts) - counts, counts)
            + self.seat[order] * members
        )
        # [seats * members] rows, and row 0 where a seat has fewer.
        table = np.zeros(len(counts) * members, dtype=np.int64)
        table[place] = order
        back = np.empty_like(place)
        back[order] = place
        straight = len(back) == len(table) and bool((back == np.arange(len(back))).all())
        self.table = None if straight else torch.from_numpy(table).to(device)
        self.back = None if straight else torch.from_numpy(back).to(device)
        width = max(int(self.lengths[counts > 0].max()), LEAST)
        self.prompt_keys = [x[0, :, :, :width].flatten(0, 1).transpose(1, 2) for x in self.prompt]
        self.prompt_values = [x[1, :, :, :width].flatten(0, 1) for x in self.prompt]
        self.prompt_mask = None
        if int(self.lengths[counts > 0].min()) < width:
            hidden = np.arange(width) >= self.lengths[:, None]
            self.prompt_mask = self._mask(hidden).repeat_interleave(c.kv_heads, 0)[:, None]
        self.shape = len(counts), members, c.kv_heads, c.heads // c.kv_heads, c.head_dim
        self._views()

    def _mask(self, hidden: NDArray[np.bool_]) -> Tensor:
        mask = self.like.new_zeros(hidden.shape)
        return mask.masked_fill_(torch.from_numpy(hidden).to(mask.device), -torch.inf)

    def _views(self) -> None:
        self.views += 1
        self.oldest, self.newest = int(self.start.min()), int(self.start.max())
        if self.compiled:
            self.indices = [torch.from_numpy(x) for x in (self.seat, self.start, self.lengths)]
            longest = self.prompt.shape[4] + self.own.shape[4]
            self.scores = self.like.new_empty(torch.get_num_threads(), longest)
            return
        self.own_keys = [x[0] for x in self.own]
        self.own_values = [x[1] for x in self.own]
        self.flat_keys = [x.flatten(0, 1).transpose(1, 2) for x in self.own_keys]  # [R * kv, d, C]
        self.flat_values = [x.flatten(0, 1) for x in self.own_values]  # [R * kv, C, d]
        mask = self._mask(np.arange(self.own.shape[4]) < self.start[:, None])
        self.own_mask = mask.repeat_interleave(self.config.kv_heads, 0)[:, None]

    def open_column(self) -> None:
        """Makes room for the next step: drops columns that no row sees, or grows by at least half."""
        if self.column < self.own.shape[4]:
            return
        first, column = min(int(self.start.min()), self.column - LEAST + 1), self.column
        live = column - first
        past = self.own[..., first:column, :]
        if live + BLOCK <= self.own.shape[4] or live * 4 <= self.own.shape[4] * 3:
            self.own[..., :live, :] = past.clone()
        else:
            size = list(self.own.shape)
            size[4] = _blocks(live + max(BLOCK, live // 2))
            grown = self.own.new_empty(size)
            grown[..., :live, :] = past
            self.own = grown
        self.start, self.column = self.start - first, live
        self._views()

    def prefill(self, starts: Int[Tensor, " s1"], seats: NDArray[np.int64]) -> "Prefill":
        return Prefill(self, starts, seats)

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "r h d"],
        k: Float[Tensor, "r kv d"],
        v: Float[Tensor, "r kv d"],
    ) -> Float[Tensor, "r h d"]:
        """Attention of one new token per row to its prompt, its row's past and itself.

        Prompt and row are attended to apart, for the prompt is shared. Softmax over both is each
        part's softmax times its share, the logistic of the difference of their log-sum-exps.
        """
        if self.compiled is not None:
            return self._read_compiled(self.compiled, layer, q, k, v)
        seats, members, kv, repeat, d = self.shape
        rows, first = len(q), min(self.oldest, self.column - LEAST + 1)
        span = self.column + 1 - first
        self.own_keys[layer].select(2, self.column).copy_(k)
        self.own_values[layer].select(2, self.column).copy_(v)
        q = q * d**-0.5
        scores = torch.bmm(
            q.reshape(rows * kv, repeat, d), self.flat_keys[layer].narrow(2, first, span)
        )
        if first < self.newest:
            scores = scores + self.own_mask.narrow(2, first, span)
        own, own_size = _read(scores, self.flat_values[layer].narrow(1, first, span), span - 1)
        queries = q if self.table is None else q.index_select(0, self.table)
        queries = queries.view(seats, members, kv, repeat, d).transpose(1, 2)
        queries = queries.reshape(seats * kv, members * repeat, d)
        scores = torch.bmm(queries, self.prompt_keys[layer])
        if self.prompt_mask is not None:
            scores = scores + self.prompt_mask
        prompt, prompt_size = (
            x.view(seats, kv, members, repeat, -1)
            .transpose(1, 2)
            .reshape(seats * members, kv * repeat, -1)
            for x in _read(scores, self.prompt_values[layer], 0)
        )
        if self.back is not None:
            prompt, prompt_size = (x.index_select(0, self.back) for x in (prompt, prompt_size))
        share = (prompt_size - own_size.view(rows, kv * repeat, 1)).sigmoid_()
        return torch.lerp(own.view(rows, kv * repeat, d), prompt, share.to(own.dtype))

    def _read_compiled(
        self, compiled: Kernels, layer: int, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """The same in one pass: a softmax over a query's prompt and own columns together."""
        out, own, prompt = torch.empty_like(q), self.own[layer], self.prompt[layer]
        widths = own.shape[3], prompt.shape[3], self.column, self.scores.shape[1]
        sizes = (*q.shape[:2], k.shape[1], q.shape[2], *widths)
        tensors = (q, k, v, *own, *prompt, self.order, *self.indices, out, self.scores)
        compiled.call("decode", tensors, *sizes, work=q.numel() * (self.column + prompt.shape[3]))
        return out


def _read(
    scores: Float[Tensor, "b m t"], values: Float[Tensor, "b t d"], seen: int
) -> tuple[Tensor, Tensor]:
    """Returns attention's output [b, m, d] and the log-sum-exp of its scores [b, m, 1].

    The log-sum-exp is a score less its log-weight, at column `seen`, which no mask hides.
    """
    logs = scores.log_softmax(
        -1, dtype=torch.float64 if scores.dtype == torch.float64 else torch.float32
    )
    size = scores.narrow(-1, seen, 1) - logs.narrow(-1, seen, 1)
    return torch.bmm(logs.exp_().to(values.dtype), values), size


class Prefill:
    """Causal attention over a pack of prompts that writes keys and values to the prompts' seats."""

    def __init__(self, cache: Cache, starts: Int[Tensor, " s1"], seats: NDArray[np.int64]) -> None:
        self.cache = cache
        self.inside = attention_for(starts, cache.like, cache.config.head_dim)
        lengths = (starts[1:] - starts[:-1]).tolist()
        device = cache.prompt.device
        self.seats = torch.from_numpy(np.repeat(seats, lengths)).to(device)
        self.places = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])).to(device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.prompt[layer]
        keys[self.seats, :, self.places] = k
        values[self.seats, :, self.places] = v
        return self.inside(layer, q, k, v)
