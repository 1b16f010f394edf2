"""The shape of a decoder, as data."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """One decoder of the Llama / Qwen2 / Qwen3 / SmolLM families.

    `family` is Hugging Face's `model_type` (llama, qwen2, qwen3, smollm3). `rope_scaling` is
    Hugging Face's table with its `rope_type` (llama3, linear, yarn) or None. `no_rope_layers` lists
    the layers without rotary positions (SmolLM3).
    """

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    no_rope_layers: tuple[int, ...] = ()
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    scalar: bool = False  # the head gives one number per token, not logits: a reward model
    max_positions: int = 2048
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    # Other keys of config.json and of generation_config.json, written back unchanged.
    extra: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
