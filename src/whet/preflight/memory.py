"""Counts the memory that a recipe's stages take at their peak.

Functions count elements: numbers of the model's dtype, 4 bytes in float32 and 2 in bfloat16.
`peak_bytes` turns them into bytes. On a CPU that is the peak of the process less what it held
after its imports, as `whet bench` measures it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from whet import config
from whet.engines import ROWS
from whet.engines.cache import LEAST
from whet.engines.native import PREFILL
from whet.errors import WhetError
from whet.format import gibibytes
from whet.model import lora
from whet.model.config import ModelConfig
from whet.model.logprobs import rows_at_once
from whet.model.weights import parts

PROCESS = 100 << 20  # bytes: pages of libraries read when first used, samples, the log
FRAGMENTS = 40 << 20  # bytes of the heap that blocks of changing sizes leave unused in a long run
# Activations without whet's kernels, as a multiple: norms keep float32 copies, the gate its halves.
# Counted for Qwen3's shape.
TORCH_ACTIVATIONS = 2


@dataclass(frozen=True)
class Workload:
    """Average tokens of a prompt and of a response, and how models are measured after a stage."""

    prompt: float = 64
    response: float = math.inf  # not known: up to max_tokens
    evaluation: config.Evaluation | None = None

    def sampled(self, max_tokens: int) -> float:
        """Returns the average tokens of a sample; half of max_tokens where lengths are not known."""
        return max_tokens / 2 if math.isinf(self.response) else min(max_tokens, self.response)


UNKNOWN, DEFAULTS = Workload(), config.Model()


def free_bytes(device: torch.device) -> float:
    """Returns the device's free memory in bytes; infinity where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    path = Path("/proc/meminfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return math.inf


def parameters(shape: ModelConfig) -> int:
    """Returns the number of weights of a decoder of this shape."""
    return sum(math.prod(part.shape) for weights in parts(shape).values() for part in weights)


def peak_elements(
    stage: config.Trained,
    shape: ModelConfig,
    size: int,
    load: Workload = UNKNOWN,
    kernels: bool = True,
    model: config.Model = DEFAULTS,
) -> float:
    """Returns the elements that a stage holds at its peak, with models of `size` weights.

    Models, one forward and backward pass, and the sampler's cache add up: memory that is freed in
    between is seldom given back to the system. `kernels`: whet's own run (float32 on a CPU), which
    read each prompt once for its group; without them torch keeps about twice the activations.
    """
    responses, prompts = pass_tokens(stage, load, kernels)
    models = model_copies(stage, shape, size, model.dtype) * size
    kept = activations(shape, model.recompute) * (1 if kernels else TORCH_ACTIVATIONS)
    one_pass = (responses + prompts) * (kept + backward(shape))
    rows = min(rows_at_once(shape.vocab, "cpu" if kernels else "cuda"), responses)
    logits = (2 if kernels else 4) * shape.vocab * rows
    return models + one_pass + logits + sampling(stage, shape, load)


def model_copies(
    stage: config.Trained, shape: ModelConfig, size: int, dtype: str = "float32"
) -> float:
    """Returns the elements of all models, as a multiple of one model's `size`.

    A trained model counts weights, gradients and two moments; a frozen one its weights.
    """
    row = stage.row if isinstance(stage, config.RL) else None
    critic = row is not None and row.trains_critic
    frozen = isinstance(stage, config.DPO) or (row is not None and row.has_kl)
    # In bfloat16 the optimizer holds float32 copies of weights, gradients and moments: 2 + 4 x 2.
    trained = 4.0 if dtype == "float32" else 10.0
    if stage.lora is None:
        return trained + frozen + trained * critic
    # The weights, once more merged for sampling, and each model with other weights.
    others = isinstance(stage, config.DPO | config.RL) and stage.reference != "start"
    others += (
        isinstance(stage, config.RL) and stage.critic is not None and stage.critic.start is not None
    )
    return 2.0 + others + trained * (1 + critic) * lora.size(shape, stage.lora) / size


def pass_tokens(stage: config.Trained, load: Workload, kernels: bool = True) -> tuple[float, float]:
    """Returns the tokens of one forward pass: those of responses, and those of prompts.

    With `kernels` a prompt is read once for all samples of its group.
    """
    if isinstance(stage, config.RL):
        row = stage.row
        most = row.critic.updates if row.critic is not None else 0
        updates = row.updates if most == 0 else min(row.updates, most)
        group, response = stage.samples, stage.max_tokens
        sequences = stage.prompts * group / updates
    else:
        pair = 2 if isinstance(stage, config.RewardModel | config.DPO) else 1  # chosen, rejected
        sequences, group, response = getattr(stage, "batch", 16) * pair, 1, stage.micro_tokens
    response = min(response, load.response)
    at_once = min(sequences, max(1, stage.micro_tokens // (load.prompt + response)))
    return at_once * response, math.ceil(at_once / (group if kernels else 1)) * load.prompt


def activations(shape: ModelConfig, recompute: bool = False) -> float:
    """Returns the elements that a token keeps for the backward pass.

    They are the inputs of norms, projections, rotated heads, attention and the gate. With
    `recompute` they are the inputs of all layers, and the inside of one.
    """
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer = 4 * shape.hidden + 2 * heads + shape.heads * shape.head_dim + 3 * shape.ffn
    layers = layer + shape.layers * shape.hidden if recompute else shape.layers * layer
    return layers + 3 * shape.hidden


def backward(shape: ModelConfig) -> float:
    """Returns a token's gradient elements at the widest point: in the gate, or in the heads."""
    return max(3 * shape.ffn + 2 * shape.hidden, 8 * shape.heads * shape.head_dim)


def sampling(stage: config.Trained, shape: ModelConfig, load: Workload) -> float:
    """Returns the sampler's elements at their most: of the stage, its gate, or its measurement.

    The cache has room for `max_tokens`, but pages that are never written take no memory: where
    lengths are not known, half of it counts. Answers before a gate holds may use all of it.
    """
    draws: list[tuple[int, int, float]] = []  # prompts, samples a prompt, tokens a sample
    if isinstance(stage, config.RL):
        draws.append((stage.prompts, stage.samples, load.sampled(stage.max_tokens)))
    if isinstance(stage, config.SFT) and stage.gate is not None:
        draws.append((stage.gate.samples, 1, stage.gate.max_tokens))
    if load.evaluation is not None and isinstance(stage, config.Makes) and stage.evaluate:
        spec = load.evaluation
        draws.append((spec.problems, spec.samples, load.sampled(spec.max_tokens)))
    return max((_sampling(shape, load.prompt, *draw) for draw in draws), default=0.0)


def _sampling(
    shape: ModelConfig, prompt: float, prompts: int, samples: int, tokens: float
) -> float:
    """Returns the elements of the cache, and of one layer's pass over the prompts read at once."""
    rows = min(ROWS, prompts * samples)
    live = min(prompts, math.ceil(rows / samples))  # prompts whose samples are being drawn
    cached = rows * (LEAST - 1 + tokens) + live * prompt
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer = 2 * heads + 3 * shape.ffn + 3 * shape.hidden
    cache = cached * 2 * shape.layers * shape.kv_heads * shape.head_dim
    return cache + min(PREFILL, live * prompt) * layer


def peak_bytes(
    recipe: config.Recipe, shape: ModelConfig, size: int, load: Workload, device: str
) -> dict[str, float]:
    """Returns the peak in bytes of each stage that trains, by its name."""
    width = 2 if recipe.model.dtype == "bfloat16" else 4
    process = PROCESS + FRAGMENTS if device == "cpu" else 0
    kernels = device == "cpu" and width == 4
    return {
        s.name: process + width * peak_elements(s, shape, size, load, kernels, recipe.model)
        for s in recipe.stage
        if isinstance(s, config.Trained)
    }


def check(
    recipe: config.Recipe, shape: ModelConfig, size: int, load: Workload, here: bool = True
) -> str:
    """Describes the peak of the largest stage; `here`: compares it with this machine's free memory.

    Raises WhetError where it does not fit.
    """
    on_gpu = torch.cuda.is_available() and recipe.model.device != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    peaks = peak_bytes(recipe, shape, size, load, device.type)
    if not peaks:
        return "nothing is trained"
    name, most = max(peaks.items(), key=lambda item: item[1])
    peak = f"stage {name} takes about {gibibytes(most)}"
    if not here:
        return peak
    free = free_bytes(device)
    free_text = f"{gibibytes(free)} are free on {device.type}"
    if most > free:
        raise WhetError(f"{peak}, and {free_text}; lower its micro_tokens, or prompts x samples")
    return f"{peak}; {free_text}"
