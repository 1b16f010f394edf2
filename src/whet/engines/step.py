"""A decoder's step over one new token a row: its layers in turn, or all of them in one compiled
call (kernels/decode.c).
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
    """`step(tokens [R], positions [R])` -> hidden states [R, hidden]. The tokens' keys and values
    join the cache.

    `positions` bounds those that are asked for. Of a model that is `ready` all layers are one call,
    and a row's bits do not depend on the rows beside it.
    """

    def __init__(self, model: Transformer, cache: Cache, positions: int) -> None:
        self.model, self.cache = model, cache
        self.compiled = kernels() if _plain(model) else None
        self.views = -1  # of the cache, that `parts` was made for
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
        given = (
            self.model.embed.weight,
            self.model.norm.weight,
            self.table,
            tokens,
            positions,
            cache.order,
            *cache.told,
        )
        shape = rows, c.layers, c.hidden, c.ffn, heads, c.kv_heads, c.head_dim
        widths = (
            cache.own.shape[4],
            cache.prompt.shape[4],
            cache.column,
            cache.scores.shape[1],
            self.table[0].numel(),
        )
        self.compiled.call(
            "step",
            (self.parts, *given, out, self.scratch, cache.scores),
            *shape,
            *widths,
            c.norm_eps,
        )
        return out

    def _arrange(self) -> None:
        """The addresses of every layer's weights, keys and values, and room for a step."""
        cache, c = self.cache, self.model.config
        rows: list[Parts] = []
        for i, weights in enumerate(self.weights):
            own, prompt = cache.own[i], cache.prompt[i]
            rows.append(
                [
                    *weights,
                    own[0],
                    own[1],
                    prompt[0],
                    prompt[1],
                    None if i in c.no_rope_layers else own,
                ]
            )
        self.parts = torch.from_numpy(
            np.array([[0 if t is None else t.data_ptr() for t in row] for row in rows])
        )
        heads = c.heads + 2 * c.kv_heads
        a_row = 2 * c.hidden + (2 * heads + c.heads + 2) * c.head_dim + 3 * c.ffn + heads
        self.scratch, self.views = cache.like.new_empty(len(cache.seat) * a_row), cache.views


def _plain(model: Transformer) -> bool:
    """Whether the compiled step can read this model: it is `ready`, so float32 on a CPU."""
    return model.head.packed is not None and all(p.is_contiguous() for p in model.parameters())


def _map(linear: nn.Module) -> Parts:
    """A linear map's packed weight and its bias."""
    assert isinstance(linear, Linear | LoraLinear)
    return [linear.packed, linear.bias]


def _weights(layer: Layer) -> Parts:
    """In decode.c's order."""
    norms: Parts = (
        [layer.norm_q.weight, layer.norm_k.weight]
        if layer.norm_q and layer.norm_k
        else [None, None]
    )
    attention = [layer.norm_attention.weight, *_map(layer.qkv), *norms, *_map(layer.out)]
    return [*attention, layer.norm_ffn.weight, *_map(layer.gate_up), *_map(layer.down)]
