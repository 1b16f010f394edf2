"""A decode step on a CPU: the decoder over one new token per row.

All layers are one compiled call (kernels/decode.c) where the model is packed for it, else torch's.
"""

import numpy as np
import torch
from torch import Tensor, nn

from whet.engines.cache import Cache
from whet.kernels import kernels
from whet.model.linear import Linear
from whet.model.lora import LoraLinear
from whet.model.transformer import Layer, Transformer

Parts = list[Tensor | None]


class Step:
    """`step(tokens [R], positions [R])` returns hidden states [R, hidden] and fills the cache.

    No position may be above `positions`. In the compiled call a row's bits do not depend on the
    rows beside it.
    """

    def __init__(self, model: Transformer, cache: Cache, positions: int) -> None:
        self.model, self.cache = model, cache
        self.compiled = kernels() if _plain(model) else None
        self.views = -1  # the cache's count of changes when `parts` was made
        if self.compiled is not None:
            self.weights = [_weights(layer) for layer in model.layers if isinstance(layer, Layer)]
            table = model.rotary(torch.arange(positions), torch.float32)
            self.table = torch.stack([x.squeeze(1) for x in table])  # [2, positions, d]

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        if self.compiled is None:
            return self.model(tokens, positions, self.cache)
        if self.views != self.cache.views:
            self._arrange()
        cache, c, rows, heads = self.cache, self.model.config, len(tokens), self.model.config.heads
        out = cache.like.new_empty(rows, c.hidden)
        weights = self.parts, self.model.embed.weight, self.model.norm.weight, self.table
        inputs = tokens, positions, cache.order, *cache.indices
        shape = rows, c.layers, c.hidden, c.ffn, heads, c.kv_heads, c.head_dim
        widths = cache.own.shape[4], cache.prompt.shape[4], cache.column, cache.scores.shape[1]
        tensors = (*weights, *inputs, out, self.scratch, cache.scores)
        numbers = (*shape, *widths, self.table[0].numel(), c.norm_eps)
        self.compiled.call("step", tensors, *numbers)
        return out

    def _arrange(self) -> None:
        """Finds the addresses of every layer's weights, keys and values, and room for a step."""
        cache, c = self.cache, self.model.config
        rows: list[Parts] = []
        for i, weights in enumerate(self.weights):
            rotates = None if i in c.no_rope_layers else cache.own[i]  # anything but NULL says yes
            rows.append([*weights, *cache.own[i], *cache.prompt[i], rotates])
        addresses = [[0 if t is None else t.data_ptr() for t in row] for row in rows]
        self.parts = torch.from_numpy(np.array(addresses))
        heads = c.heads + 2 * c.kv_heads
        a_row = 2 * c.hidden + (2 * heads + c.heads + 2) * c.head_dim + 3 * c.ffn + heads
        self.scratch, self.views = cache.like.new_empty(len(cache.seat) * a_row), cache.views


def _plain(model: Transformer) -> bool:
    """Whether the compiled step can read this model: it is packed, so float32 on a CPU."""
    return model.head.packed is not None and all(p.is_contiguous() for p in model.parameters())


def _map(linear: nn.Module) -> Parts:
    """A linear map's packed weight and its bias."""
    assert isinstance(linear, Linear | LoraLinear)
    return [linear.packed, linear.bias]


def _weights(layer: Layer) -> Parts:
    """A layer's weights in decode.c's order."""
    norms: Parts = [None if norm is None else norm.weight for norm in (layer.norm_q, layer.norm_k)]
    attention = [layer.norm_attention.weight, *_map(layer.qkv), *norms, *_map(layer.out)]
    return [*attention, layer.norm_ffn.weight, *_map(layer.gate_up), *_map(layer.down)]
