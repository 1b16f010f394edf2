"""Rotary positions and their scalings (RoPE arXiv:2104.09864; YaRN arXiv:2309.00071; Llama 3.1's)."""

import torch
from torch import Tensor, nn

from whet.model.config import ModelConfig


class Rotary(nn.Module):
    """cos and sin of position * frequency, with the table's attention factor folded in."""

    frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        powers = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.factor = 1.0
        self.register_buffer("frequencies", 1.0 / config.rope_theta**powers, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions [N] -> cos, sin [N, 1, head_dim]."""
        angles = positions[:, None].float() * self.frequencies.float()
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotates halves, as Hugging Face's checkpoints expect."""
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin
