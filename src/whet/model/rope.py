"""Rotary positions (RoPE, arXiv:2104.09864) and their scaling: linear, Llama 3.1's, YaRN.

The order of the float32 operations is Hugging Face's: at position 100,000 one unit in the last
place of a frequency moves the angle by a hundredth of a radian.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import ModelError
from whet.model.config import ModelConfig

# (wavelengths / 2 pi [d/2], config) -> frequencies [d/2], factor on cos and sin
Scaling = Callable[[Tensor, ModelConfig], tuple[Tensor, float]]


def number(config: ModelConfig, key: str, default: float | None = None) -> float:
    """Returns a positive number of the rope_scaling table.

    Raises ModelError where it is not one, or is absent without a default.
    """
    value = (config.rope_scaling or {}).get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelError(
            f"rope_scaling of type {rope_type(config)!r} needs {key}, a positive number; "
            f"it is {value!r}"
        )
    return value


def rope_type(config: ModelConfig) -> str:
    """Returns the scaling's name; `default` means none."""
    table = config.rope_scaling or {}
    return table.get("rope_type") or table.get("type") or "default"


def plain(periods: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    return 1.0 / periods, 1.0


def linear(periods: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """Divides every position by `factor` (arXiv:2306.15595)."""
    return 1.0 / periods / number(config, "factor"), 1.0


def llama3(periods: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """Stretches long waves by `factor`, keeps short ones, blends those between (Llama 3.1)."""
    factor = number(config, "factor")
    original = number(config, "original_max_position_embeddings", config.max_positions)
    low, high = number(config, "low_freq_factor"), number(config, "high_freq_factor")
    if low >= high:
        raise ModelError(
            f"rope_scaling: low_freq_factor {low} is not below high_freq_factor {high}"
        )
    fast = 1.0 / periods
    wave = 2 * math.pi / fast
    blend = (original / wave - low) / (high - low)
    stretched = torch.where(wave > original / low, fast / factor, fast)
    between = (wave >= original / high) & (wave <= original / low)
    return torch.where(between, (1 - blend) * fast / factor + blend * fast, stretched), 1.0


def yarn(periods: Tensor, config: ModelConfig) -> tuple[Tensor, float]:
    """YaRN (arXiv:2309.00071, eq. 19-22): NTK by parts, and a temperature on attention.

    The temperature is a factor on cos and sin.
    """
    table: dict[str, Any] = config.rope_scaling or {}
    original = number(config, "original_max_position_embeddings", config.max_positions)
    factor = number(config, "factor", config.max_positions / original)
    low = _dimension(number(config, "beta_fast", 32), original, config)
    high = _dimension(number(config, "beta_slow", 1), original, config)
    if table.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = (torch.arange(len(periods), dtype=torch.float32, device="cpu") - low) / (
        high - low or 0.001
    )
    keep = 1 - ramp.clamp(0, 1)
    frequencies = 1.0 / (factor * periods) * (1 - keep) + 1.0 / periods * keep
    if table.get("attention_factor") is not None:
        return frequencies, number(config, "attention_factor")
    if table.get("mscale") and table.get("mscale_all_dim"):
        top, bottom = number(config, "mscale"), number(config, "mscale_all_dim")
        return frequencies, _temperature(factor, top) / _temperature(factor, bottom)
    return frequencies, _temperature(factor, 1.0)


def _dimension(turns: float, length: float, config: ModelConfig) -> float:
    """The dimension pair with `turns` full turns over `length` positions (YaRN, eq. 17 for d)."""
    base = 2 * math.log(config.rope_theta)
    return config.head_dim * math.log(length / (turns * 2 * math.pi)) / base


def _temperature(factor: float, scale: float) -> float:
    """sqrt(1 / t) of YaRN, eq. 22."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


SCALINGS: dict[str, Scaling] = {"default": plain, "linear": linear, "llama3": llama3, "yarn": yarn}


def frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Returns radians per position, float32 [head_dim / 2], and the factor on cos and sin.

    Raises ModelError for an unknown scaling, and for a table that lacks a number of its type.
    """
    kind = rope_type(config)
    if kind not in SCALINGS:
        raise ModelError(f"rope type {kind!r} is not supported; known: {', '.join(SCALINGS)}")
    if config.head_dim % 2 or not 1 < config.rope_theta < math.inf:
        raise ModelError(
            f"rotary positions need an even head_dim ({config.head_dim}) and a base above 1 "
            f"({config.rope_theta})"
        )
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    return SCALINGS[kind](config.rope_theta ** (pairs / config.head_dim), config)


class Rotary(nn.Module):
    """cos and sin of position * frequency, with the scaling's attention factor folded in.

    The frequencies stay float32 whatever the model is cast to, and survive a model made on the meta
    device.
    """

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.exact, self.factor = frequencies(config)
        self.register_buffer("frequencies", self.exact.clone(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        super()._apply(fn, recurse)
        if self.frequencies.dtype != torch.float32:
            self.frequencies = self.exact.to(self.frequencies.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [N] -> cos, sin [N, 1, head_dim]."""
        angles = positions[:, None].float() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)
