"""How much memory a recipe's stages take, roughly and from above."""

import math
import os
from pathlib import Path

import torch

from whet import config
from whet.algorithms import algorithm
from whet.errors import WhetError
from whet.logprobs import rows_at_once
from whet.model import lora
from whet.model.config import ModelConfig
from whet.model.weights import parts


def available(device: torch.device) -> float:
    """Bytes that can still be had on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if os.path.exists("/proc/meminfo") else []
    told = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if told is None else float(told.split()[1]) * 1024


def needed(
    stage: config.Trained, shape: ModelConfig, size: int, device: str = "cpu", model: config.Model | None = None
) -> float:
    """Numbers held at most, roughly: weights, gradients and two moments of what is trained; what is frozen; activations; logits; the
    sampler's cache."""
    row = algorithm(stage.algorithm, stage.override) if isinstance(stage, config.RL) else None
    critic = row is not None and (row.critic is not None or row.token_reward)
    frozen = isinstance(stage, config.Prefer) or (row is not None and row.has_kl)
    model = model or config.Model()
    trained = (
        4.0 if model.dtype == "float32" else 10.0
    )  # beside weights and gradients of half the width, the optimizer's copies and theirs
    models = trained + frozen + trained * critic
    if stage.lora is not None:  # the weights, merged while sampling, once more for each model of other weights
        others = isinstance(stage, config.Prefer | config.RL) and stage.reference != "start"
        others += isinstance(stage, config.RL) and stage.critic is not None and stage.critic.start is not None
        models = 2.0 + others + trained * (1 + critic) * lora.size(shape, stage.lora) / size
    inside = 12 * shape.hidden + 3 * shape.ffn  # of a layer, for each token
    activations = stage.micro_tokens * (
        inside + shape.layers * shape.hidden if model.recompute else shape.layers * inside
    )
    logits = 4 * shape.vocab * min(rows_at_once(shape.vocab, device), stage.micro_tokens)
    cache = 0
    if isinstance(stage, config.RL):
        rows = min(256, stage.prompts * stage.samples)
        cache = rows * (stage.max_tokens + 64) * 2 * shape.layers * shape.kv_heads * shape.head_dim
    return models * size + activations + logits + cache


def parameters(shape: ModelConfig) -> int:
    """Numbers in a decoder of this shape."""
    return sum(math.prod(part.shape) for theirs in parts(shape).values() for part in theirs)


def memory(recipe: config.Recipe, shape: ModelConfig, size: int, judged: bool = True) -> str:
    """The hungriest stage fits; `judged`: on this machine, which is the one. Raises WhetError."""
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.model.device != "cpu" else "cpu")
    width = 2 if recipe.model.dtype == "bfloat16" else 4
    wanted = {
        s.name: width * needed(s, shape, size, device.type, recipe.model)
        for s in recipe.stage
        if isinstance(s, config.Trained)
    }
    if not wanted:
        return "nothing is trained"
    name, most = max(wanted.items(), key=lambda item: item[1])
    if not judged:
        return f"stage {name} may take {most / 2**30:.2f} GiB"
    free = available(device)
    if most > free:
        raise WhetError(
            f"stage {name} may take {most / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {device.type}; lower its micro_tokens, or prompts x samples"
        )
    return f"stage {name} may take {most / 2**30:.2f} GiB; {free / 2**30:.1f} GiB are free on {device.type}"
