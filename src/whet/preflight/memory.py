"""How much memory a recipe's stages take: what each holds, counted, and what a process that works
holds beside.

On a CPU it is the peak of the process less what it held once its libraries were imported, as `whet
bench` measures it.
"""

import math
import os
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

AROUND = 100 << 20  # bytes: pages of libraries that are read when first used, samples, the log
RAGGED = 40 << 20  # bytes that pieces of ever other sizes leave unused in the heap of a long run
ELSEWHERE = (
    2  # times as much: norms keep copies in float32, the gate its halves; counted for Qwen3's shape
)


@dataclass(frozen=True)
class Load:
    """Tokens that a stage brings to the model: of a prompt, and of a response, on average; and how
    models are measured between stages.
    """

    prompt: float = 64
    response: float = math.inf  # not known: as long as it may be
    evaluation: config.Evaluation | None = None

    def written(self, most: int) -> float:
        """Tokens of an answer that may have so many at most."""
        return min(most, self.response) if math.isfinite(self.response) else most / 2


def available(device: torch.device) -> float:
    """Bytes that can still be had on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = (
        Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        if os.path.exists("/proc/meminfo")
        else []
    )
    told = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if told is None else float(told.split()[1]) * 1024


def needed(
    stage: config.Trained, shape: ModelConfig, size: int, load: Load | None = None, plain: bool = True, model: config.Model | None = None
) -> float:  # fmt: skip
    """Numbers held at most: models, one forward pass and the way back, the sampler's cache. What is
    freed between is seldom given back.

    `plain`: float32 on a CPU, where prompts are shared and the decoder's steps are compiled.
    Elsewhere torch keeps about twice as much.
    """
    load, model = load or Load(), model or config.Model()
    own, prompts = packed(stage, load, plain)
    kept = models(stage, shape, size, model.dtype) * size
    left = activations(shape, model.recompute) * (1 if plain else ELSEWHERE)
    passed = (own + prompts) * (left + on_the_way_back(shape))
    logits = (
        (2 if plain else 4)
        * shape.vocab
        * min(rows_at_once(shape.vocab, "cpu" if plain else "cuda"), own)
    )
    return kept + passed + logits + sampler(stage, shape, load)


def models(stage: config.Trained, shape: ModelConfig, size: int, dtype: str = "float32") -> float:
    """Models' worth of numbers: weights, gradients and moments of what is trained; what is frozen."""
    row = stage.row if isinstance(stage, config.RL) else None
    critic = row is not None and row.trains_critic
    frozen = isinstance(stage, config.DPO) or (row is not None and row.has_kl)
    # In bfloat16: beside weights and gradients of half the width, the optimizer's copies and
    # theirs.
    trained = 4.0 if dtype == "float32" else 10.0
    if stage.lora is None:
        return trained + frozen + trained * critic
    # The weights, merged while sampling, once more for each model of other weights.
    others = isinstance(stage, config.DPO | config.RL) and stage.reference != "start"
    others += (
        isinstance(stage, config.RL) and stage.critic is not None and stage.critic.start is not None
    )
    return 2.0 + others + trained * (1 + critic) * lora.size(shape, stage.lora) / size


def packed(stage: config.Trained, load: Load, plain: bool = True) -> tuple[float, float]:
    """Tokens of one forward pass: those of responses, and those of prompts, each of which is read
    once for its group where that is `plain`.
    """
    if isinstance(stage, config.RL):
        row = stage.row
        most = row.critic.updates if row.critic is not None else 0
        updates = row.updates if most == 0 else min(row.updates, most)
        sequences, together, response = (
            stage.prompts * stage.samples / updates,
            stage.samples,
            stage.max_tokens,
        )
    else:
        pairs = isinstance(
            stage, config.RewardModel | config.DPO
        )  # a ranking has two sides at least
        sequences, together, response = (
            getattr(stage, "batch", 16) * (2 if pairs else 1),
            1,
            stage.micro_tokens,
        )
    response = min(response, load.response)
    at_once = min(sequences, max(1, stage.micro_tokens // (load.prompt + response)))
    return at_once * response, math.ceil(at_once / (together if plain else 1)) * load.prompt


def activations(shape: ModelConfig, recompute: bool = False) -> float:
    """Numbers that a token leaves behind for the way back: what norms, projections, turned heads,
    attention and the gate keep; where they are made again, what goes into each layer, and one
    layer's.
    """
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer = 4 * shape.hidden + 2 * heads + shape.heads * shape.head_dim + 3 * shape.ffn
    return (
        layer + shape.layers * shape.hidden if recompute else shape.layers * layer
    ) + 3 * shape.hidden


def on_the_way_back(shape: ModelConfig) -> float:
    """Numbers of a token held for a moment at the widest layer: gradients of the gate, or of heads."""
    return max(3 * shape.ffn + 2 * shape.hidden, 8 * shape.heads * shape.head_dim)


def sampler(stage: config.Trained, shape: ModelConfig, load: Load) -> float:
    """Numbers held where most rows are alive: of the stage's own sampling, its gate's, or the
    measurement behind it.

    Room is made for `max_tokens`, but memory that is never written to takes none: where lengths are
    not known, half of it. What has yet to pass a gate may write as much as it can.
    """
    drawn: list[tuple[int, int, float]] = []  # prompts, samples of each, tokens of a sample
    if isinstance(stage, config.RL):
        drawn.append((stage.prompts, stage.samples, load.written(stage.max_tokens)))
    if isinstance(stage, config.SFT) and stage.gate is not None:
        drawn.append((stage.gate.samples, 1, stage.gate.max_tokens))
    if load.evaluation is not None and isinstance(stage, config.Makes) and stage.evaluate:
        spec = load.evaluation
        drawn.append((spec.problems, spec.samples, load.written(spec.max_tokens)))
    return max((_drawn(shape, load.prompt, *each) for each in drawn), default=0.0)


def _drawn(shape: ModelConfig, prompt: float, prompts: int, samples: int, tokens: float) -> float:
    """The cache of rows and of their prompts, and one layer's pass over the prompts that are read
    together.
    """
    rows = min(ROWS, prompts * samples)
    seats = min(prompts, math.ceil(rows / samples))
    cached = rows * (LEAST - 1 + tokens) + seats * prompt
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer = 2 * heads + 3 * shape.ffn + 3 * shape.hidden
    return (
        cached * 2 * shape.layers * shape.kv_heads * shape.head_dim
        + min(PREFILL, seats * prompt) * layer
    )


def parameters(shape: ModelConfig) -> int:
    """Numbers in a decoder of this shape."""
    return sum(math.prod(part.shape) for theirs in parts(shape).values() for part in theirs)


def needs(
    recipe: config.Recipe, shape: ModelConfig, size: int, load: Load, device: str
) -> dict[str, float]:
    """Bytes that each stage that trains takes at its peak, in a run."""
    width = 2 if recipe.model.dtype == "bfloat16" else 4
    around = AROUND + RAGGED if device == "cpu" else 0
    found: dict[str, float] = {}
    for s in recipe.stage:
        if isinstance(s, config.Trained):
            plain = device == "cpu" and width == 4
            found[s.name] = around + width * needed(s, shape, size, load, plain, recipe.model)
    return found


def memory(
    recipe: config.Recipe,
    shape: ModelConfig,
    size: int,
    load: Load | None = None,
    judged: bool = True,
) -> str:
    """The hungriest stage fits; `judged`: on this machine, which is the one. Raises WhetError."""
    device = torch.device(
        "cuda" if torch.cuda.is_available() and recipe.model.device != "cpu" else "cpu"
    )
    wanted = needs(recipe, shape, size, load or Load(), device.type)
    if not wanted:
        return "nothing is trained"
    name, most = max(wanted.items(), key=lambda item: item[1])
    if not judged:
        return f"stage {name} takes about {gibibytes(most)}"
    free = available(device)
    if most > free:
        raise WhetError(
            f"stage {name} takes about {gibibytes(most)}, and {gibibytes(free)} are free on {device.type}; lower its micro_tokens, or prompts x samples"
        )
    return (
        f"stage {name} takes about {gibibytes(most)}; {gibibytes(free)} are free on {device.type}"
    )
