"""The setup of gpu.py, a line of its table, and models and answers of random numbers."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from whet.model.config import ModelConfig
from whet.model.transformer import Transformer
from whet.types import Problem, Prompt, Sample

SHAPES = {
    "1.5B": ModelConfig(
        "qwen2",
        151_936,
        1536,
        28,
        12,
        2,
        128,
        8960,
        qkv_bias=True,
        max_positions=4096,
        rope_theta=1e6,
    ),
    "0.5B": ModelConfig(
        "qwen2",
        151_936,
        896,
        24,
        14,
        2,
        64,
        4864,
        qkv_bias=True,
        max_positions=4096,
        rope_theta=1e6,
    ),
    "tiny": ModelConfig("qwen2", 1_000, 128, 2, 4, 2, 32, 256, qkv_bias=True, max_positions=4096),
}
# Dense bfloat16 FLOP/s and bytes/s as NVIDIA states them.
CARDS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.0e12)}
PROMPT, GROUP = 256, 8  # tokens of a prompt, answers to it


@dataclass(frozen=True)
class Setup:
    device: str
    shape: ModelConfig
    batch: int
    tokens: int
    size: str

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.cuda else torch.float32

    @property
    def card(self) -> str:
        return (
            torch.cuda.get_device_name()
            if self.cuda
            else platform.processor() or platform.machine()
        )

    @property
    def stated(self) -> tuple[float, float] | None:
        return next((v for k, v in CARDS.items() if k in self.card), None)


@dataclass(frozen=True)
class Line:
    """goal: ">= 0.5", "<= 1e-4", or none. equality: where it is missed, the exit says so."""

    what: str
    value: float
    unit: str = ""
    goal: str = ""
    equality: bool = False

    @property
    def holds(self) -> bool | None:
        if not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.value >= float(bound) if sign == ">=" else self.value <= float(bound)

    def __str__(self) -> str:
        verdict = {None: "", True: "pass", False: "FAIL"}[self.holds]
        goal = f"goal {self.goal}" if self.goal else ""
        return f"  {self.what:<58} {self.value:>12.5g} {self.unit:<9} {goal:<14} {verdict}".rstrip()


class Silent:
    def decode(self, tokens: object) -> str:
        return ""


def prompts(count: int, length: int, vocab: int) -> list[Prompt]:
    rows = np.random.default_rng(0).integers(0, vocab, (count, length)).tolist()
    return [
        Prompt(Problem(str(i), ({"role": "user", "content": ""},)), tuple(row))
        for i, row in enumerate(rows)
    ]


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable[[], object], times: int = 3) -> float:
    took = []
    for i in range(times + 1):
        settle()
        began = time.perf_counter()
        call()
        settle()
        took += [time.perf_counter() - began] if i else []
    return statistics.median(took)


@contextmanager
def patched(where: object, name: str, value: object) -> Iterator[None]:
    original = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, original)


def model_of(shape: ModelConfig, device: str, dtype: torch.dtype) -> Transformer:
    with torch.device(device):
        model = Transformer(shape)
    return model.initialize(torch.Generator(device).manual_seed(0)).to(dtype)


def answers(c: ModelConfig, count: int, tokens: int, prompt: int = PROMPT) -> list[Sample]:
    """`count` answers to prompts that GROUP of them have in common."""
    rng, samples, chosen = (
        np.random.default_rng(1),
        list[Sample](),
        np.arange(prompt + tokens) >= prompt,
    )
    for i in range(count):
        asked = rng.integers(0, c.vocab, prompt) if i % GROUP == 0 else asked  # noqa: F821
        whole = np.concatenate([asked, rng.integers(0, c.vocab, tokens)])
        samples.append(
            Sample(whole, chosen, np.where(chosen, -1, 0).astype(np.float32), "", "length")
        )
    return samples
