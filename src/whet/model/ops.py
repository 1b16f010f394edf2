"""The operations between a decoder's matrix products: norm, heads with rotary positions, gate.

Each is in torch, and for a CPU in float32 compiled (kernels/ops.c), equal up to rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from whet.kernels import BLOCK, compiled, usable

Pair = tuple[Tensor | None, Tensor | None]
Turn = tuple[Tensor, Tensor] | None  # cos and sin [N, 1, d]; None for a layer without positions


def rms_norm(
    x: Float[Tensor, "*n w"], weight: Float[Tensor, " w"], eps: float
) -> Float[Tensor, "*n w"]:
    """x / rms(x) * weight, computed in float32 (arXiv:1910.07467)."""
    if x.ndim == 2 and usable(x, weight):
        return (
            _RMSNorm.apply(x, weight, eps)
            if torch.is_grad_enabled()
            else _normed(x.contiguous(), weight, eps)[0]
        )
    if x.device.type != "cpu" and x.dtype == weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)  # one kernel, in float32 inside
    wide = x if x.dtype == torch.float64 else x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def turned(x: Float[Tensor, "n h d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "n h d"]:
    """Rotates by position (arXiv:2104.09864): halves a, b become (a cos - b sin, b cos + a sin).

    Halves, not neighbouring pairs, are rotated together, as Hugging Face's checkpoints expect.
    """
    half = x.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    return torch.addcmul(x * cos, x.roll(half, -1), signed)


def heads(
    qkv: Float[Tensor, "n w"],
    sizes: tuple[int, int],
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    turn: Turn,
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits a fused projection into queries [N, heads, d], keys and values [N, kv, d].

    sizes: heads and kv. Queries and keys are normed by the weights `norms`, then turned.
    """
    count, kv = sizes
    wq, wk = norms or (None, None)
    cos, sin = turn or (None, None)
    if usable(qkv, wq, wk, cos):
        if torch.is_grad_enabled():
            return _Heads.apply(qkv, wq, wk, turn, (count, kv, eps))
        return _headed(qkv.contiguous(), (wq, wk), (cos, sin), sizes, eps)[:3]
    qk, v = qkv.view(len(qkv), count + 2 * kv, -1).split([count + kv, kv], dim=1)
    if norms is not None:
        q, k = qk.split([count, kv], dim=1)
        qk = torch.cat([rms_norm(q, norms[0], eps), rms_norm(k, norms[1], eps)], dim=1)
    if cos is not None and sin is not None:
        qk = turned(qk, cos, sin)
    q, k = qk.split([count, kv], dim=1)
    return q, k, v


def swiglu(gate_up: Float[Tensor, "n w2"]) -> Float[Tensor, "n w"]:
    """silu(gate) * up of a fused projection (arXiv:2002.05202)."""
    if usable(gate_up):
        return _SwiGLU.apply(gate_up) if torch.is_grad_enabled() else _gated(gate_up.contiguous())
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _partial(n: int) -> int:
    """How many rows of partial sums there are over n rows."""
    return -(-n // BLOCK)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the normed rows, and 1 / rms of each."""
    y, rstd = torch.empty_like(x), x.new_empty(len(x))
    compiled().call("rms_norm", (x, weight, y, rstd), *x.shape, eps, work=x.numel())
    return y, rstd


def _headed(
    qkv: Tensor, norms: Pair, turn: Pair, sizes: tuple[int, int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns queries, keys, values, and 1 / rms of each normed head."""
    n, (count, kv) = len(qkv), sizes
    d = qkv.shape[1] // (count + 2 * kv)
    q, k, v = qkv.new_empty(n, count, d), qkv.new_empty(n, kv, d), qkv.new_empty(n, kv, d)
    rstd = qkv.new_empty(n, count + kv)
    compiled().call(
        "heads_", (qkv, *norms, *turn, q, k, v, rstd), n, count, kv, d, eps, work=qkv.numel()
    )
    return q, k, v, rstd


def _gated(gate_up: Tensor) -> Tensor:
    n, f = len(gate_up), gate_up.shape[1] // 2
    y = gate_up.new_empty(n, f)
    compiled().call("swiglu", (gate_up, y), n, f, work=gate_up.numel())
    return y


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, rstd = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, rstd = ctx.saved_tensors
        dx, dw = torch.empty_like(x), x.new_empty(_partial(len(x)), x.shape[1])
        tensors = (grads[0].contiguous(), x, weight, rstd, dx, dw)
        compiled().call("rms_norm_back", tensors, *x.shape, work=x.numel())
        return dx, dw.sum(0), None


class _Heads(Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        wq: Tensor | None,
        wk: Tensor | None,
        turn: Turn,
        sizes: tuple[int, int, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        qkv, (count, kv, eps), (cos, sin) = qkv.contiguous(), sizes, turn or (None, None)
        q, k, v, rstd = _headed(qkv, (wq, wk), (cos, sin), (count, kv), eps)
        ctx.save_for_backward(qkv, wq, wk, cos, sin, rstd)
        ctx.sizes = *q.shape[:2], kv, q.shape[2]
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        qkv, wq, wk, cos, sin, rstd = ctx.saved_tensors
        n, count, kv, d = ctx.sizes
        back, dw = torch.empty_like(qkv), qkv.new_empty(_partial(n), 2, d)
        tensors = (*(g.contiguous() for g in grads), qkv, wq, wk, cos, sin, rstd, back, dw)
        compiled().call("heads_back", tensors, n, count, kv, d, work=qkv.numel())
        dq, dk = (None, None) if wq is None else dw.sum(0)
        return back, dq, dk, None, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        dy, back = grads[0].contiguous(), torch.empty_like(gate_up)
        compiled().call("swiglu_back", (dy, gate_up, back), *dy.shape, work=gate_up.numel())
        return back
