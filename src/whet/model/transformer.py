"""The decoder, for the Llama, Qwen2, Qwen3 and SmolLM families.

RMSNorm, rotary positions, grouped queries, SwiGLU, over a flat list of N tokens. The `attend` that
it is called with (attention.py) decides which tokens a token reads. So training on packs, prefill
and decoding from a cache are the same code over the same weights.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import checkpoint

from whet.model import ops
from whet.model.attention import Attention
from whet.model.config import ModelConfig
from whet.model.flash_attention import attention_for, can_share_prefixes
from whet.model.linear import Linear
from whet.model.rope import Rotary
from whet.model.shared_prefix import share_prefixes


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*n w"]) -> Float[Tensor, "*n w"]:
        return ops.rms_norm(x, self.weight, self.eps)


class Layer(nn.Module):
    """Attention and a gated feed-forward net, each with a norm before it and a residual around it."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        c = config
        self.index = index
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.eps = c.norm_eps
        self.uses_rope = index not in c.no_rope_layers
        self.norm_attention = RMSNorm(c.hidden, c.norm_eps)
        self.qkv = Linear(c.hidden, (c.heads + 2 * c.kv_heads) * c.head_dim, bias=c.qkv_bias)
        self.out = Linear(c.heads * c.head_dim, c.hidden, bias=c.out_bias)
        self.norm_q = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.norm_k = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.norm_ffn = RMSNorm(c.hidden, c.norm_eps)
        self.gate_up = Linear(c.hidden, 2 * c.ffn, bias=c.mlp_bias)
        self.down = Linear(c.ffn, c.hidden, bias=c.mlp_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attention) -> Tensor:
        norms = (self.norm_q.weight, self.norm_k.weight) if self.norm_q and self.norm_k else None
        turn = (cos, sin) if self.uses_rope else None
        q, k, v = ops.heads(
            self.qkv(self.norm_attention(x)), (self.heads, self.kv_heads), norms, self.eps, turn
        )
        x = x + self.out(attend(self.index, q, k, v).reshape(len(x), -1))
        return x + self.down(ops.swiglu(self.gate_up(self.norm_ffn(x))))


# Nothing in a layer is random, so no generator's state is kept.
again = partial(checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=False)


class Transformer(nn.Module):
    """Turns tokens into hidden states; `logits` projects the rows that are needed.

    With `recompute` only each layer's input is kept, and the backward pass computes its activations
    again (gradient checkpointing).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embed = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.rotary = Rotary(config)
        self.head = Linear(config.hidden, 1 if config.scalar else config.vocab, bias=False)
        if config.tied and not config.scalar:
            self.head.weight = self.embed.weight

    def forward(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], attend: Attention
    ) -> Float[Tensor, "n h"]:
        x = self.embed(tokens)
        cos, sin = self.rotary(positions, x.dtype)
        for layer in self.layers:
            run = partial(again, layer) if self.recompute and torch.is_grad_enabled() else layer
            x = run(x, cos, sin, attend)
        return self.norm(x)

    def packed(
        self, tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"], starts: Int[Tensor, " s1"]
    ) -> Tensor:
        """Returns the hidden states [N, hidden] of a pack; shared prefixes are computed once.

        starts [S + 1]: the segments' offsets, ending with N.
        """
        weight, width = self.embed.weight, self.config.head_dim
        once = None
        if can_share_prefixes(weight, width):
            once = share_prefixes(tokens.cpu(), positions.cpu(), starts.cpu())
        if once is None:
            return self(tokens, positions, attention_for(starts, weight, width))
        keep, expand = once.keep.to(tokens.device), once.expand.to(tokens.device)
        attend = attention_for(once.starts, weight, width, once.reads)
        return self(tokens[keep], positions[keep], attend).index_select(0, expand)

    def logits(self, hidden: Float[Tensor, "m h"]) -> Float[Tensor, "m v"]:
        return self.head(hidden)

    def initialize(self, generator: torch.Generator) -> "Transformer":
        """Draws fresh weights: normal with deviation 0.02, norms 1, biases 0.

        Projections into the residual stream have 0.02 / sqrt(2 layers).
        """
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.ndim < 2:
                    p.fill_(1.0 if "norm" in name else 0.0)
                    continue
                residual = name.endswith(("out.weight", "down.weight"))
                deviation = 0.02 / (2 * self.config.layers) ** 0.5 if residual else 0.02
                p.normal_(0.0, deviation, generator=generator)
        return self
