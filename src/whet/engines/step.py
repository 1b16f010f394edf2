"""A decoder's step over one new token a row: its layers in turn, or all of them in one compiled call (kernels/decode.c)."""

import numpy as np
import torch
from torch import Tensor, nn

from whet.engines.cache import Cache
from whet.kernels import Kernels, kernels, product, usable
from whet.model.lora import LoraLinear
from whet.model.transformer import Layer, Transformer

Parts = list[Tensor | None]


class Step:
    """`step(tokens [R], positions [R])` -> hidden states [R, hidden]. The tokens' keys and values join the cache."""

    def __init__(self, model: Transformer, cache: Cache) -> None:
        self.model, self.cache = model, cache
        self.compiled = kernels() if _plain(model) else None
        self.weights = [_weights(layer) for layer in model.layers if isinstance(layer, Layer)]
        self.views = -1  # of the cache, that `parts` was made for

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        if self.compiled is None:
            return self.model(tokens, positions, self.cache)
        x = self.model.embed(tokens)
        cos, sin = self.model.rotary(positions, x.dtype)
        self._run(self.compiled, x, cos, sin)
        return self.model.norm(x)

    def _run(self, compiled: Kernels, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        cache, c = self.cache, self.model.config
        if self.views != cache.views:
            self._arrange()
        rows, heads = len(x), c.heads + 2 * c.kv_heads
        scratch = x.new_empty(rows * (c.hidden + 2 * heads * c.head_dim + c.heads * c.head_dim + 3 * c.ffn + heads))
        tensors = (x, cos, sin, cache.order, *cache.told, scratch, cache.scores)
        shape = rows, c.layers, c.hidden, c.ffn, c.heads, c.kv_heads, c.head_dim
        widths = cache.own.shape[4], cache.prompt.shape[4], cache.column, cache.scores.shape[1]
        compiled.call("step", (self.product, self.parts, *tensors), *shape, *widths, c.norm_eps)

    def _arrange(self) -> None:
        """The addresses of every layer's weights, keys and values."""
        cache, told = self.cache, self.model.config.no_rope_layers
        rows: list[Parts] = []
        for i, weights in enumerate(self.weights):
            own, prompt = cache.own[i], cache.prompt[i]
            rows.append([*weights, own[0], own[1], prompt[0], prompt[1], None if i in told else own])
        self.parts = torch.from_numpy(np.array([[0 if t is None else t.data_ptr() for t in row] for row in rows]))
        self.product, self.views = product(), cache.views


def _plain(model: Transformer) -> bool:
    """Whether the compiled step can read this model: float32 on a CPU, and torch's own matrix product can be had."""
    return usable(*model.parameters()) and all(p.is_contiguous() for p in model.parameters()) and product() is not None


def _map(linear: nn.Module) -> Parts:
    """A linear map's weight, adapters folded in, and its bias."""
    assert isinstance(linear, nn.Linear | LoraLinear)
    whole = linear.whole if isinstance(linear, LoraLinear) else None
    return [linear.weight if whole is None else whole, linear.bias]


def _weights(layer: Layer) -> Parts:
    """In decode.c's order."""
    norms: Parts = [layer.norm_q.weight, layer.norm_k.weight] if layer.norm_q and layer.norm_k else [None, None]
    attention = [layer.norm_attention.weight, *_map(layer.qkv), *norms, *_map(layer.out)]
    return [*attention, layer.norm_ffn.weight, *_map(layer.gate_up), *_map(layer.down)]
