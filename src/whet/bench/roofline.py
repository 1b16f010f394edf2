"""The roofline: the least seconds of a workload on this machine.

They are its FLOPs over the rate of large matrix products, or its bytes over the rate of reading
memory; both rates are measured.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from whet.bench.workload import Workload
from whet.model.config import ModelConfig

SIDE = 2048  # of the square matrices
NUMBERS = 1 << 26  # float32 numbers that are read from memory
WIDTH = 4  # bytes of a number


def measured() -> dict[str, float]:
    """FLOP/s of a large float32 product, bytes/s of reading more than a cache holds; medians."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    long = torch.ones(NUMBERS)
    return {
        "flops": 2 * SIDE**3 / _median(lambda: a @ b, 9),
        "bytes": WIDTH * NUMBERS / _median(long.sum, 9),
    }


def _median(call: Callable[[], object], times: int) -> float:
    call()
    took = list[float]()
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def layers(shape: ModelConfig) -> int:
    """Numbers in the matrices of all layers."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return shape.layers * (attention + 3 * shape.hidden * shape.ffn)


def sampling(work: Workload, size: str, step: int, rate: dict[str, float]) -> float:
    """The least seconds of sampling a step's answers.

    Counted are: every token through every matrix; the weights, read once for each token index; keys
    and values, a token's read by all later tokens of its answer, a prompt's once for its group.
    """
    shape = work.shape(size)
    matrices = layers(shape) + shape.hidden * shape.vocab
    a_token = 2 * shape.layers * shape.kv_heads * shape.head_dim  # keys and values, numbers
    lengths = work.lengths(step).reshape(work.prompts, work.samples)
    seconds = 2 * layers(shape) * work.prompts * work.prompt / rate["flops"]
    for t in range(1, int(lengths.max())):
        alive = lengths > t
        rows, groups = int(alive.sum()), int(alive.any(1).sum())
        seconds += max(2 * matrices * rows / rate["flops"], WIDTH * matrices / rate["bytes"])
        read = a_token * (rows * t + groups * work.prompt)
        asked = 2 * shape.heads // shape.kv_heads * a_token * rows * (t + work.prompt) // 2
        seconds += max(2 * asked / rate["flops"], WIDTH * read / rate["bytes"])
    return seconds


def update(work: Workload, size: str, step: int, rate: dict[str, float]) -> float:
    """The least seconds of training on a step's answers.

    Counted are: forward, and twice that backward, over the groups with signal, a prompt once for its
    group; the reference, forward only; attention's products; AdamW's seven numbers a weight.
    """
    shape = work.shape(size)
    lengths = work.lengths(step).reshape(work.prompts, work.samples)
    lengths = lengths[round(work.silent * work.prompts) :] if not work.beta else lengths
    chosen, tokens = int(lengths.sum()), int(lengths.sum()) + len(lengths) * work.prompt
    pairs = float(
        np.sum(lengths * work.prompt + lengths**2 / 2) + len(lengths) * work.prompt**2 / 2
    )
    attention = 4 * shape.layers * shape.heads * shape.head_dim * pairs
    forward = 2 * layers(shape) * tokens + 2 * shape.hidden * shape.vocab * chosen + attention
    weights = layers(shape) + shape.hidden * shape.vocab
    passes = 4 if work.beta else 3
    return passes * forward / rate["flops"] + work.updates * 7 * WIDTH * weights / rate["bytes"]
