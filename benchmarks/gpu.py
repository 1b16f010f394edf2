"""What is to be shown on a GPU: equality with the CPU, tokens a second against the memory's limit, the update's MFU, peak memory.

    python benchmarks/gpu.py [--device cuda] [--shape 1.5B] [--batch 256] [--tokens 256]

Random weights of real shapes, bfloat16. `--device cpu --shape tiny` runs the same lines anywhere, without the figures of a GPU.
TRL's step on the same card: `whet bench worst typical --size 50M --device cuda`.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from whet import config
from whet.algorithms import algorithm
from whet.batch import pack
from whet.engines.native import NativeEngine
from whet.footprint import parameters
from whet.learner import Learner, policy_logprobs
from whet.model.config import ModelConfig
from whet.model.transformer import Transformer
from whet.types import Problem, Prompt, Sample, Sampling

SHAPES = {
    "1.5B": ModelConfig(
        "qwen2", 151_936, 1536, 28, 12, 2, 128, 8960, qkv_bias=True, max_positions=4096, rope_theta=1e6
    ),
    "0.5B": ModelConfig("qwen2", 151_936, 896, 24, 14, 2, 64, 4864, qkv_bias=True, max_positions=4096, rope_theta=1e6),
    "tiny": ModelConfig("qwen2", 1_000, 128, 2, 4, 2, 32, 256, qkv_bias=True, max_positions=4096),
}
# Dense bfloat16 FLOP/s and bytes/s as NVIDIA states them.
CARDS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.0e12)}


class Silent:
    def decode(self, tokens: object) -> str:
        return ""


def prompts(count: int, length: int, vocab: int) -> list[Prompt]:
    rows = np.random.default_rng(0).integers(0, vocab, (count, length)).tolist()
    return [Prompt(Problem(str(i), ({"role": "user", "content": ""},)), tuple(row)) for i, row in enumerate(rows)]


def timed(call: Callable[[], object], device: str, times: int = 3) -> float:
    took = []
    for i in range(times + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        took += [time.perf_counter() - began] if i else []
    return statistics.median(took)


def model_of(shape: ModelConfig, device: str, dtype: torch.dtype) -> Transformer:
    with torch.device(device):
        model = Transformer(shape)
    return model.initialize(torch.Generator(device).manual_seed(0)).to(dtype)


def equality(device: str) -> dict[str, float]:
    """The same small model in float32 here and on the CPU: log-probabilities, gradients, and what is sampled."""
    shape = replace(SHAPES["tiny"], qkv_bias=False, qk_norm=True, family="qwen3")
    cpu = model_of(shape, "cpu", torch.float32)
    there = Transformer(shape).to(device)
    there.load_state_dict(cpu.state_dict())
    told = [
        NativeEngine(m, Silent(), (3,)).generate(prompts(4, 20, shape.vocab), Sampling(8, 1.0, 64))
        for m in (cpu, there)
    ]
    flat = [[s for group in drawn for s in group] for drawn in told]
    same = statistics.mean(float(a.tokens.tolist() == b.tokens.tolist()) for a, b in zip(*flat, strict=True))
    gradients, likely = [], []
    for m in (cpu, there):
        batch = pack(flat[0], [1.0] * 32, [1.0] * 32).to(next(m.parameters()).device)
        logp, _ = policy_logprobs(m, batch, Sampling())
        logp.sum().backward()
        likely.append(logp.detach().cpu())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in m.parameters()]))
    gap = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    return {"same samples": same, "logp gap": float((likely[0] - likely[1]).abs().max()), "gradient gap": gap}


def sampling(model: Transformer, device: str, batch: int, tokens: int) -> dict[str, float]:
    """Tokens a second, and the share of the memory's limit: weights once a step, keys and values of all rows."""
    c = model.config
    engine = NativeEngine(model, Silent(), (), batch)
    asked = prompts(batch // 8, 256, c.vocab)
    seconds = timed(lambda: engine.generate(asked, Sampling(8, 1.0, tokens)), device)
    width = model.embed.weight.element_size()
    cache = 2 * c.layers * c.kv_heads * c.head_dim * width
    read = tokens * (width * parameters(c) + cache * (batch * tokens / 2 + batch / 8 * 256))
    return {"tokens/s": batch * tokens / seconds, "bytes/s": read / seconds}


def update(model: Transformer, device: str, batch: int, tokens: int) -> dict[str, float]:
    """Seconds of an update on `batch` answers, and its FLOP/s: six for each weight and token, and attention's."""
    c, rng = model.config, np.random.default_rng(1)
    length = 256 + tokens
    flat = [
        Sample(
            rng.integers(0, c.vocab, length),
            np.arange(length) >= 256,
            np.where(np.arange(length) >= 256, -1, 0).astype(np.float32),
            "",
            "length",
        )
        for _ in range(batch)
    ]
    whole = pack(flat, [1.0] * batch, [1 / (batch * tokens)] * batch).to(device)
    learner, row = Learner(model, config.Optimizer(lr=1e-6), 10), algorithm("dr_grpo")

    def loss_of(micro):  # noqa: ANN202
        logp, entropy = policy_logprobs(model, micro, Sampling())
        return row.loss(logp, entropy, micro)

    seconds = timed(lambda: learner.step(whole, 16_384, loss_of), device)
    flops = 6 * parameters(c) * batch * length + 12 * c.layers * c.heads * c.head_dim * batch * length**2 / 2
    return {"update seconds": seconds, "FLOP/s": flops / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="1.5B", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256)
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu: no CUDA device here; `--device cpu --shape tiny` runs the same lines on a CPU")
    card = torch.cuda.get_device_name() if a.device == "cuda" else platform.processor()
    print(json.dumps({"device": card, "torch": torch.__version__, "python": platform.python_version()}))
    print(json.dumps(equality(a.device)))
    dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    model = model_of(SHAPES[a.shape], a.device, dtype)
    told = sampling(model, a.device, a.batch, a.tokens) | update(model, a.device, max(1, a.batch // 8), a.tokens)
    flops, width = next((v for k, v in CARDS.items() if k in card), (0.0, 0.0))
    if flops:
        told |= {"share of bandwidth": told["bytes/s"] / width, "MFU": told["FLOP/s"] / flops}
    if a.device == "cuda":
        told["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps(told))


if __name__ == "__main__":
    main()
