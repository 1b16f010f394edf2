"""Who may look at whom. The decoder is the same in training, prefill and decoding; only this differs.

An Attention gets one layer's queries, keys and values of a flat list of N tokens and returns what each query read.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Attention(Protocol):
    def __call__(
        self, layer: int, q: Float[Tensor, "n h d"], k: Float[Tensor, "n kv d"], v: Float[Tensor, "n kv d"]
    ) -> Float[Tensor, "n h d"]: ...


class Packed:
    """Causal attention inside each segment of a pack; segments never see each other.

    `starts` [S + 1] are the segments' offsets, ending with N. Segments of similar length are attended to together, so that
    padding, which exists only inside this class, stays below `slack` of the work.
    """

    def __init__(self, starts: Int[Tensor, " s1"], slack: float = 0.25) -> None:
        lengths = (starts[1:] - starts[:-1]).tolist()
        if not lengths or min(lengths) < 1:
            raise ValueError("Packed: every segment needs at least one token")
        self.n = sum(lengths)
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

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(q.shape)
        for index, real in self.buckets:
            # [B, L, heads, d] -> [B, heads, L, d]. Padding stands at the end, where no causal query reads it.
            a, b, c = (x[index].transpose(1, 2) for x in (q, k, v))
            read = F.scaled_dot_product_attention(a, b, c, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])
            out = out.index_put((index[real],), read.transpose(1, 2)[real])
        return out
