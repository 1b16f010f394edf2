"""Activations that are made again: the same gradient to the last bit, for less memory, where a
recipe asks for it.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from whet import config
from whet.config import Lora
from whet.errors import RecipeError
from whet.model.config import ModelConfig
from whet.model.lora import adapt
from whet.model.transformer import Transformer
from whet.pipeline import setup
from whet.preflight import memory

SHAPE = ModelConfig("qwen3", 30, 32, 4, 4, 2, 8, 48, qk_norm=True)
LENGTHS = (9, 4, 7)


def gradient(model, recompute):
    """Hidden states and gradients of a pack whose sequences begin alike, and the bytes kept for the
    backward pass.
    """
    model.recompute, kept = recompute, {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    tokens = torch.randint(0, 30, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    tokens[9:12] = tokens[16:19] = tokens[:3]
    positions, starts = (
        torch.cat([torch.arange(n) for n in LENGTHS]),
        torch.tensor([0, *LENGTHS]).cumsum(0),
    )
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = model.packed(tokens, positions, starts)
    (
        hidden * torch.linspace(-1, 2, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    ).sum().backward()
    told = [hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    model.zero_grad(set_to_none=True)
    return told, sum(n for at, n in kept.items() if at not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
def test_the_gradient_is_the_same_to_the_last_bit(dtype, lora):
    model = Transformer(SHAPE).initialize(torch.Generator().manual_seed(1)).to(dtype)
    adapt(model, lora)
    (exact, much), (ours, little) = gradient(model, False), gradient(model, True)
    assert len(exact) == len(ours) > 8
    for a, b in zip(exact, ours, strict=True):
        assert torch.equal(a, b)
    assert little < much / 4


def test_a_recipe_asks_for_it_and_copies_keep_it():
    model = setup.to_device(Transformer(SHAPE), config.Model(recompute=True, device="cpu"))
    assert model.recompute and copy.deepcopy(model).recompute
    assert not setup.to_device(model, config.Model(device="cpu")).recompute


def test_another_s_model_is_refused():
    other = nn.Linear(1, 1)
    other.config = ModelConfig("gpt2", 30, 32, 1, 2, 2, 16, 48)
    with pytest.raises(
        RecipeError, match=r"recompute is for whet's own decoder .*, and this is a gpt2"
    ):
        setup.to_device(other, config.Model(recompute=True, device="cpu"))
    assert setup.to_device(other, config.Model(device="cpu")) is other


def test_the_memory_that_is_promised_is_less():
    stage = config.RL(name="rl", kind="rl", steps=1, micro_tokens=8192)
    kept, made = (
        memory.peak_elements(stage, SHAPE, 10**6, model=config.Model(recompute=r))
        for r in (False, True)
    )
    inside = (
        4 * 32 + 2 * 64 + 32 + 3 * 48
    )  # norms, projections and turned heads, attention, the gate
    assert kept - made == sum(memory.pass_tokens(stage, memory.Workload())) * (
        4 * inside - inside - 4 * 32
    )


def test_a_recipe_uses_it():
    assert "recompute = true" in (Path(__file__).parents[1] / "recipes/r1.toml").read_text(
        encoding="utf-8"
    )
